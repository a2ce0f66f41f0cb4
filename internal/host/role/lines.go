package role

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// maxLine bounds a line; a longer one becomes several.
const maxLine = 4096

// lines is an io.Writer that hands on whole lines.
type lines struct {
	line func([]byte)
	held []byte
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		part := p
		if end >= 0 {
			part = p[:end]
		}
		if room := maxLine - len(l.held); len(part) > room {
			part, end = part[:room], -1
		}
		l.held = append(l.held, part...)
		p = p[len(part):]
		if end >= 0 {
			p = p[1:]
		}
		if end >= 0 || len(l.held) == maxLine {
			l.line(l.held)
			l.held = l.held[:0]
		}
	}
	return n, nil
}

// flush hands on what came without an end.
func (l *lines) flush() {
	if len(l.held) > 0 {
		l.line(l.held)
		l.held = nil
	}
}

// printable is a line as it may be shown: a role that was taken over must not
// command the terminal of whoever watches it, nor turn its text around.
func printable(line []byte) []byte {
	out := make([]byte, 0, len(line)+1)
	for len(line) > 0 {
		r, size := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && size == 1:
			out = fmt.Appendf(out, `\x%02x`, line[0])
		case r == '\t' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		default:
			quoted := strconv.QuoteRune(r)
			out = append(out, quoted[1:len(quoted)-1]...)
		}
		line = line[size:]
	}
	return append(out, '\n')
}
