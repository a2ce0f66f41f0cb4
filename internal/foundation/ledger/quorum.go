package ledger

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
)

// WitnessPolicy says which witnesses there are, and how many of which must have
// cosigned a checkpoint. As text it is a C2SP tlog-policy file:
//
//	log <vkey> [<url>]
//	witness <name> <vkey> [<url>]
//	group <name> all|any|<k> <name>...
//	quorum <name>|none
type WitnessPolicy struct {
	Logs      []PolicyLog
	Witnesses []PolicyWitness
	groups    []policyGroup
	quorum    string
	text      string
}

// PolicyLog is a log that checkpoints may be of.
type PolicyLog struct {
	Key note.Verifier // its name is the origin
	Text,
	URL string
}

// PolicyWitness is a witness under the name that the policy gives it.
type PolicyWitness struct {
	Name string
	Key  WitnessKey
	URL  string // where it takes submissions; may be empty
}

type policyGroup struct {
	name    string
	need    int
	members []string
}

// Bounds of a policy.
const (
	MaxWitnessPolicy = 32 << 10
	maxPolicyItems   = 64
	quorumNone       = "none"
)

// ParseWitnessPolicy reads a tlog-policy file.
func ParseWitnessPolicy(text []byte) (WitnessPolicy, error) {
	var p WitnessPolicy
	if len(text) > MaxWitnessPolicy {
		return p, fault.New(fault.Invalid, "cannot read the witness policy: it is larger than %d bytes", MaxWitnessPolicy)
	}
	for _, c := range text {
		if c < 0x20 && c != '\t' && c != '\n' || c == 0x7f {
			return p, fault.New(fault.Invalid, "cannot read the witness policy: it holds a control character")
		}
	}
	used := map[string]bool{}
	for n, line := range strings.Split(string(text), "\n") {
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := p.line(words, used); err != nil {
			return WitnessPolicy{}, fault.Wrap(fault.Invalid, err, "cannot read line %d of the witness policy", n+1)
		}
	}
	if p.quorum == "" {
		return WitnessPolicy{}, fault.New(fault.Invalid, "cannot read the witness policy: it has no quorum line")
	}
	p.text = string(text)
	return p, nil
}

func (p *WitnessPolicy) line(words []string, used map[string]bool) error {
	bad := func(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }
	if len(p.Logs)+len(p.Witnesses)+len(p.groups) >= 3*maxPolicyItems {
		return bad("there are too many lines")
	}
	switch kind, rest := words[0], words[1:]; {
	case kind == "log" && (len(rest) == 1 || len(rest) == 2):
		return p.log(rest)
	case kind == "witness" && (len(rest) == 2 || len(rest) == 3):
		return p.witness(rest)
	case kind == "group" && len(rest) >= 3:
		return p.group(rest, used)
	case kind == "quorum" && len(rest) == 1:
		if p.quorum != "" {
			return bad("there are two quorum lines")
		}
		if rest[0] != quorumNone && !p.defined(rest[0]) {
			return bad("%.100q is defined on no line before", rest[0])
		}
		p.quorum = rest[0]
		return nil
	}
	return bad("%.100q with %d words is no line of a policy", words[0], len(words)-1)
}

func (p *WitnessPolicy) log(rest []string) error {
	key, err := note.NewVerifier(rest[0])
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read the log key %.100q", rest[0])
	}
	for _, l := range p.Logs {
		if vkeyMaterial(l.Text) == vkeyMaterial(rest[0]) {
			return fault.New(fault.Invalid, "log key %.100q is there twice", rest[0])
		}
	}
	p.Logs = append(p.Logs, PolicyLog{Key: key, Text: rest[0], URL: strings.Join(rest[1:], "")})
	return nil
}

func vkeyMaterial(vkey string) string { return vkey[strings.LastIndexByte(vkey, '+')+1:] }

func (p *WitnessPolicy) witness(rest []string) error {
	if err := p.free(rest[0]); err != nil {
		return err
	}
	w := PolicyWitness{Name: rest[0], URL: strings.Join(rest[2:], "")}
	var err error
	if w.Key, err = ParseWitnessKey(rest[1]); err != nil {
		return err
	}
	if u, err := url.Parse(w.URL); w.URL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
		return fault.New(fault.Invalid, "%.200q is no http or https address", w.URL)
	}
	for _, o := range p.Witnesses {
		if o.Key.Same(w.Key) {
			return fault.New(fault.Invalid, "witnesses %s and %s are one key", o.Name, w.Name)
		}
	}
	p.Witnesses = append(p.Witnesses, w)
	return nil
}

