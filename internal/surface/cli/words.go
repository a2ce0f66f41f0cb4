package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// at is a time as a table shows it: relative, or in full with --absolute.
func (t *tool) at(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return ""
	}
	when := ts.AsTime()
	if t.absolute {
		return when.Local().Format(time.RFC3339)
	}
	d := when.Sub(t.Now())
	switch {
	case d > -time.Second && d < time.Second:
		return "now"
	case d > 0:
		return "in " + length(d)
	}
	return length(-d) + " ago"
}

// full is a time in words that leave no doubt: relative and absolute.
func (t *tool) full(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return ""
	}
	if t.absolute {
		return t.at(ts)
	}
	return fmt.Sprintf("%s (%s)", ts.AsTime().Local().Format("2006-01-02 15:04:05 MST"), t.at(ts))
}

// length is a length of time in at most two units.
func length(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute && d%time.Minute != 0:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		if m := int(d.Minutes()) % 60; m != 0 {
			return fmt.Sprintf("%dh%02dm", int(d.Hours()), m)
		}
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func lasting(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return length(d.AsDuration())
}

// count is "1 host" or "3 hosts".
func count[N int | int64 | uint32 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	switch {
	case strings.HasSuffix(noun, "y"):
		noun = strings.TrimSuffix(noun, "y") + "ie"
	case strings.HasSuffix(noun, "s"):
		noun += "e"
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// size is a number of bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// orElse is s, or what stands for its absence.
func orElse(s, absent string) string {
	if s == "" {
		return absent
	}
	return s
}

// quoteShell makes one word of a command that a person will copy.
func quoteShell(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// uptime turns a fact in seconds into words; a fact that says it could not be
// read stays what it is.
func uptime(seconds string) string {
	n, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return seconds
	}
	return length(time.Duration(n) * time.Second)
}

// factValue shows a fact in its unit.
func factValue(name, value string) string {
	switch {
	case strings.HasSuffix(name, "_seconds"):
		return uptime(value)
	case strings.HasSuffix(name, "_bytes"):
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			return size(n)
		}
	}
	return value
}
