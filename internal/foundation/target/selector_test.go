package target

import (
	"strings"
	"testing"
)

var fleet = []Host{
	{ID: "h-00000001", Name: "web-1", Environment: "production", Scope: "none", Services: []string{"pay", "web"}, Labels: []string{"rack-a"}},
	{ID: "h-00000002", Name: "web-2", Environment: "production", Scope: "none", Services: []string{"web"}},
	{ID: "h-00000003", Name: "db-1", Environment: "staging", Scope: "pci", Services: []string{"pay"}},
	{ID: "h-00000004", Name: "lab", Environment: "dev", Scope: "none", Trial: true},
}

func chosen(s Selector) string {
	var names []string
	for _, h := range fleet {
		if s.Match(h) {
			names = append(names, h.Name)
		}
	}
	return strings.Join(names, " ")
}

func TestASelectorChooses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "web-1 web-2 db-1 lab",
		"web-1":                           "web-1",
		"WEB-*":                           "web-1 web-2",
		"*-1":                             "web-1 db-1",
		"env:production service:pay":      "web-1",
		"env:dev,env:staging":             "db-1 lab",
		"env:dev , env:staging":           "db-1 lab",
		"!env:production":                 "db-1 lab",
		"web-1,web-2 !service:pay":        "web-2",
		"!web-*":                          "db-1 lab",
		"h-00000003":                      "db-1",
		"id:h-0000000*":                   "web-1 web-2 db-1 lab",
		"label:rack-a":                    "web-1",
		"scope:pci":                       "db-1",
		"trial:true":                      "lab",
		"environment:prod*":               "web-1 web-2",
		"nobody":                          "",
		"web-1,host:db-1 service:pay,lab": "err",
	} {
		s, err := ParseSelector(text)
		if want == "err" {
			if err == nil {
				t.Errorf("%q is read as %q", text, s)
			}
			continue
		}
		if err != nil || chosen(s) != want {
			t.Errorf("%q chooses %q (%v), want %q", text, chosen(s), err, want)
		}
	}
}

func TestASelectorThatCouldMeanTwoThingsIsRefused(t *testing.T) {
	for _, text := range []string{
		"env:production,staging", "env:prod", "scope:secret", "colour:red", ",", "web-1,", ", web-1", "a,,b",
		"!", "env:", "web 1;rm", "web-1|web-2", "a********b*", strings.Repeat("a ", 200), strings.Repeat("x", 4000), "trial:maybe",
	} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%.40q is read as %.40q", text, s)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, seed := range []string{"web-1", "env:production service:pay", "!a,b c*", "label:x=y", ", ,", "!!x", "id:h-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		again, err := ParseSelector(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q prints as %q, which reads as %q (%v)", text, s, again, err)
		}
		for _, h := range fleet {
			if s.Match(h) != again.Match(h) {
				t.Fatalf("%q and %q disagree on %s", text, s, h.Name)
			}
		}
	})
}
