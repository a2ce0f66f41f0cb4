package web

import (
	"strings"
	"testing"
)

func TestWhatIsMadeNotToBeSeenIsShown(t *testing.T) {
	for in, want := range map[string]string{
		"read\u202eetirw":           "read⟨U+202E⟩etirw",
		"web\u200b-1":               "web⟨U+200B⟩-1",
		"a\x1b]52;c;x\x07b":         "a⟨U+001B⟩]52;c;x⟨U+0007⟩b",
		"ok\U000e0041\U000e0042":    "ok⟨U+E0041⟩⟨U+E0042⟩",
		"\u2066x\u2069\ufeff\u00ad": "⟨U+2066⟩x⟨U+2069⟩⟨U+FEFF⟩⟨U+00AD⟩",
		"\u3164\u115f\u2800\ufe0f":  "⟨U+3164⟩⟨U+115F⟩⟨U+2800⟩⟨U+FE0F⟩",
		"a\u2028b\u0085c\u007f":     "a⟨U+2028⟩b⟨U+0085⟩c⟨U+007F⟩",
	} {
		if got := string(visible([]byte(in))); got != want {
			t.Errorf("visible(%q) is %q, want %q", in, got, want)
		}
	}
	for _, plain := range []string{"line\n\tnext\r\n", "Việt Nam", "e\u0301", "שָׁלוֹם", "日本語 – “quoted” · … ×", "Ångström €5"} {
		if got := string(visible([]byte(plain))); got != plain {
			t.Errorf("visible(%q) is %q", plain, got)
		}
	}
	pile := "x" + strings.Repeat("\u0336", 40)
	if got := string(visible([]byte(pile))); strings.Count(got, "\u0336") > mostMarks {
		t.Errorf("a pile of marks stays: %q", got)
	}
}
