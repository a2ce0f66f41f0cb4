package approval

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// State is where a request stands.
//
//	requested ── approve (enough of them) ──▶ approved
//	    │  ├──── deny ─────────────────────▶ denied
//	    │  ├──── its time is up ───────────▶ lapsed
//	    │  └──── the requester gives up ───▶ withdrawn
//	    └─ approve (more are needed): stays requested
//
// Only requested has a way out.
type State string

// The states.
const (
	Requested State = "requested"
	Approved  State = "approved"
	Denied    State = "denied"
	Lapsed    State = "lapsed"
	Withdrawn State = "withdrawn"
)

// Rule says who must agree. It is fixed when the request is made: a policy that
// changes later neither lightens nor tightens what was asked under the old one.
type Rule struct {
	Needed          int           `json:"needed"`
	Groups          []string      `json:"groups"`
	DifferentGroups bool          `json:"different_groups,omitempty"` // each approval from another one of Groups
	Passkey         bool          `json:"passkey,omitempty"`
	Lapse           time.Duration `json:"lapse"`
}

// Decision is what one person said.
type Decision struct {
	Person    string          `json:"person"`
	Name      string          `json:"name"`
	Groups    []string        `json:"groups"` // those of the rule that they were in, then
	Verdict   State           `json:"verdict"`
	Reason    string          `json:"reason,omitempty"`
	At        int64           `json:"at"` // µs
	Signature *wire.Signature `json:"signature,omitempty"`
	Void      string          `json:"void,omitempty"` // why it counts no more; they may decide again
}

// SignedBy says with what they signed: passkey, device, or login (only while the
// installation is in bootstrap, and never for what a node must believe).
func (d Decision) SignedBy() string {
	if d.Signature == nil {
		return "login"
	}
	return d.Signature.Kind
}

// Counts says whether somebody agreed, and it holds.
func (d Decision) Counts() bool { return d.Verdict == Approved && d.Void == "" }

// Approval is one request and what people said to it, as a value.
type Approval struct {
	ID            string          `json:"id"`
	Kind          string          `json:"kind"`
	State         State           `json:"state"`
	Requester     string          `json:"requester"`
	RequesterName string          `json:"requester_name"`
	Subject       string          `json:"subject"` // what it is about: g-…, p-…, h-…
	Request       []byte          `json:"request"` // exact bytes; what people agree to
	Hash          []byte          `json:"hash"`    // SubjectHash(Kind, Request)
	Rule          Rule            `json:"rule"`
	Requested     int64           `json:"requested"`
	Lapses        int64           `json:"lapses"`
	Decided       int64           `json:"decided,omitempty"`
	Decisions     []Decision      `json:"decisions,omitempty"`
	Signed        *wire.Signature `json:"signed,omitempty"`   // the requester's own, over Hash
	EndedBy       string          `json:"ended_by,omitempty"` // who withdrew it: p-… or system
	EndedWhy      string          `json:"ended_why,omitempty"`
	Version       int64           `json:"version"`
}

// Agreed are the approvals that count.
func (a Approval) Agreed() []Decision { return counting(a.Decisions) }

func counting(all []Decision) (agreed []Decision) {
	for _, d := range all {
		if d.Counts() {
			agreed = append(agreed, d)
		}
	}
	return agreed
}

// without marks whose earlier approval counts no more, and why.
func (a Approval) without(void map[string]string) Approval {
	a.Decisions = slices.Clone(a.Decisions)
	for i, d := range a.Decisions {
		if why := void[d.Person]; why != "" && d.Void == "" {
			a.Decisions[i].Void = why
		}
	}
	return a
}

// SubjectHash is what an approver sees, signs and is bound to.
func SubjectHash(kind string, request []byte) []byte {
	h := sha256.New()
	h.Write([]byte("handrail-approval-v1\n" + kind + "\n"))
	h.Write(request)
	return h.Sum(nil)
}

// Voter is who decides, as their rows say inside the deciding transaction.
type Voter struct {
	Person         string
	Name           string
	Kind           string // person; nothing else may decide
	Groups         []string
	Locked         bool
	ReadOnly       bool // came by a code: may read once, and nothing else
	Bootstrap      bool // the installation is new: young credentials may decide
	MayApproveFrom time.Time
	Signature      *wire.Signature
	ForLocked      bool // whoever asks is locked: nothing is agreed to for them
}

// Event is one thing that happens to a request.
type Event struct {
	To     State // Approved, Denied, Lapsed or Withdrawn
	By     Voter
	Hash   []byte // Approved: what the approver saw
	Reason string
}

// Step applies an event. It is pure: the same arguments give the same result,
// and a refused event changes nothing.
func Step(a Approval, e Event, now time.Time) (Approval, error) {
	if a.State != Requested {
		return a, fault.New(fault.Conflict, "cannot decide %s: it is %s already", a.ID, a.State).WithHint("handrail requests")
	}
	at := now.UnixMicro()
	switch e.To {
	case Lapsed:
		if at < a.Lapses {
			return a, fault.New(fault.Conflict, "cannot let %s lapse: it has time left", a.ID)
		}
	case Withdrawn:
		// Whoever may withdraw is decided by the caller; it only takes away.
		a.EndedBy, a.EndedWhy = e.By.Person, e.Reason
	case Approved, Denied:
		return decide(a, e, now)
	default:
		return a, fault.New(fault.Internal, "cannot decide %s: %q is no verdict", a.ID, e.To)
	}
	a.State, a.Decided = e.To, at
	a.Version++
	return a, nil
}

