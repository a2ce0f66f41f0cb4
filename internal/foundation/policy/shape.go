package policy

import "fmt"

// The parsers and the validator behind this package take a time that grows with
// the square of some depths. Everybody who is logged in may have a set tested,
// so a file is measured before it is parsed.
const (
	maxFile  = 64 << 10
	maxDepth = 40 // of brackets
	maxChain = 40 // of dots: a.b.c
)

// shape says what of a file is too deep to be read. comment begins a comment
// that runs to the end of its line.
func shape(text, comment string) error {
	if len(text) > maxFile {
		return fmt.Errorf("the file has %d bytes, at most %d", len(text), maxFile)
	}
	depth, chain, line := 0, 0, 1
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			line++
		case c == '"':
			i, line = skipString(text, i, line)
			continue // a["b"]["c"] is a chain of brackets, which depth does not count: dots are
		case i+len(comment) <= len(text) && text[i:i+len(comment)] == comment:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case c == '(' || c == '[' || c == '{':
			depth++
		case c == ')' || c == ']' || c == '}':
			depth = max(depth-1, 0)
		case c == '.':
			chain++
		case c == '_' || c == ' ' || c == '\t' || c == '\r' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80:
			// part of a name, or of the room around a dot
		default:
			chain = 0
		}
		if depth > maxDepth || chain > maxChain {
			return fmt.Errorf("line %d is nested too deep: at most %d", line, maxDepth)
		}
	}
	return nil
}

// skipString returns the index of the quote that ends the string at i.
func skipString(text string, i, line int) (int, int) {
	for i++; i < len(text) && text[i] != '"'; i++ {
		switch text[i] {
		case '\\':
			i++
		case '\n':
			line++
		}
	}
	return i, line
}