func (p *WitnessPolicy) group(rest []string, used map[string]bool) error {
	g := policyGroup{name: rest[0], members: rest[2:]}
	if err := p.free(g.name); err != nil {
		return err
	}
	switch n, err := strconv.Atoi(rest[1]); {
	case rest[1] == "any":
		g.need = 1
	case rest[1] == "all":
		g.need = len(g.members)
	case err != nil || strconv.Itoa(n) != rest[1] || n < 1 || n > len(g.members):
		return fault.New(fault.Invalid, "group %.100q wants %.20q of %d", g.name, rest[1], len(g.members))
	default:
		g.need = n
	}
	for _, m := range g.members {
		if !p.defined(m) || used[m] {
			return fault.New(fault.Invalid, "member %.100q of group %.100q is not defined before, or a member already", m, g.name)
		}
		used[m] = true
	}
	p.groups = append(p.groups, g)
	return nil
}

func (p *WitnessPolicy) free(name string) error {
	if name == quorumNone || p.defined(name) || len(name) > MaxWord {
		return fault.New(fault.Invalid, "the name %.100q is taken", name)
	}
	return nil
}

func (p *WitnessPolicy) defined(name string) bool {
	return slices.ContainsFunc(p.Witnesses, func(w PolicyWitness) bool { return w.Name == name }) ||
		slices.ContainsFunc(p.groups, func(g policyGroup) bool { return g.name == name })
}

// Text is the policy as it was read.
func (p WitnessPolicy) Text() string { return p.text }

// Keys are those of all witnesses.
func (p WitnessPolicy) Keys() (keys []WitnessKey) {
	for _, w := range p.Witnesses {
		keys = append(keys, w.Key)
	}
	return keys
}

// Wants says whether any cosignature is needed at all.
func (p WitnessPolicy) Wants() bool { return p.quorum != "" && p.quorum != quorumNone }

// Met says whether those witnesses are enough, by the names that the policy
// gives them.
func (p WitnessPolicy) Met(have func(name string) bool) bool {
	if !p.Wants() {
		return true
	}
	met := map[string]bool{}
	for _, w := range p.Witnesses {
		met[w.Name] = have(w.Name)
	}
	for _, g := range p.groups { // members are defined before their group
		count := 0
		for _, m := range g.members {
			if met[m] {
				count++
			}
		}
		met[g.name] = count >= g.need
	}
	return met[p.quorum]
}

// Check says whether enough witnesses cosigned the note at since (seconds since
// 1970) or later, and who did, by their names in the policy.
func (p WitnessPolicy) Check(signed []byte, since int64) (who []string, met bool) {
	by := Cosignatures(signed, p.Keys()...)
	for _, w := range p.Witnesses {
		for _, c := range by {
			if c.Key.Same(w.Key) && c.Time >= since {
				who = append(who, w.Name)
			}
		}
	}
	return who, p.Met(func(name string) bool { return slices.Contains(who, name) })
}

// SimplePolicy is the text of a policy of which need of all witnesses must
// cosign; 0 is none.
func SimplePolicy(logs []PolicyLog, witnesses []PolicyWitness, need int) string {
	var b strings.Builder
	for _, l := range logs {
		b.WriteString(strings.TrimRight("log "+l.Text+" "+l.URL, " ") + "\n")
	}
	group := ""
	for _, w := range witnesses {
		b.WriteString(strings.TrimRight("witness "+w.Name+" "+w.Key.String()+" "+w.URL, " ") + "\n")
		group += " " + w.Name
	}
	if need <= 0 || len(witnesses) == 0 {
		return b.String() + "quorum none\n"
	}
	return b.String() + "group witnesses " + strconv.Itoa(need) + group + "\nquorum witnesses\n"
}

// Need is the number of SimplePolicy; -1 for a policy of another shape.
func (p WitnessPolicy) Need() int {
	switch {
	case !p.Wants():
		return 0
	case len(p.groups) == 1 && p.quorum == p.groups[0].name && len(p.groups[0].members) == len(p.Witnesses):
		return p.groups[0].need
	}
	return -1
}
