package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"handrail.dev/handrail/internal/foundation/fault"
)

// What a node says of itself is believed by nobody, but people see it and the
// ledger keeps it: so it is bounded, and commands no terminal.
const (
	maxWord      = 128
	maxSentence  = 1024
	maxSentences = 32
	MaxFacts     = 256 // that are kept of a host
	maxFact      = 4096
	maxReport    = 1 << 20
)

// Plain is s as it may be shown: what could command a terminal or turn the
// text around is escaped, and what is longer than most bytes is cut.
func Plain(s string, most int) string {
	if len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !shown(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		part := s[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			part = fmt.Sprintf(`\x%02x`, s[0])
		case !shown(r):
			quoted := strconv.QuoteRune(r)
			part = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(part) > most {
			b.WriteString("…")
			break
		}
		b.WriteString(part)
		s = s[size:]
	}
	return b.String()
}

func shown(r rune) bool { return r == '\t' || unicode.IsPrint(r) }

func plainAll(list []string) []string {
	list = list[:min(len(list), maxSentences)]
	for i, s := range list {
		list[i] = Plain(s, maxSentence)
	}
	return list
}

// Plain is the hello as it may be shown.
func (h Hello) Plain() Hello {
	h.Version, h.Mode, h.Floor, h.Missing = Plain(h.Version, maxWord), Plain(h.Mode, maxWord), Plain(h.Floor, maxWord), plainAll(h.Missing)
	return h
}

// Plain is the answer as it may be shown.
func (a SessionAnswer) Plain() SessionAnswer {
	a.Text, a.Hint, a.Missing = Plain(a.Text, 4*maxSentence), Plain(a.Hint, maxSentence), plainAll(a.Missing)
	a.Floor, a.BootID, a.Account = Plain(a.Floor, maxWord), Plain(a.BootID, maxWord), Plain(a.Account, maxWord)
	return a
}

// ParseFacts reads a report. Facts that are too long are left out, and counted.
func ParseFacts(b []byte) (f Facts, left int, err error) {
	if err := readReport(b, &f, "facts"); err != nil {
		return f, 0, err
	}
	if len(f.Facts) > MaxFacts {
		return f, 0, fault.New(fault.Invalid, "cannot read facts: there are %d", len(f.Facts))
	}
	kept := f.Facts[:0]
	for _, fact := range f.Facts {
		if fact.Name == "" || len(fact.Name) > maxWord || len(fact.Value) > maxFact || len(fact.Source) > maxWord {
			left++
			continue
		}
		kept = append(kept, Fact{Name: Plain(fact.Name, maxWord), Value: Plain(fact.Value, maxFact), Source: Plain(fact.Source, maxWord)})
	}
	f.Facts = kept
	return f, left, nil
}

// ParseEvent reads what happened on a node.
func ParseEvent(b []byte) (e Event, err error) {
	if err := readReport(b, &e, "event"); err != nil {
		return e, err
	}
	if !ValidID('e', e.ID) || e.Session != "" && !ValidID('s', e.Session) || e.Person != "" && !ValidID('p', e.Person) {
		return e, fault.New(fault.Invalid, "cannot read event: bad form")
	}
	for _, word := range []*string{&e.Kind, &e.Rule, &e.Order, &e.Why, &e.Signal, &e.BootID, &e.Tail} {
		*word = Plain(*word, maxWord)
	}
	e.Text = Plain(e.Text, maxSentence)
	return e, nil
}

// ParseBrakeAnswer reads what a brake did on a node. Which one it is the
// server knows better than the answer.
func ParseBrakeAnswer(b []byte, node, id string) BrakeAnswer {
	var a BrakeAnswer
	if err := readReport(b, &a, "answer"); err != nil || a.ID != id && a.Error == "" || a.Sessions < 0 || a.Killed < 0 {
		return BrakeAnswer{V: 1, ID: id, Node: node, Error: "the node answered what no honest one does"}
	}
	a.ID, a.Node, a.Error = id, node, Plain(a.Error, maxSentence)
	return a
}

func readReport(b []byte, v any, what string) error {
	if len(b) > maxReport {
		return fault.New(fault.Invalid, "cannot read %s: %d bytes", what, len(b))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read %s", what)
	}
	return nil
}

// RenewAsk asks for a certificate of the same host for another key
// (up.renew); the key never leaves the host.
type RenewAsk struct {
	V   int    `json:"v"`
	CSR []byte `json:"csr"` // DER
}

// RenewAnswer carries it; Error says why there is none.
type RenewAnswer struct {
	V           int    `json:"v"`
	Certificate []byte `json:"certificate,omitempty"` // DER
	Error       string `json:"error,omitempty"`
}
