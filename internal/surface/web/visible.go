package web

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// visible shows what is made not to be seen. Whoever writes a reason, a name or
// a command could turn text around (U+202E), hide letters in it (U+200B, tags)
// or pile marks over the line above: an approver must see exactly what is
// granted. So each such rune becomes its number, as in ⟨U+202E⟩. It works on
// whole pages, since what is not there to be forgotten cannot be forgotten; in
// attributes it holds as well, so that a button copies what it shows.
func visible(page []byte) []byte {
	if at := bytes.IndexFunc(page, func(r rune) bool { return unseen(r) || unicode.Is(unicode.Mn, r) }); at < 0 {
		return page
	}
	out := make([]byte, 0, len(page)+64)
	marks := 0 // in a row
	for len(page) > 0 {
		r, n := utf8.DecodeRune(page)
		if unicode.Is(unicode.Mn, r) {
			marks++
		} else {
			marks = 0
		}
		if unseen(r) || marks > mostMarks {
			out = fmt.Appendf(out, "⟨U+%04X⟩", r)
		} else {
			out = append(out, page[:n]...)
		}
		page = page[n:]
	}
	return out
}

// mostMarks is how many combining marks a letter may bear: Vietnamese needs
// two, pointed Hebrew three.
const mostMarks = 4

// unseen says whether a rune shows nothing by itself, or changes how others are
// shown: controls, formats (bidi, zero width, tags), separators of lines,
// variation selectors, and letters that are blank.
func unseen(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f
	}
	switch r {
	case 0x034f, 0x115f, 0x1160, 0x17b4, 0x17b5, 0x2800, 0x3164, 0xffa0:
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Variation_Selector)
}
