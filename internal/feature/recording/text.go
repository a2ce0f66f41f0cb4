package recording

import (
	"time"
	"unicode"
	"unicode/utf8"
)

// Line is one line of a session's text: what stood on the screen, or what was
// typed, without what only a terminal understands.
type Line struct {
	At   time.Duration // when the line was last written to
	Kind Kind          // Output, Error or Input
	Text string
}

const (
	maxLine     = 2 << 10 // letters of a line; what is longer is cut in two
	maxSequence = 4 << 10 // bytes of an escape sequence; what is longer is text again
)

// scribe makes lines of what goes to a terminal. It is a terminal of one line:
// what is overwritten in it is gone, moving to another ends it.
type scribe struct {
	kind Kind
	out  func(Line)

	line   []rune
	col    int
	at     time.Duration
	state  byte // 0, or of which sequence this is a part: ESC [ ] ( \
	params []byte
	count  int // bytes of the sequence
	part   []byte
}

// take reads bytes that were written at a moment.
func (s *scribe) take(at time.Duration, data []byte) {
	if len(s.part) > 0 {
		data, s.part = append(s.part, data...), nil
	}
	for len(data) > 0 {
		r, n := rune(data[0]), 1
		if r >= utf8.RuneSelf {
			if !utf8.FullRune(data) {
				s.part = append([]byte(nil), data...)
				return
			}
			r, n = utf8.DecodeRune(data)
		}
		data = data[n:]
		if s.state != 0 {
			s.escape(r)
			continue
		}
		s.plain(at, r)
	}
}

func (s *scribe) plain(at time.Duration, r rune) {
	switch {
	case r == 0x1b:
		s.state, s.params, s.count = 0x1b, s.params[:0], 0
	case r == '\n', r == '\r' && s.kind == Input:
		s.end()
	case r == '\r':
		s.col = 0
	case r == '\b', r == 0x7f && s.kind == Input:
		s.col = max(s.col-1, 0)
		if s.kind == Input {
			s.line = s.line[:s.col]
		}
	case r == '\t':
		s.put(at, ' ')
	case r != utf8.RuneError && unicode.IsPrint(r):
		s.put(at, r)
	}
}

func (s *scribe) put(at time.Duration, r rune) {
	for len(s.line) < s.col {
		s.line = append(s.line, ' ')
	}
	if s.col == len(s.line) {
		s.line = append(s.line, r)
	} else {
		s.line[s.col] = r
	}
	s.col++
	s.at = at
	if s.col >= maxLine {
		s.end()
	}
}

// escape reads the rest of a sequence.
func (s *scribe) escape(r rune) {
	if s.count++; s.count > maxSequence {
		s.state = 0
		return
	}
	switch s.state {
	case 0x1b:
		switch r {
		case '[':
			s.state = '['
		case ']', 'P', '_', '^', 'X':
			s.state = ']'
		case '(', ')', '*', '+', '#', '%', ' ':
			s.state = '('
		case 'D', 'E', 'M', 'c':
			s.end()
			s.state = 0
		default:
			s.state = 0
		}
	case '(': // one more
		s.state = 0
	case ']': // to BEL or ESC \
		if r == 0x07 {
			s.state = 0
		} else if r == 0x1b {
			s.state = '\\'
		}
	case '\\':
		if s.state = ']'; r == '\\' {
			s.state = 0
		}
	case '[':
		if r >= 0x40 && r < 0x7f {
			s.state = 0
			s.move(r)
		} else if len(s.params) < 32 {
			s.params = append(s.params, byte(r))
		}
	}
}

// move does what a sequence says of the line.
func (s *scribe) move(final rune) {
	n := 0
	for _, c := range s.params {
		if c < '0' || c > '9' {
			break
		}
		n = min(10*n+int(c-'0'), maxLine)
	}
	some := max(n, 1)
	switch final {
	case 'C':
		s.col = min(s.col+some, maxLine-1)
	case 'D':
		s.col = max(s.col-some, 0)
	case 'G':
		s.col = some - 1
	case 'K':
		switch {
		case n == 0 && s.col < len(s.line):
			s.line = s.line[:s.col]
		case n == 2:
			s.line = s.line[:0]
		}
	case 'P':
		if s.col < len(s.line) {
			s.line = append(s.line[:s.col], s.line[min(s.col+some, len(s.line)):]...)
		}
	case 'A', 'B', 'E', 'F', 'H', 'd', 'f', 'J':
		s.end()
	}
}

// end hands out the line, if there is anything on it.
func (s *scribe) end() {
	text := trimmed(s.line)
	s.line, s.col = s.line[:0], 0
	if text != "" {
		s.out(Line{At: s.at, Kind: s.kind, Text: text})
	}
}

func trimmed(line []rune) string {
	for len(line) > 0 && line[len(line)-1] == ' ' {
		line = line[:len(line)-1]
	}
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	return string(line)
}
