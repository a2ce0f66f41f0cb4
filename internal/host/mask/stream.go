package mask

import "strings"

// Lines masks a text that comes line by line: a key that is written over
// several lines is one secret.
type Lines struct{ within bool }

// Line returns one line as it may be shown, and how much was taken out.
func (l *Lines) Line(s string) (string, int) {
	if l.within {
		if end := strings.Index(s, "-----END "); end >= 0 {
			l.within = false
			rest := s[end:]
			if _, after, ok := strings.Cut(rest[len("-----END "):], "-----"); ok {
				shown, n := l.Line(after)
				return shown, n
			}
			return "", 0
		}
		return "", 0
	}
	if begin := strings.Index(s, "-----BEGIN "); begin >= 0 && strings.Contains(s[begin:], "PRIVATE KEY") && !strings.Contains(s[begin:], "-----END ") {
		l.within = true
		shown, n := Text(s[:begin])
		return shown + Hidden(Key), n + 1
	}
	return Text(s)
}
