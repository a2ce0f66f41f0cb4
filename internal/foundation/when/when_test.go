package when

import (
	"testing"
	"time"
)

func TestParseReadsWhatPeopleType(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	now := time.Date(2026, 3, 3, 9, 30, 15, 0, zone) // a Tuesday
	for text, want := range map[string]time.Time{
		"now":                  now,
		"-30m":                 now.Add(-30 * time.Minute),
		"+2h":                  now.Add(2 * time.Hour),
		"-2d":                  now.Add(-48 * time.Hour),
		"14:05":                time.Date(2026, 3, 3, 14, 5, 0, 0, zone),
		"yesterday 14:05":      time.Date(2026, 3, 2, 14, 5, 0, 0, zone),
		"yesterday":            time.Date(2026, 3, 2, 0, 0, 0, 0, zone),
		"last tuesday":         time.Date(2026, 2, 24, 0, 0, 0, 0, zone),
		"Last Monday 08:00":    time.Date(2026, 3, 2, 8, 0, 0, 0, zone),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, zone),
		"2026-01-02 03:04:05":  time.Date(2026, 1, 2, 3, 4, 5, 0, zone),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		got, err := Parse(text, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("Parse(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestParseRefusesWhatItCannotRead(t *testing.T) {
	for _, text := range []string{"", " ", "soon", "25:00", "-", "last", "last noday", "yesterday soon", "2026-13-01", "1 2 3 4"} {
		if at, err := Parse(text, time.Now()); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", text, at)
		}
	}
}

func TestDurationIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{"30m": 30 * time.Minute, "7d": 168 * time.Hour, "2w": 336 * time.Hour, "1h30m": 90 * time.Minute, "0s": 0} {
		if got, err := Duration(text); err != nil || got != want {
			t.Errorf("Duration(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-5m", "99999w", "4000d", "1e9h", "5 minutes"} {
		if got, err := Duration(text); err == nil {
			t.Errorf("Duration(%q) = %v, want an error", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("yesterday 14:05")
	f.Add("-30m")
	f.Fuzz(func(t *testing.T, text string) {
		now := time.Unix(1_700_000_000, 0)
		if at, err := Parse(text, now); err == nil && at.IsZero() && text != "0001-01-01" {
			t.Logf("zero time from %q", text)
		}
	})
}
