package app

import (
	"strings"
	"testing"
	"time"
)

func TestRetentionIsReadWithTheConfiguration(t *testing.T) {
	s, err := parseSections([]byte("[retention]\n\"node.reported\" = \"90d\"\n\"inspection.*\" = \"400d\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.hand()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = takeSections(text); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	rules, err := s.Retention.rules(now)
	if err != nil || len(rules) != 2 || rules[1].Action != "node.reported" || rules[1].Before != now.AddDate(0, 0, -90).UnixMicro() {
		t.Errorf("%v, %v", rules, err)
	}
	for text, want := range map[string]string{
		"\"ledger.*\" = \"90d\"":           "checked against",
		"\"recording.chunks\" = \"90d\"":   "checked against",
		"\"node.reported\" = \"1h\"":       "a day is the least",
		"\"node.reported\" = \"tomorrow\"": "cannot keep",
		"\"everything\" = \"90d\"":         "no action",
	} {
		if _, err := parseSections([]byte("[retention]\n" + text + "\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
