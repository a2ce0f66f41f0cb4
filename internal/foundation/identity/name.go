package identity

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A name goes into prompts, certificates, passwd lines and shell commands, so
// it can hold nothing that any of them would understand.
var (
	nameShape = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9._-]{0,31}$`) })
	idShape   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z]-[0-9a-z]{8}$`) })
)

// reserved names would be taken for something else in a log or a terminal.
var reserved = []string{
	"root", "system", "handrail", "anonymous", "nobody", "everyone", "everybody", "all", "any", "none",
	"daemon", "bin", "sys", "sync", "sshd", "node", "server", "gateway", "link", "warden", "keeper", "self", "me", "you", "unknown",
}

const (
	maxGroups = 64
	maxReason = 500
	maxLabel  = 64
)

// CheckName says what is wrong with the name of a person or robot.
func CheckName(name string) error {
	switch {
	case !nameShape().MatchString(name):
		return fault.New(fault.Invalid, "cannot use %.40q as a name: a name is 1 to 32 of a-z 0-9 . _ - and begins with a letter", name)
	case idShape().MatchString(name):
		return fault.New(fault.Invalid, "cannot use %q as a name: it looks like an id", name)
	case slices.Contains(reserved, name):
		return fault.New(fault.Invalid, "cannot use %q as a name: it is reserved", name)
	}
	return nil
}

// Groups is a sorted list of group names, kept as a JSON array in its row.
type Groups []string

// CheckGroups returns the groups sorted and each once, or says what is wrong.
func CheckGroups(groups []string) (Groups, error) {
	if len(groups) > maxGroups {
		return nil, fault.New(fault.Invalid, "cannot use %d groups: at most %d", len(groups), maxGroups)
	}
	out := slices.Clone(groups)
	for _, g := range out {
		if !nameShape().MatchString(g) {
			return nil, fault.New(fault.Invalid, "cannot use %.40q as a group: a group is 1 to 32 of a-z 0-9 . _ - and begins with a letter", g)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Text is the row's form.
func (g Groups) Text() string {
	if len(g) == 0 {
		return "[]"
	}
	b, _ := json.Marshal([]string(g)) // strings always marshal
	return string(b)
}

// Scan reads the row's form.
func (g *Groups) Scan(from any) error {
	var text []byte
	switch v := from.(type) {
	case nil:
		*g = nil
		return nil
	case string:
		text = []byte(v)
	case []byte:
		text = v
	default:
		return fmt.Errorf("cannot read groups from %T", from)
	}
	*g = nil
	return json.Unmarshal(text, (*[]string)(g))
}

// label makes free text that people give (device names, reasons) safe to show:
// no control or format characters, bounded, on one line.
func label(text string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0xfffd:
			return ' '
		case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff, r >= 0xe0000:
			return -1
		}
		return r
	}, text)
	clean = strings.Join(strings.Fields(clean), " ")
	if r := []rune(clean); len(r) > limit {
		clean = string(r[:limit])
	}
	return clean
}
