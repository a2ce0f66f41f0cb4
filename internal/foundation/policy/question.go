package policy

import (
	"iter"
	"slices"

	cedar "github.com/cedar-policy/cedar-go"
)

// question is what Cedar looks at for one query: the principal and the resource,
// which are all entities there are, and the rules of the action without those
// whose scope cannot fit the principal. Such a rule neither decides nor errs,
// since its scope is evaluated first; leaving it out only saves the time. Of the
// others Cedar is not asked again what is known here: a test asks it about the
// rules as they are written, too, and wants the same answer.
type question struct {
	principal, resource *cedar.Entity
	rules               rules
	groups              []string
}

// Get implements cedar.EntityGetter.
func (q *question) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	switch uid {
	case q.principal.UID:
		return *q.principal, true
	case q.resource.UID:
		return *q.resource, true
	}
	return cedar.Entity{}, false
}

// All implements cedar.PolicyIterator.
func (q *question) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	kind := string(q.principal.UID.Type)
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for i := range q.rules {
			r := &q.rules[i]
			if r.kind != "" && r.kind != kind || r.group != "" && !slices.Contains(q.groups, r.group) {
				continue
			}
			if !yield(r.id, r.asked) {
				return
			}
		}
	}
}
