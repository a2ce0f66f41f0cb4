package cli

// screen passes terminal output of somebody else on to a terminal, without
// what could make that terminal act or answer: operating-system commands
// (titles, clipboard, links), device strings, and questions whose answer would
// be typed into the watcher's keyboard. Drawing passes.
//
//	text ──ESC──▶ escape ──[──▶ csi ──final──▶ text   (passed, unless a question)
//	                │ ]PX^_ ─▶ str ──BEL, ST──▶ text  (dropped)
//	                └ else ──────────────────▶ text   (passed)
type screen struct {
	state byte   // 0 text, 'e' escape, 'c' csi, 's' str, 'x' str after ESC, 'u' after 0xc2
	held  []byte // an escape sequence that has not ended
}

// calmScreen undoes what a program that was cut off may have left behind: the
// other screen, mouse and focus reports, keypad and paste modes, a hidden
// cursor, colours.
const calmScreen = "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?25h\x1b[0m"

// maxHeld bounds a control sequence; real ones are shorter.
const maxHeld = 256

func (s *screen) filter(in []byte) []byte {
	out := make([]byte, 0, len(in)+len(s.held))
	for _, b := range in {
		switch s.state {
		case 0:
			out = s.text(out, b)
		case 'u': // U+0080 to U+009F are the same controls in eight bits
			s.state = 0
			if b < 0x80 || b > 0x9f {
				out = append(out, 0xc2)
				out = s.text(out, b)
			}
		case 'e':
			out = s.escape(out, b)
		case 'c':
			out = s.csi(out, b)
		case 's', 'x':
			s.str(b)
		}
	}
	return out
}

func (s *screen) text(out []byte, b byte) []byte {
	switch b {
	case 0x1b:
		s.state, s.held = 'e', append(s.held[:0], b)
	case 0xc2:
		s.state = 'u'
	case 0x05: // ENQ asks the terminal who it is
	default:
		return append(out, b)
	}
	return out
}

func (s *screen) escape(out []byte, b byte) []byte {
	switch {
	case b == 0x1b:
		return out
	case b < 0x20:
		return s.inside(out, b)
	case b >= 0x7f: // not a sequence after all
		s.state = 0
		return s.text(out, b)
	case b == '[':
		s.state, s.held = 'c', append(s.held, b)
		return out
	case b == ']' || b == 'P' || b == 'X' || b == '^' || b == '_':
		s.state = 's'
		return out
	case b == 'Z': // DECID asks the terminal who it is
		s.state = 0
		return out
	case b >= 0x20 && b <= 0x2f: // intermediate: more follows
		if s.held = append(s.held, b); len(s.held) > maxHeld {
			s.state = 0
		}
		return out
	}
	s.state = 0
	return append(append(out, s.held...), b)
}

func (s *screen) csi(out []byte, b byte) []byte {
	switch {
	case b == 0x1b:
		s.state, s.held = 'e', append(s.held[:0], b)
		return out
	case b < 0x20:
		return s.inside(out, b)
	case b >= 0x7f:
		s.state = 0
		return s.text(out, b)
	case b < 0x40:
		if s.held = append(s.held, b); len(s.held) > maxHeld {
			s.state = 0
		}
		return out
	}
	s.state = 0
	if asks(s.held, b) {
		return out
	}
	return append(append(out, s.held...), b)
}

// inside takes a control in the middle of a sequence: it acts at once, and CAN
// and SUB end the sequence.
func (s *screen) inside(out []byte, b byte) []byte {
	switch b {
	case 0x05:
		return out
	case 0x18, 0x1a:
		s.state = 0
		return out
	}
	return append(out, b)
}

// asks says whether a control sequence makes the terminal answer, or moves its
// window.
func asks(held []byte, final byte) bool {
	last := held[len(held)-1]
	switch final {
	case 'c', 'n', 't', 'x', 'y':
		return true
	case 'p', 'w', 'u':
		return last == '$' || last == '*' || last == '&' || (final == 'u' && len(held) > 2 && held[2] == '?')
	case 'q':
		return len(held) > 2 && held[2] == '>'
	}
	return false
}

func (s *screen) str(b byte) {
	switch {
	case b == 0x07 || b == 0x18 || b == 0x1a || (s.state == 'x' && b == '\\'):
		s.state = 0
	case b == 0x1b:
		s.state = 'x'
	default:
		s.state = 's'
	}
}
