package web

import (
	"strings"
	"testing"
)

func TestTheWordsOfASearchAreMarked(t *testing.T) {
	long := strings.Repeat("a ", 400)
	for _, c := range []struct{ line, words, want string }{
		{"cannot read: Permission denied", "permission  DENIED", "cannot read: [Permission denied]"},
		{"abab ab", "ab", "[ab][ab] [ab]"},
		{"ÄRGER, İstanbul", "ärger", "[ÄRGER], İstanbul"},
		{"nothing of it", "else", "nothing of it"},
		{"no words", "", "no words"},
		{"<b>", "<b>", "[<b>]"},
		{long + "needle" + long, "needle", "…" + long[len(long)-60:] + "[needle]" + long[:240-66] + "…"},
	} {
		var got strings.Builder
		for _, p := range marked(c.line, c.words) {
			if p.Hit {
				got.WriteString("[" + p.Text + "]")
			} else {
				got.WriteString(p.Text)
			}
		}
		if got.String() != c.want {
			t.Errorf("%q in %.40q: %q, want %q", c.words, c.line, got.String(), c.want)
		}
	}
}

func TestACommandSaysTheSearchWhateverIsInIt(t *testing.T) {
	for _, c := range []struct {
		x    searchView
		want string
	}{
		{searchView{}, `handrail sessions search "disk full"`},
		{searchView{Words: "deploy", Person: "bob", Since: "7d"}, "handrail sessions search --person bob --since 7d deploy"},
		{searchView{Words: "it's $(here)"}, `handrail sessions search 'it'\''s $(here)'`},
		{searchView{Words: "-rf /"}, "handrail sessions search -- '-rf /'"},
	} {
		if got := c.x.line(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
