package roster

import (
	"encoding/json"
	"fmt"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// KindDirectoryChange is a change of the company's directory that waits for a
// person: so many lose something at once that a mistake is likelier, or
// somebody enters a group that the directory alone does not give.
const KindDirectoryChange = "directory.change"

// DirectoryKinds are the kinds of request that the directory makes.
func DirectoryKinds(people *identity.People) []approval.Kind {
	return []approval.Kind{directoryKind{people}}
}

type directoryKind struct{ people *identity.People }

func (k directoryKind) Name() string { return KindDirectoryChange }

func heldOf(request []byte) (h directory.Held, err error) {
	err = approval.Read(KindDirectoryChange, request, &h)
	return h, err
}

// shownPeople is how many an approver is shown by name; the hash is of all.
const shownPeople = 50

func (k directoryKind) Describe(q store.Queryer, request []byte) (approval.Description, error) {
	h, err := heldOf(request)
	if err != nil {
		return approval.Description{}, err
	}
	d := approval.Description{Subject: "directory/" + h.What, Details: []approval.Detail{{Name: "digest", Value: h.Digest}}}
	switch h.What {
	case directory.HeldLosses:
		d.Summary = fmt.Sprintf("let the directory take away from %d of %d people at once", h.Count, h.Of)
		d.Grants = []string{"they are locked, or lose groups; their sessions and grants end. Whoever was taken away from comes back by handrail unlock"}
		d.CannotContain = []string{"more than one in twenty at once is likelier a mistake of the directory, or of what its account may see, than people who go"}
	case directory.HeldGains:
		d.Summary = fmt.Sprintf("let the directory put %d people into a group that it does not give alone", h.Count)
		d.Grants = []string{"what the group may do, as long as the directory has them in it"}
		d.CannotContain = []string{"whoever changes the directory decides who they are: ask those people, not the directory"}
	default:
		return d, fault.New(fault.Invalid, "cannot read the request of kind %s: nobody knows %q", KindDirectoryChange, h.What)
	}
	for i, line := range h.Lines {
		if i == shownPeople {
			d.Details = append(d.Details, approval.Detail{Name: "and", Value: fmt.Sprintf("%d more: handrail directory status", h.Count-i)})
			break
		}
		id, what := h.Parse(line)
		name := id
		if who, err := k.people.GetTx(q, id); err == nil {
			name = who.Name
		}
		d.Details = append(d.Details, approval.Detail{Name: name, Value: what})
	}
	return d, nil
}

func (directoryKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	h, err := heldOf(a.Request)
	if err != nil {
		return nil, err
	}
	return nil, directory.SettleTx(tx, h, a.ID, true)
}

func (directoryKind) Ended(tx *store.Tx, a approval.Approval, state approval.State) ([]ledger.Entry, error) {
	h, err := heldOf(a.Request)
	if err != nil {
		return nil, err
	}
	if state == approval.Denied {
		return nil, directory.SettleTx(tx, h, a.ID, false)
	}
	return nil, directory.ForgetTx(tx, h, a.ID)
}

// AskDirectory asks for a change of the directory, as the installation itself:
// anybody who may decide such requests is a second person to it.
func AskDirectory(tx *store.Tx, approvals *approval.Approvals, rule approval.Rule, request []byte) (string, []ledger.Entry, error) {
	if !json.Valid(request) {
		return "", nil, fault.New(fault.Internal, "cannot ask for a change of the directory: it is no JSON")
	}
	a, entries, err := approvals.RequestTx(tx, identity.Principal{ID: ledger.System, Name: "the directory"}, KindDirectoryChange, request, rule)
	return a.ID, entries, err
}
