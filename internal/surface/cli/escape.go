package cli

// escapes finds the escape sequences in what a person types. They count only
// at the start of a line, as in ssh.
//
//	start ──~──▶ tilde ──.──▶ leave
//	  ▲            │ ?  help     ~  one ~     else  ~ and the key
//	  └── CR, LF ──┴── any other key: inside the line
type escapes struct {
	word   func(string)
	inside bool // of a line
	tilde  bool
}

const escapeHelp = "~. leave this session\n~? this list\n~~ send one ~\nThey count at the start of a line."

// filter returns what goes on to the session, and whether the person leaves.
func (e *escapes) filter(typed []byte) (pass []byte, leave bool) {
	pass = make([]byte, 0, len(typed)+1)
	for _, b := range typed {
		if e.tilde {
			e.tilde = false
			switch b {
			case '.':
				return pass, true
			case '?':
				e.word(escapeHelp)
				continue
			case '~':
			default:
				pass = append(pass, '~')
			}
		} else if b == '~' && !e.inside {
			e.tilde = true
			continue
		}
		pass = append(pass, b)
		e.inside = b != '\r' && b != '\n'
	}
	return pass, false
}
