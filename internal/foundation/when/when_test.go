package when

import (
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
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

func TestALengthOfTimeHasOneFormInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 45 * time.Second: "45 s", 59600 * time.Millisecond: "1 min", 90 * time.Second: "1 min 30 s",
		10*time.Minute + 20*time.Second: "10 min", 30 * time.Minute: "30 min", 59*time.Minute + 40*time.Second: "1 h", 90 * time.Minute: "1 h 30 min",
		720 * time.Minute: "12 h", 23*time.Hour + 59*time.Minute + 59*time.Second: "1 d", 36 * time.Hour: "1 d 12 h", 72 * time.Hour: "3 d",
	} {
		if got := Words(d); got != want {
			t.Errorf("Words(%v) = %q, want %q", d, got, want)
		}
	}
}

// Whatever is typed: it is refused with a hint, or it is a moment that can be
// echoed and read back, on the side of now that its sign says.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"now", "yesterday 14:05", "last tuesday 8:15", "-30m", "+2w", "14:05:59", "2026-03-01", "2026-03-01 24:00",
		"2026-03-01T14:05:00.5+14:00", "0001-01-01", "9999-12-31 23:59:59", "today -1h", "\u00a0now", "-9999999d"} {
		f.Add(text)
	}
	now := time.Date(2026, 3, 29, 1, 30, 0, 0, time.FixedZone("CET", 3600))
	f.Fuzz(func(t *testing.T, text string) {
		at, err := Parse(text, now)
		if err != nil {
			if f := fault.From(err); f.Kind != fault.Invalid || f.Hint == "" || !at.IsZero() || len(f.Text) > 700 {
				t.Fatalf("Parse(%q) refuses with %q, hint %q, kind %v and the moment %v", text, f.Text, f.Hint, f.Kind, at)
			}
			return
		}
		word := strings.ToLower(strings.TrimSpace(text))
		if at.IsZero() && !strings.HasPrefix(word, "0001-01-01") && !strings.HasPrefix(word, "0000-12-31") {
			t.Fatalf("Parse(%q) is no moment at all", text)
		}
		if back, err := Parse(at.Format(time.RFC3339Nano), now); at.Year() >= 0 && at.Year() <= 9999 && (err != nil || !back.Equal(at)) {
			t.Fatalf("Parse(%q) = %v, which is read back as %v, %v", text, at, back, err)
		}
		if again, err := Parse(" "+text+"\t", now); len(text) <= 60 && (err != nil || !again.Equal(at)) {
			t.Fatalf("Parse(%q) = %v, and with room around it %v, %v", text, at, again, err)
		}
		switch sign := word[0]; sign {
		case '-', '+':
			d, err := Duration(word[1:])
			if sign == '-' {
				d = -d
			}
			if err != nil || !at.Equal(now.Add(d)) {
				t.Fatalf("Parse(%q) = %v, which is not %v from now (%v)", text, at, d, err)
			}
		case 'l', 'y': // last …, yesterday: before today, and a week at most
			if today := midnight(now); !at.Before(today) || at.Before(today.AddDate(0, 0, -7)) {
				t.Fatalf("Parse(%q) = %v", text, at)
			}
		case 't':
			if !midnight(at).Equal(midnight(now)) {
				t.Fatalf("Parse(%q) = %v", text, at)
			}
		}
	})
}
