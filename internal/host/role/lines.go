package role

import (
	"bytes"

	"handrail.dev/handrail/internal/foundation/wire"
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
// command the terminal of whoever watches it.
func printable(line []byte) []byte {
	const escaped = 4 // bytes that one byte may become
	return append([]byte(wire.Plain(string(line), escaped*maxLine)), '\n')
}
