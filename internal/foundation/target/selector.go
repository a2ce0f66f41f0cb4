package target

import (
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Selector chooses hosts. One grammar serves commands, filter boxes and the
// headers of fixes:
//
//	selector = [ group { space group } ]     every group must match; empty: every host
//	group    = term { "," term }             one of its terms must match
//	term     = [ "!" ] [ key ":" ] pattern   a pattern may hold "*"
//	key      = "env" | "scope" | "service" | "label" | "host" | "id" | "trial"
//
// A pattern without a key is a host's name or id. So a comma binds tighter than
// a space: "env:dev web-1,web-2" is web-1 or web-2, in dev. A bare word after a
// term with a key in one group ("env:dev,staging") could be read in two ways
// and is refused.
//
// The zero Selector matches every host.
type Selector struct{ groups [][]term }

type term struct {
	not     bool
	key     string // "" is a name or an id
	pattern string
}

// The bounds of a selector: what a stranger's text can make us compute.
const (
	maxSelector = 2048
	maxTerms    = 128
	maxStars    = 8
)

// keys maps what may be written to the one name that String prints.
var keys = map[string]string{
	"env": "env", "environment": "env", "scope": "scope", "service": "service",
	"label": "label", "host": "host", "name": "host", "id": "id", "trial": "trial",
}

// ParseSelector reads a selector. Letters are compared without their case.
func ParseSelector(text string) (Selector, error) {
	if len(text) > maxSelector {
		return Selector{}, fault.New(fault.Invalid, "cannot read selector: it has %d characters, at most %d are read", len(text), maxSelector)
	}
	var s Selector
	var group []term
	count := 0
	joined := false // the last word ended in a comma: the next belongs to its group
	for _, word := range strings.Fields(strings.ReplaceAll(strings.ToLower(text), ",", " , ")) {
		if word == "," {
			if len(group) == 0 || joined {
				return Selector{}, badSelector(text, "a comma needs a term on either side")
			}
			joined = true
			continue
		}
		t, err := parseTerm(text, word)
		if err != nil {
			return Selector{}, err
		}
		if count++; count > maxTerms {
			return Selector{}, badSelector(text, "it has more than 128 terms")
		}
		switch {
		case joined && t.key == "" && group[len(group)-1].key != "":
			last := group[len(group)-1]
			return Selector{}, badSelector(text, "after "+last.String()+", the word "+word+" could be another "+last.key+" or a host").
				WithHint("write %s,%s:%s for the one, %s,host:%s for the other", last, last.key, word, last, word)
		case joined:
			group = append(group, t)
		default:
			if group != nil {
				s.groups = append(s.groups, group)
			}
			group = []term{t}
		}
		joined = false
	}
	if joined {
		return Selector{}, badSelector(text, "a comma needs a term on either side")
	}
	if group != nil {
		s.groups = append(s.groups, group)
	}
	return s, nil
}

func badSelector(text, why string) *fault.Error {
	return fault.New(fault.Invalid, "cannot read selector %.80q: %s", text, why).
		WithHint("use web-1, web-*, env:production service:pay (space: and, comma: or, !: not)")
}

func parseTerm(text, word string) (term, error) {
	var t term
	rest := word
	if strings.HasPrefix(rest, "!") {
		t.not, rest = true, rest[1:]
	}
	if key, pattern, found := strings.Cut(rest, ":"); found {
		name, known := keys[key]
		if !known {
			return term{}, badSelector(text, "there is no key "+key)
		}
		t.key, rest = name, pattern
	}
	t.pattern = rest
	if rest == "" {
		return term{}, badSelector(text, word+" names nothing")
	}
	if strings.Count(rest, "*") > maxStars {
		return term{}, badSelector(text, word+" has more than 8 stars")
	}
	for _, r := range rest {
		if !nameRune(r) && r != '*' {
			return term{}, badSelector(text, "it holds "+string(r)+", which no name can hold")
		}
	}
	return t, t.checkValue(text)
}

// checkValue refuses a value that no host can have, where the values are known:
// a misspelt environment must not silently choose nothing, or everything.
func (t term) checkValue(text string) error {
	var known []string
	switch t.key {
	case "env":
		known = Environments
	case "scope":
		known = Scopes
	case "trial":
		known = []string{"true", "false"}
	default:
		return nil
	}
	for _, value := range known {
		if glob(t.pattern, value) {
			return nil
		}
	}
	return badSelector(text, t.key+" is one of "+strings.Join(known, ", "))
}

// String writes the selector in its shortest canonical form.
func (s Selector) String() string {
	groups := make([]string, len(s.groups))
	for i, group := range s.groups {
		terms := make([]string, len(group))
		for j, t := range group {
			terms[j] = t.String()
		}
		groups[i] = strings.Join(terms, ",")
	}
	return strings.Join(groups, " ")
}

func (t term) String() string {
	text := t.pattern
	if t.key != "" {
		text = t.key + ":" + text
	}
	if t.not {
		text = "!" + text
	}
	return text
}

// Match says whether the selector chooses the host.
func (s Selector) Match(h Host) bool {
	for _, group := range s.groups {
		matched := false
		for _, t := range group {
			if t.match(h) != t.not {
				matched = true
				break
			}
		}
		if !matched {
			return false
		}
	}
	return true
}

func (t term) match(h Host) bool {
	switch t.key {
	case "env":
		return glob(t.pattern, h.Environment)
	case "scope":
		return glob(t.pattern, h.Scope)
	case "service":
		return globAny(t.pattern, h.Services)
	case "label":
		return globAny(t.pattern, h.Labels)
	case "host":
		return glob(t.pattern, h.Name)
	case "id":
		return glob(t.pattern, h.ID)
	case "trial":
		return (t.pattern == "true") == h.Trial
	}
	return glob(t.pattern, h.Name) || t.pattern == h.ID
}

func globAny(pattern string, texts []string) bool {
	for _, text := range texts {
		if glob(pattern, strings.ToLower(text)) {
			return true
		}
	}
	return false
}

// glob matches a pattern whose "*" stands for any characters. It backs up to
// the last star only, so its cost is bounded by the product of the lengths.
func glob(pattern, text string) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