func decide(a Approval, e Event, now time.Time) (Approval, error) {
	at := now.UnixMicro()
	if at >= a.Lapses {
		return a, fault.New(fault.Conflict, "cannot decide %s: its time is up", a.ID).WithHint("ask for a new request")
	}
	if err := mayDecide(a, e.By); err != nil {
		return a, err
	}
	d := Decision{
		Person: e.By.Person, Name: e.By.Name, Groups: common(e.By.Groups, a.Rule.Groups),
		Verdict: e.To, Reason: e.Reason, At: at, Signature: e.By.Signature,
	}
	if e.To == Denied {
		a.State, a.Decided = Denied, at
	} else if err := checkEvidence(a, e, now); err != nil {
		return a, err
	}
	a.Decisions = append(slices.Clone(a.Decisions), d)
	a.Version++
	if e.To == Approved && a.Rule.satisfied(a.Decisions) {
		a.State, a.Decided = Approved, at
	}
	return a, nil
}

// May says whether this person could decide now, and why not.
func (a Approval) May(by Voter, now time.Time) error {
	if a.State != Requested {
		return fault.New(fault.Conflict, "cannot decide %s: it is %s already", a.ID, a.State)
	}
	if now.UnixMicro() >= a.Lapses {
		return fault.New(fault.Conflict, "cannot decide %s: its time is up", a.ID)
	}
	return mayDecide(a, by)
}

// mayDecide is what no policy can lift.
func mayDecide(a Approval, by Voter) error {
	who := "operators and admins"
	if len(a.Rule.Groups) > 0 {
		who = names(a.Rule.Groups)
	}
	refuse := func(rule, format string, args ...any) error {
		return fault.New(fault.Denied, "cannot decide "+a.ID+": "+format, args...).
			WithRule(rule).WithHint("ask somebody else in %s: handrail requests", who)
	}
	switch {
	case by.Person == "" || by.Kind != "person":
		return refuse("robots-ask", "only people approve")
	case by.Locked:
		return refuse("locked", "who is locked may do nothing")
	case by.ReadOnly:
		return refuse("code-reads-only", "a connection that came by a code may only read")
	case by.ForLocked:
		return refuse("locked", "%s, who asks, is locked", a.RequesterName)
	case by.Person == a.Requester:
		return refuse("never-your-own", "nobody decides their own request, admins included")
	case len(common(by.Groups, a.Rule.Groups)) == 0:
		return refuse("approve", "it takes somebody in %s", who)
	}
	for _, d := range a.Decisions {
		if d.Person == by.Person && d.Void == "" {
			return fault.New(fault.Conflict, "cannot decide %s: you said %s already", a.ID, d.Verdict)
		}
	}
	return nil
}

// checkEvidence is what an approval needs beyond a denial: that the approver saw
// these exact bytes, and signed them with a credential that is old enough.
func checkEvidence(a Approval, e Event, now time.Time) error {
	switch {
	case !bytes.Equal(e.Hash, a.Hash) || !bytes.Equal(a.Hash, SubjectHash(a.Kind, a.Request)):
		return fault.New(fault.Conflict, "cannot approve %s: it is not what you were shown", a.ID).
			WithHint("look again: handrail requests %s", a.ID)
	case e.By.Signature == nil && (!e.By.Bootstrap || a.Rule.Passkey):
		return fault.New(fault.Denied, "cannot approve %s: an approval is signed, by your passkey or your device", a.ID).
			WithHint("handrail approve %s", a.ID)
	case a.Rule.Passkey && e.By.Signature.Kind != "passkey":
		return fault.New(fault.Denied, "cannot approve %s: this one needs your passkey", a.ID).
			WithHint("approve it on the page")
	case !e.By.Bootstrap && now.Before(e.By.MayApproveFrom):
		return fault.New(fault.Denied, "cannot approve %s: your credential is new and may approve from %s",
			a.ID, e.By.MayApproveFrom.UTC().Format(time.RFC3339)).WithRule("young-credential").
			WithHint("ask somebody else: handrail requests")
	}
	return nil
}

// satisfied says whether the approvals are enough: as many as needed, and, where
// the rule says so, each from another group.
func (r Rule) satisfied(decisions []Decision) bool {
	yes := counting(decisions)
	if !r.DifferentGroups {
		return len(yes) >= max(r.Needed, 1)
	}
	// A person may be in several groups: find the largest assignment of persons to
	// groups (augmenting paths; both sides are at most ten or so).
	taken := map[string]int{}
	var place func(i int, tried map[string]bool) bool
	place = func(i int, tried map[string]bool) bool {
		for _, g := range yes[i].Groups {
			if tried[g] {
				continue
			}
			tried[g] = true
			if other, busy := taken[g]; !busy || place(other, tried) {
				taken[g] = i
				return true
			}
		}
		return false
	}
	count := 0
	for i := range yes {
		if place(i, map[string]bool{}) {
			count++
		}
	}
	return count >= max(r.Needed, 1)
}

func common(a, b []string) []string {
	var both []string
	for _, x := range a {
		if slices.Contains(b, x) {
			both = append(both, x)
		}
	}
	return both
}

func names(groups []string) string {
	text := ""
	for i, g := range groups {
		switch {
		case i == 0:
		case i == len(groups)-1:
			text += " or "
		default:
			text += ", "
		}
		text += g
	}
	return text
}
