package wire

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWhatMayBeShownCommandsNoTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"Debian 13":                 "Debian 13",
		"ö 漢 \t|":                   "ö 漢 \t|",
		"\x1b]0;x\x07\r\n\x00":      `\x1b]0;x\a\r\n\x00`,
		"\u202etxt.exe\u200b\u2028": `\u202etxt.exe\u200b\u2028`,
		"\xff\x9b31m":               `\xff\x9b31m`,
		"\u009b31m":                 `\u009b31m`,
		strings.Repeat("x", 99):     strings.Repeat("x", 40) + "…",
		strings.Repeat("\x1b", 99):  strings.Repeat(`\x1b`, 10) + "…",
	} {
		if got := Plain(in, 40); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":"e-00000001","kind":"session-ended","session":"s-00000001","text":"\u001b"}`))
	f.Add([]byte(`{"v":1,"facts":[{"name":"os","value":"\u001b[2J","source":"/etc"}]}`))
	f.Add([]byte(`{"v":1,"id":"b-00000001","killed":3}`))
	plain := func(t *testing.T, words ...string) {
		for _, w := range words {
			if len(w) > 4*maxFact+8 || !utf8.ValidString(w) || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				t.Errorf("%q came through", w)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseEvent(b); err == nil {
			plain(t, e.Kind, e.Rule, e.Text, e.Order, e.Session, e.Person, e.Why, e.Signal, e.BootID, e.Tail)
		}
		if r, _, err := ParseFacts(b); err == nil {
			for _, fact := range r.Facts {
				plain(t, fact.Name, fact.Value, fact.Source)
			}
		}
		a := ParseBrakeAnswer(b, "h-00000001", "b-00000001")
		plain(t, a.Error)
		if a.Node != "h-00000001" || a.ID != "b-00000001" || a.Sessions < 0 || a.Killed < 0 {
			t.Errorf("%+v", a)
		}
	})
}
