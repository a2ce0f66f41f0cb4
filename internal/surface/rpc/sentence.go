package rpc

import (
	"encoding/json"
	"fmt"
	"strings"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Every ledger action says in one sentence what happened: who, what, to whom,
// where, and in whose words. It is read from the payload, which each feature
// keeps readable for ever, with the names that people have today. What is
// erased, or was written by a newer version, is said by its action alone.

// said is one entry on its way to a sentence.
type said struct {
	*handrailv1.Entry
	names    *names
	payload  []byte
	describe func(approval.Approval) string // what a request asks for
	unread   bool                           // the payload is not what its feature writes
}

// Told says whether an action has a sentence of its own.
func Told(action ledger.Action) bool { return tellerOf(string(action)) != nil }

func tellerOf(action string) func(*said) string {
	for _, more := range []map[string]func(*said) string{serverSentences, directorySentences, webhookSentences, agreedSentences} {
		if tell := more[action]; tell != nil {
			return tell
		}
	}
	if tell := voucherSentences[action]; tell != nil {
		return tell
	}
	return sentences[action]
}

func (s *said) sentence() string {
	text := ""
	if tell := tellerOf(s.Action); tell != nil && len(s.payload) > 0 {
		text = tell(s)
	}
	if text == "" || s.unread {
		noun, verb, _ := strings.Cut(s.Action, ".")
		text = fmt.Sprintf("%s: %s %s", s.who(), noun, verb) + s.of() + s.on()
	}
	if s.Outcome != string(ledger.OK) && s.Outcome != "" && s.Action != "act.denied" {
		text += ", " + s.Outcome
	}
	return clip(text)
}

// maxSentence bounds what a person's own words can make of a line.
const maxSentence = 300

func clip(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if cut := []rune(text); len(cut) > maxSentence {
		return string(cut[:maxSentence-1]) + "…"
	}
	return text
}

// read is the payload as the feature that owns it wrote it.
func read[T any](s *said) (p T) {
	if json.Unmarshal(s.payload, &p) != nil {
		s.unread = true
	}
	return p
}

func (s *said) who() string { return s.ActorName }

// whom is the person that it happened to.
func (s *said) whom() string {
	if len(s.Subjects) > 1 {
		return s.names.name(s.Subjects[1])
	}
	return s.who()
}

func (s *said) of() string {
	if len(s.Subjects) > 1 && s.whom() != s.TargetName {
		return " for " + s.whom()
	}
	return ""
}

func (s *said) on() string {
	if s.TargetName != "" && s.TargetName != s.who() {
		return " on " + s.TargetName
	}
	return ""
}

// because adds somebody's own words.
func because(words string) string {
	if words = strings.TrimSpace(words); words == "" {
		return ""
	}
	return ": " + words
}

func from(source string) string {
	if source == "" {
		return ""
	}
	return " from " + source
}

// own is "ben's", or "their own" of the person who acts.
func (s *said) own(name string) string {
	if name == s.who() {
		return "their own"
	}
	return name + "'s"
}

// request is what a request asks for, as the end of a sentence. joint goes
// before a grant, of which people speak by whose it is.
func (s *said) request(joint string, a approval.Approval) string {
	phrase, person := access.PhraseOf(a.Kind, a.Request)
	switch {
	case phrase == "":
		return because(s.describe(a))
	case person == s.who():
		return joint + phrase
	}
	return joint + person + "'s " + phrase
}

func targets(all []access.Target) string {
	if len(all) > 3 {
		return fmt.Sprintf("%d hosts", len(all))
	}
	var names []string
	for _, t := range all {
		names = append(names, t.Name)
	}
	return strings.Join(names, ", ")
}
