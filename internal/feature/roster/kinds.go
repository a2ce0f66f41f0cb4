package roster

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// The kinds of request.
const (
	KindPersonAdd    = "person.add"
	KindPersonLink   = "person.link"
	KindPersonUnlock = "person.unlock"
	KindHostInvite   = "host.invite"
	KindHostSet      = "host.set"
	KindHostAdd      = "host.add"
	KindHostAdopt    = "host.adopt"
	KindPolicyApply  = "policy.apply"
)

// The requests, as bytes that people sign: a field keeps its meaning.
type (
	personAdd struct {
		V      int      `json:"v"`
		Name   string   `json:"name"`
		Groups []string `json:"groups"`
	}
	personLink struct {
		V      int    `json:"v"`
		Person string `json:"person"`
	}
	personUnlock struct {
		V      int    `json:"v"`
		Person string `json:"person"`
		Epoch  int64  `json:"epoch"` // of the lock that is lifted, not of a later one
		Reason string `json:"reason"`
	}
	hostInvite struct {
		V           int      `json:"v"`
		Name        string   `json:"name"`
		Environment string   `json:"environment"`
		Scope       string   `json:"scope"`
		Services    []string `json:"services"`
		Labels      []string `json:"labels"`
	}
	hostSet struct {
		V    int         `json:"v"`
		Was  target.Host `json:"was"`
		Host target.Host `json:"host"` // as it will be, at the version it was read at
	}
	policyApply struct {
		V     int           `json:"v"`
		Base  int64         `json:"base"`
		Files []policy.File `json:"files"`
	}
)

// Kinds are the kinds of request that roster carries out; approval.New takes them.
func Kinds(people *identity.People, hosts *target.Hosts, force *policy.Force) []approval.Kind {
	return append(robotKinds(people), []approval.Kind{
		kind[personAdd]{KindPersonAdd, describePersonAdd, func(tx *store.Tx, a approval.Approval, q personAdd) ([]ledger.Entry, error) {
			person, entries, err := people.AddTx(tx, requester(a), q.Name, q.Groups)
			if err != nil {
				return nil, err
			}
			return entries, leaveRight(tx, a, person.ID)
		}},
		kind[personLink]{KindPersonLink, describePersonLink(people), func(tx *store.Tx, a approval.Approval, q personLink) ([]ledger.Entry, error) {
			return nil, leaveRight(tx, a, q.Person)
		}},
		kind[personUnlock]{KindPersonUnlock, describePersonUnlock(people), func(tx *store.Tx, a approval.Approval, q personUnlock) ([]ledger.Entry, error) {
			who, err := people.GetTx(tx, q.Person)
			if err != nil {
				return nil, err
			}
			if who.Epoch != q.Epoch {
				return nil, fault.New(fault.Conflict, "cannot unlock %s: they were locked again since this was asked", who.Name).WithHint("ask anew: handrail unlock %s", who.Name)
			}
			_, entries, err := people.UnlockTx(tx, a.Requester, q.Person, q.Reason)
			return entries, err
		}},
		kind[hostInvite]{KindHostInvite, describeHostInvite, func(tx *store.Tx, a approval.Approval, _ hostInvite) ([]ledger.Entry, error) {
			return nil, leaveRight(tx, a, "")
		}},
		kind[hostSet]{KindHostSet, describeHostSet, func(tx *store.Tx, a approval.Approval, q hostSet) ([]ledger.Entry, error) {
			entry, err := hosts.SetByTx(tx, a.Requester, q.Host)
			return []ledger.Entry{entry}, err
		}},
		hostAddKind(hosts), hostAdoptKind(),
		kind[policyApply]{KindPolicyApply, describePolicy(force), func(tx *store.Tx, a approval.Approval, q policyApply) ([]ledger.Entry, error) {
			_, entry, err := force.ApplyTx(tx, a.Requester, policy.Set{Files: q.Files}, q.Base)
			return []ledger.Entry{entry}, err
		}},
	}...)
}

