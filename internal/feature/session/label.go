package session

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"
)

// labels finds the commands of a shell in its output, for chapters. It knows
// two ways: the marks that shells with integration print (OSC 133;B ends the
// prompt, 133;C begins the command's output), and handrail's own prompt, which
// holds PERSON@HOST: and ends in "$ " or "# ". A program can print either, so
// what comes out is a label for the eye, never a proof.
type labels struct {
	prompt []byte // person@host:
	line   []byte // the line so far, as printed
	marked bool   // marks were seen; the prompt is no longer looked for
	long   bool   // the line is too long to be a command; skip to its end
	held   []byte // an escape sequence cut in two
	on     bool   // between B and C
	typed  []byte
}

const (
	maxLabel = 512
	maxHeld  = 64
	maxLine  = 4 << 10
)

var oscMark = []byte("\x1b]133;")

// scan returns the commands that p completes.
func (s *labels) scan(p []byte) []string {
	commands := s.marks(p)
	if !s.marked && len(s.prompt) > 0 {
		commands = s.lines(p)
	}
	return commands
}

// lines looks for completed lines that begin with our prompt.
func (s *labels) lines(p []byte) (commands []string) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		part := p
		if end >= 0 {
			part = p[:end]
		}
		if s.long = s.long || len(s.line)+len(part) > maxLine; !s.long {
			s.line = append(s.line, part...)
		}
		if end < 0 {
			return commands
		}
		if !s.long && bytes.Contains(s.line, s.prompt) {
			if text := s.afterPrompt(oneTerminalLine(s.line)); text != "" {
				commands = append(commands, text)
			}
		}
		s.line, s.long = s.line[:0], false
		if cap(s.line) > maxLine/2 {
			s.line = nil
		}
		p = p[end+1:]
	}
	return commands
}

func (s *labels) afterPrompt(line string) string {
	_, rest, ok := strings.Cut(line, string(s.prompt))
	if !ok {
		return ""
	}
	end := strings.IndexAny(rest, "$#")
	if end < 0 || end+1 >= len(rest) || rest[end+1] != ' ' {
		return ""
	}
	return short(rest[end+2:])
}

// marks looks for OSC 133.
func (s *labels) marks(p []byte) (commands []string) {
	if !s.on && len(s.held) == 0 && bytes.IndexByte(p, 0x1b) < 0 {
		return nil
	}
	if len(s.held) > 0 {
		p = append(s.held, p...)
		s.held = nil
	}
	for len(p) > 0 {
		i := bytes.Index(p, oscMark)
		if i < 0 {
			if cut := partialMark(p); cut >= 0 {
				s.keep(p[:cut])
				s.held = append([]byte(nil), p[cut:]...)
				return commands
			}
			s.keep(p)
			return commands
		}
		s.keep(p[:i])
		mark := p[i+len(oscMark):]
		end := bytes.IndexAny(mark, "\a\x1b")
		if end < 0 {
			if len(mark) < maxHeld {
				s.held = append([]byte(nil), p[i:]...)
			}
			return commands
		}
		if end > 0 {
			s.marked = true
			switch mark[0] {
			case 'B':
				s.on, s.typed = true, nil
			case 'A', 'C', 'D':
				if text := short(oneTerminalLine(s.typed)); s.on && mark[0] == 'C' && text != "" {
					commands = append(commands, text)
				}
				s.on, s.typed = false, nil
			}
		}
		p = mark[end:]
	}
	return commands
}

func (s *labels) keep(p []byte) {
	if s.on && len(s.typed) < 4*maxLabel {
		s.typed = append(s.typed, p[:min(len(p), 4*maxLabel-len(s.typed))]...)
	}
}

// partialMark is where p ends in the beginning of a mark, or -1.
func partialMark(p []byte) int {
	for n := min(len(p), len(oscMark)-1); n > 0; n-- {
		if bytes.HasSuffix(p, oscMark[:n]) {
			return len(p) - n
		}
	}
	return -1
}

func short(text string) string {
	text = strings.TrimSpace(text)
	if r := []rune(text); len(r) > maxLabel {
		text = string(r[:maxLabel]) + "…"
	}
	return text
}

// oneTerminalLine is what a line looks like once its editing is done: cursor
// moves, erasing and overwriting, as line editors use them.
func oneTerminalLine(b []byte) string {
	var line []rune
	at := 0
	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == 0x1b:
			var final byte
			var n int
			i, final, n = escape(b, i)
			line, at = edit(line, at, final, n)
			continue
		case c == '\b':
			at = max(at-1, 0)
		case c == '\r':
			at = 0
		case c >= 0x20 && c != 0x7f:
			r, size := utf8.DecodeRune(b[i:])
			for len(line) <= at {
				line = append(line, ' ')
			}
			line[at] = r
			at++
			i += size
			continue
		}
		i++
	}
	return string(line)
}

// edit applies one control sequence to the line.
func edit(line []rune, at int, final byte, n int) ([]rune, int) {
	one := min(max(n, 1), maxLine)
	switch final {
	case 'C':
		at = min(at+one, maxLine)
	case 'D':
		at = max(at-one, 0)
	case 'G':
		at = one - 1
	case 'K':
		if n <= 0 && at < len(line) {
			line = line[:at]
		}
	case 'P':
		if at < len(line) {
			line = slices.Delete(line, at, min(at+one, len(line)))
		}
	case '@':
		if at < len(line) {
			line = slices.Insert(line, at, slices.Repeat([]rune{' '}, min(one, 256))...)
		}
	}
	return line, at
}

// escape reads the sequence at b[i]: where it ends, its final byte and first number.
func escape(b []byte, i int) (next int, final byte, n int) {
	i++
	if i >= len(b) {
		return i, 0, 0
	}
	switch b[i] {
	case '[':
		n = -1
		for i++; i < len(b); i++ {
			switch c := b[i]; {
			case c >= '0' && c <= '9':
				n = min(max(n, 0)*10+int(c-'0'), maxLine)
			case c >= 0x40 && c <= 0x7e:
				return i + 1, c, n
			}
		}
		return i, 0, 0
	case ']':
		for i++; i < len(b); i++ {
			if b[i] == '\a' {
				return i + 1, 0, 0
			}
			if b[i] == 0x1b {
				return i, 0, 0 // its other end is an escape of its own
			}
		}
		return i, 0, 0
	}
	return i + 1, 0, 0
}
