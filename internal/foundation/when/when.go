// Package when is the one time grammar of handrail: what a person may type
// where a command, a page or a header wants a moment or a length of time.
//
// A moment is RFC 3339 ("2026-03-01T14:05:00Z"), a date ("2026-03-01"), a
// clock time of today ("14:05"), an offset ("-30m", "+2h", "now"), or a day
// word with an optional clock time ("yesterday 14:05", "last tuesday"). Clock
// times and days are in the location of the reference moment, since that is
// what a person means; callers echo the result in full before an effect.
package when

import (
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Parse resolves a moment against now.
func Parse(text string, now time.Time) (time.Time, error) {
	words := strings.Fields(strings.ToLower(strings.TrimSpace(text)))
	if len(words) == 0 || len(words) > 3 || len(text) > 64 {
		return time.Time{}, bad(text)
	}
	if len(words) == 1 {
		if at, ok := single(strings.TrimSpace(text), words[0], now); ok {
			return at, nil
		}
	}
	day, rest, ok := dayWord(words, now)
	if !ok {
		return time.Time{}, bad(text)
	}
	switch len(rest) {
	case 0:
		return day, nil
	case 1:
		if at, ok := clock(rest[0], day); ok {
			return at, nil
		}
	}
	return time.Time{}, bad(text)
}

func bad(text string) error {
	if len(text) > 64 {
		text = text[:64] + "…"
	}
	return fault.New(fault.Invalid, "cannot read time %q", text).
		WithHint(`use 2026-03-01T14:05:00Z, 14:05, -30m, "yesterday 14:05" or "last tuesday"`)
}

// single reads a moment of one word: now, an offset, a clock time, a date or
// RFC 3339.
func single(raw, word string, now time.Time) (time.Time, bool) {
	if word == "now" {
		return now, true
	}
	if word[0] == '-' || word[0] == '+' {
		d, err := Duration(word[1:])
		if err != nil {
			return time.Time{}, false
		}
		if word[0] == '-' {
			d = -d
		}
		return now.Add(d), true
	}
	if at, ok := clock(word, midnight(now)); ok {
		return at, true
	}
	if at, err := time.Parse(time.RFC3339Nano, raw); err == nil {
		return at, true
	}
	if at, err := time.ParseInLocation(time.DateOnly, raw, now.Location()); err == nil {
		return at, true
	}
	return time.Time{}, false
}

// dayWord reads "today", "yesterday", "last tuesday" or a date, and returns
// midnight of that day and the words that follow it.
func dayWord(words []string, now time.Time) (time.Time, []string, bool) {
	today := midnight(now)
	switch words[0] {
	case "today":
		return today, words[1:], true
	case "yesterday":
		return today.AddDate(0, 0, -1), words[1:], true
	case "last":
		if len(words) < 2 {
			return time.Time{}, nil, false
		}
		for d := time.Sunday; d <= time.Saturday; d++ {
			if strings.ToLower(d.String()) == words[1] {
				back := (int(today.Weekday()) - int(d) + 7) % 7
				if back == 0 {
					back = 7 // "last tuesday" on a Tuesday is a week ago
				}
				return today.AddDate(0, 0, -back), words[2:], true
			}
		}
		return time.Time{}, nil, false
	}
	at, err := time.ParseInLocation(time.DateOnly, words[0], now.Location())
	return at, words[1:], err == nil
}

func clock(word string, day time.Time) (time.Time, bool) {
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.Parse(layout, word); err == nil {
			return time.Date(day.Year(), day.Month(), day.Day(), t.Hour(), t.Minute(), t.Second(), 0, day.Location()), true
		}
	}
	return time.Time{}, false
}

func midnight(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location())
}

// maxDuration bounds a length of time: ten years.
const maxDuration = 10 * 366 * 24 * time.Hour

// Duration reads a length of time: Go's "1h30m" or whole days and weeks ("7d",
// "2w"). It is never negative and at most ten years.
func Duration(text string) (time.Duration, error) {
	text = strings.TrimSpace(strings.ToLower(text))
	invalid := fault.New(fault.Invalid, "cannot read duration %.40q", text).WithHint("use 30m, 2h, 1h30m, 7d or 2w")
	if n := len(text); n > 1 && (text[n-1] == 'd' || text[n-1] == 'w') {
		count, err := strconv.ParseUint(text[:n-1], 10, 16)
		unit := 24 * time.Hour
		if text[n-1] == 'w' {
			unit *= 7
		}
		if err != nil || time.Duration(count)*unit > maxDuration {
			return 0, invalid
		}
		return time.Duration(count) * unit, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxDuration {
		return 0, invalid
	}
	return d, nil
}

// Words is a length of time as sentences say it: "45 s", "30 min", "1 h 30 min",
// "12 h", "3 d". It is rounded to what somebody would say, in at most two units.
func Words(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	two := func(large time.Duration, largeUnit string, small time.Duration, smallUnit string) string {
		d = d.Round(small)
		text := strconv.FormatInt(int64(d/large), 10) + " " + largeUnit
		if rest := d % large / small; rest != 0 {
			text += " " + strconv.FormatInt(int64(rest), 10) + " " + smallUnit
		}
		return text
	}
	switch r := d.Round(time.Second); {
	case r < time.Minute:
		return strconv.FormatInt(int64(r/time.Second), 10) + " s"
	case r < 10*time.Minute:
		return two(time.Minute, "min", time.Second, "s")
	case d.Round(time.Minute) < time.Hour:
		return two(time.Minute, "min", time.Minute, "")
	case d.Round(time.Minute) < 24*time.Hour:
		return two(time.Hour, "h", time.Minute, "min")
	}
	return two(24*time.Hour, "d", time.Hour, "h")
}