func requester(a approval.Approval) identity.Principal {
	return identity.Principal{ID: a.Requester, Name: a.RequesterName, Kind: identity.KindPerson}
}

// kind is one kind of request with its bytes read strictly.
type kind[Q any] struct {
	name     string
	describe func(q store.Queryer, request Q) (approval.Description, error)
	approved func(tx *store.Tx, a approval.Approval, request Q) ([]ledger.Entry, error)
}

func (k kind[Q]) Name() string { return k.name }

func (k kind[Q]) parse(signed []byte) (request []byte, q Q, err error) {
	var a asked
	if err = approval.Read(k.name, signed, &a); err == nil {
		err = approval.Read(k.name, a.Request, &q)
	}
	return a.Request, q, err
}

func (k kind[Q]) Describe(q store.Queryer, request []byte) (approval.Description, error) {
	_, parsed, err := k.parse(request)
	if err != nil {
		return approval.Description{}, err
	}
	return k.describe(q, parsed)
}

func (k kind[Q]) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	request, parsed, err := k.parse(a.Request)
	if err != nil {
		return nil, err
	}
	a.Request = request // a right is for the words, whenever they were asked
	return k.approved(tx, a, parsed)
}

func (k kind[Q]) Ended(*store.Tx, approval.Approval, approval.State) ([]ledger.Entry, error) {
	return nil, nil
}

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func describePersonAdd(_ store.Queryer, q personAdd) (approval.Description, error) {
	if err := identity.CheckName(q.Name); err != nil {
		return approval.Description{}, err
	}
	return approval.Description{
		Subject: "person/" + q.Name, Summary: fmt.Sprintf("add %s, in groups: %s", q.Name, list(q.Groups)),
		Details:       []approval.Detail{{Name: "name", Value: q.Name}, {Name: "groups", Value: list(q.Groups)}},
		Grants:        []string{"whoever opens the login link logs in as " + q.Name + ", reads on every host, and may ask for more"},
		CannotContain: []string{"the requester gets the link, and could open it themselves; a new credential cannot approve for 24 hours"},
	}, nil
}

func describePersonLink(people *identity.People) func(store.Queryer, personLink) (approval.Description, error) {
	return func(q store.Queryer, r personLink) (approval.Description, error) {
		who, err := people.GetTx(q, r.Person)
		if err != nil {
			return approval.Description{}, err
		}
		return approval.Description{
			Subject: who.ID, Summary: "another login link for " + who.Name,
			Details:       []approval.Detail{{Name: "person", Value: who.Name}, {Name: "groups", Value: list(who.Groups)}},
			Grants:        []string{"whoever opens it logs in as " + who.Name + " and may enrol a device and a passkey"},
			CannotContain: []string{"the requester gets the link, and could open it themselves; a new credential cannot approve for 24 hours"},
		}, nil
	}
}

func describePersonUnlock(people *identity.People) func(store.Queryer, personUnlock) (approval.Description, error) {
	return func(q store.Queryer, r personUnlock) (approval.Description, error) {
		who, err := people.GetTx(q, r.Person)
		if err != nil {
			return approval.Description{}, err
		}
		return approval.Description{
			Subject: who.ID, Summary: fmt.Sprintf("unlock %s: %s", who.Name, r.Reason),
			Details: []approval.Detail{{Name: "person", Value: who.Name}, {Name: "locked because", Value: who.LockedReason}, {Name: "unlock because", Value: r.Reason}},
			Grants:  []string{who.Name + " may log in again; their old logins and certificates stay dead"},
		}, nil
	}
}

func describeHostInvite(_ store.Queryer, q hostInvite) (approval.Description, error) {
	name := q.Name
	if name == "" {
		name = "(its own name)"
	}
	return approval.Description{
		Subject: "host/" + q.Name, Summary: fmt.Sprintf("invite a host: %s, %s, scope %s", name, orDefault(q.Environment, "dev"), orDefault(q.Scope, "none")),
		Details: []approval.Detail{
			{Name: "name", Value: name}, {Name: "environment", Value: orDefault(q.Environment, "dev")}, {Name: "scope", Value: orDefault(q.Scope, "none")},
			{Name: "services", Value: list(q.Services)}, {Name: "labels", Value: list(q.Labels)},
		},
		Grants: []string{"one machine joins as this host, within the hour after the token is made"},
	}, nil
}

