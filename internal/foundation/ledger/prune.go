package ledger

import (
	"encoding/json"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// ActionPruned says that payloads of some actions, older than a moment, were
// let go: its payload is Pruned. Leaves and proofs stay.
const ActionPruned Action = "ledger.pruned"

// Pruned is the payload of ActionPruned.
type Pruned struct {
	V       int         `json:"v"`
	Rules   []PruneRule `json:"rules"`
	Through int64       `json:"through"` // entries before this number
	Count   int64       `json:"count"`
}

// PruneRule lets go of the payloads of an action ("noun.verb", or "noun.*")
// that are older than a moment (microseconds).
type PruneRule struct {
	Action string `json:"action"`
	Before int64  `json:"before"`
}

// maxPruneRules bounds an entry.
const maxPruneRules = 256

// keptNouns are what proofs, recordings and erasures are checked against.
var keptNouns = []string{"ledger", "recording", "subject"}

// ParsePruned reads and checks the payload.
func ParsePruned(payload []byte) (Pruned, error) {
	var p Pruned
	if err := json.Unmarshal(payload, &p); err != nil {
		return p, fault.Wrap(fault.Invalid, err, "cannot read what was pruned")
	}
	return p, p.Check()
}

// Check refuses rules that would let go of what a verifier needs.
func (p Pruned) Check() error {
	if len(p.Rules) == 0 || len(p.Rules) > maxPruneRules {
		return fault.New(fault.Invalid, "cannot prune by %d rules: 1 to %d", len(p.Rules), maxPruneRules)
	}
	for _, r := range p.Rules {
		noun, verb, _ := strings.Cut(r.Action, ".")
		if noun == "" || verb == "" || strings.Contains(noun, "*") || strings.Contains(verb, "*") && verb != "*" {
			return fault.New(fault.Invalid, "cannot prune %q: it is no action", r.Action).WithHint("session.opened, or node.*")
		}
		for _, kept := range keptNouns {
			if noun == kept {
				return fault.New(fault.Invalid, "cannot prune %q: entries of %s are what the others are checked against", r.Action, kept)
			}
		}
	}
	return nil
}

// Covers says whether the payload of such an entry may be absent.
func (p Pruned) Covers(seq int64, action Action, at int64) bool {
	if seq >= p.Through {
		return false
	}
	for _, r := range p.Rules {
		noun, all := strings.CutSuffix(r.Action, ".*")
		if at < r.Before && (string(action) == r.Action || all && strings.HasPrefix(string(action), noun+".")) {
			return true
		}
	}
	return false
}