func orDefault(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func describeHostSet(_ store.Queryer, r hostSet) (approval.Description, error) {
	d := approval.Description{Subject: r.Was.ID, Summary: "set host " + r.Was.Name}
	for _, line := range []struct{ name, from, to string }{
		{"name", r.Was.Name, r.Host.Name}, {"environment", r.Was.Environment, r.Host.Environment}, {"scope", r.Was.Scope, r.Host.Scope},
		{"services", list(r.Was.Services), list(r.Host.Services)}, {"labels", list(r.Was.Labels), list(r.Host.Labels)},
		{"reached by", reachedBy(r.Was), reachedBy(r.Host)}, {"SSH address", r.Was.SSHAddress, r.Host.SSHAddress},
		{"account to read as", r.Was.SSHUser, r.Host.SSHUser}, {"account to write as", r.Was.SSHWrite, r.Host.SSHWrite},
		{"pinned host key", target.Fingerprint(r.Was.SSHKey), target.Fingerprint(r.Host.SSHKey)},
		{"certificates count from", sourceWord(r.Was), sourceWord(r.Host)},
		{"node for the length of a visit", yesNo(r.Was.SSHNode), yesNo(r.Host.SSHNode)},
	} {
		if line.from != line.to {
			d.Details = append(d.Details, approval.Detail{Name: line.name, Value: line.from + " → " + line.to})
			d.Summary += ", " + line.name + " " + line.to
		}
	}
	if r.Was.Environment == "production" && r.Host.Environment != "production" {
		d.Grants = append(d.Grants, "the rules of production no longer hold on "+r.Was.Name)
	}
	if r.Was.Scope != r.Host.Scope && r.Was.Scope != "none" {
		d.Grants = append(d.Grants, "the rules of scope "+r.Was.Scope+" no longer hold on "+r.Was.Name)
	}
	d.Grants = append(d.Grants, grantedBySSH(r.Was, r.Host)...)
	return d, nil
}

func describePolicy(force *policy.Force) func(store.Queryer, policyApply) (approval.Description, error) {
	return func(q store.Queryer, r policyApply) (approval.Description, error) {
		set := policy.Set{Files: r.Files}
		row, err := force.RowTx(q, r.Base)
		if err != nil {
			return approval.Description{}, err
		}
		var before []policy.File
		if err := json.Unmarshal([]byte(row.Files), &before); err != nil {
			return approval.Description{}, fault.Wrap(fault.Internal, err, "cannot read policy version %d", r.Base)
		}
		d := approval.Description{
			Subject: "policy", Summary: fmt.Sprintf("put policy %s in force, instead of version %d", hex.EncodeToString(set.Hash())[:12], r.Base),
			Details: []approval.Detail{{Name: "hash", Value: hex.EncodeToString(set.Hash())}, {Name: "compared with version", Value: fmt.Sprint(r.Base)}},
			Grants:  []string{"it changes who may do what, from the moment of approval: handrail policy test shows who gains and who loses"},
		}
		for _, f := range changed(before, r.Files) {
			d.Details = append(d.Details, approval.Detail{Name: f.Name, Value: f.Text})
		}
		return d, nil
	}
}

// changed are the files that differ; one that goes has the text "(removed)".
func changed(before, after []policy.File) []policy.File {
	old := map[string]string{}
	for _, f := range before {
		old[f.Name] = f.Text
	}
	var out []policy.File
	for _, f := range after {
		if text, ok := old[f.Name]; !ok || text != f.Text {
			out = append(out, f)
		}
		delete(old, f.Name)
	}
	for _, f := range before {
		if _, gone := old[f.Name]; gone {
			out = append(out, policy.File{Name: f.Name, Text: "(removed)"})
		}
	}
	return out
}
