package roster

import (
	"context"
	"fmt"
	"net"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// hostAdd is the request to add a host that has no node.
type hostAdd struct {
	V    int         `json:"v"`
	Host target.Host `json:"host"`
}

// SSHChange is what somebody wants to set of how a host without a node is
// reached; nil leaves it as it is.
type SSHChange struct {
	Address, User, Write, Key, Source *string
	Node                              *bool
	Mode                              *string // to reach it over SSH again, or to wait for its node
}

func (c SSHChange) apply(h target.Host) target.Host {
	for _, f := range []struct {
		to *string
		at *string
	}{{c.Address, &h.SSHAddress}, {c.User, &h.SSHUser}, {c.Write, &h.SSHWrite}, {c.Key, &h.SSHKey}, {c.Source, &h.SSHSource}, {c.Mode, &h.Mode}} {
		if f.to != nil {
			*f.at = *f.to
		}
	}
	if c.Node != nil {
		h.SSHNode = *c.Node
	}
	return h
}

// lookupTime bounds the question whether an address is this very machine.
const lookupTime = 3 * time.Second

// AddHost adds a host that has no node, or asks for approval of exactly that
// host, with its pinned key.
func (r *Roster) AddHost(ctx context.Context, by identity.Principal, host target.Host) (target.Host, string, error) {
	host.Mode, host.Server = target.ModeAgentless, r.isHere(ctx, host.SSHAddress)
	wanted, err := host.Normal()
	if err != nil {
		return target.Host{}, "", err
	}
	var added target.Host
	add := func(tx *store.Tx) ([]ledger.Entry, error) {
		var entry ledger.Entry
		var err error
		added, entry, err = r.Hosts.AddSSHTx(tx, by.ID, wanted)
		return []ledger.Entry{entry}, err
	}
	id, err := r.do(ctx, by, change{action: "hosts.invite", kind: KindHostAdd, request: hostAdd{V: 1, Host: wanted}, now: add,
		check: func(q store.Queryer) error { return r.Hosts.FreeTx(q, wanted.Name) }})
	if err != nil || id != "" {
		return wanted, id, err
	}
	return added, "", nil
}

// isHere says whether an address is the machine that the server runs on. What
// cannot be looked up is not.
func (r *Roster) isHere(ctx context.Context, address string) bool {
	name, _, err := net.SplitHostPort(address)
	if err != nil || r.Here == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return false
	}
	for _, ip := range found {
		if r.Here(ip) {
			return true
		}
	}
	return false
}

func hostAddKind(hosts *target.Hosts) approval.Kind {
	return kind[hostAdd]{KindHostAdd, describeHostAdd, func(tx *store.Tx, a approval.Approval, q hostAdd) ([]ledger.Entry, error) {
		_, entry, err := hosts.AddSSHTx(tx, a.Requester, q.Host)
		return []ledger.Entry{entry}, err
	}}
}

func describeHostAdd(_ store.Queryer, q hostAdd) (approval.Description, error) {
	h := q.Host
	return approval.Description{
		Subject: "host/" + h.Name, Summary: fmt.Sprintf("add a host without a node: %s, %s, scope %s", h.Name, h.Environment, h.Scope),
		Details: []approval.Detail{
			{Name: "name", Value: h.Name}, {Name: "environment", Value: h.Environment}, {Name: "scope", Value: h.Scope},
			{Name: "services", Value: list(h.Services)}, {Name: "labels", Value: list(h.Labels)},
			{Name: "SSH address", Value: h.SSHAddress}, {Name: "account to read as", Value: h.SSHUser},
			{Name: "account to write as", Value: orDefault(h.SSHWrite, "none: nobody writes there")},
			{Name: "pinned host key", Value: target.Fingerprint(h.SSHKey)}, {Name: "certificates count from", Value: sourceWord(h)},
			{Name: "node for the length of a visit", Value: yesNo(h.SSHNode)},
		},
		Grants: []string{"sessions go there through its own sshd, as these accounts; this installation's certificates are made for whoever holds that host key"},
		CannotContain: []string{"there is no node: nothing of handrail keeps a session from writing, only the rights of its account do",
			"nobody on that host checks that a session is in the ledger"},
	}, nil
}

func reachedBy(h target.Host) string {
	if h.Agentless() {
		return "its own sshd (no node)"
	}
	return "its node"
}

func sourceWord(h target.Host) string {
	switch h.SSHSource {
	case "":
		return "the server's own address"
	case target.SourceAny:
		return "anywhere"
	}
	return h.SSHSource
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// grantedBySSH is what a change of how a host is reached gives away.
func grantedBySSH(was, is target.Host) (out []string) {
	if is.SSHAddress == "" {
		return nil
	}
	if was.SSHKey != is.SSHKey {
		out = append(out, "whoever holds the new host key is "+is.Name+" from now on, and gets its sessions: compare "+target.Fingerprint(is.SSHKey)+" on its console")
	}
	if was.SSHAddress != is.SSHAddress && was.SSHAddress != "" {
		out = append(out, "sessions for "+is.Name+" go to "+is.SSHAddress)
	}
	if was.SSHWrite != is.SSHWrite && is.SSHWrite != "" {
		out = append(out, "write sessions on "+is.Name+" run as "+is.SSHWrite)
	}
	if !was.Agentless() && is.Agentless() {
		out = append(out, "sessions on "+is.Name+" are no longer kept within bounds by a node")
	}
	return out
}

// visitLife is how long the certificate of a node lives that goes with its
// session: no longer than the longest read session.
const visitLife = 12 * time.Hour

// issue certifies a node's key for as long as it is to be that host's node.
func (r *Roster) issue(csr []byte, h target.Host) ([]byte, error) {
	if h.Mode == target.ModeAgentless {
		return r.Ring.IssueNodeFor(csr, h.ID, visitLife)
	}
	return r.Ring.IssueNode(csr, h.ID)
}

// Call makes the secret with which a node that the server carries to a host
// joins as that host. Whoever is let through decided it; by is who that was.
func (r *Roster) Call(ctx context.Context, by, host string, stay bool) (secret string, err error) {
	_, err = r.Store.Record(ctx, newID(), func(tx *store.Tx) ([]ledger.Entry, error) {
		who, err := r.People.GetTx(tx, by)
		if err != nil {
			return nil, err
		}
		if who.Locked() { // since: the program was on its way for a while
			return nil, fault.New(fault.Denied, "cannot send a node: %s is locked", who.Name)
		}
		var entry ledger.Entry
		secret, entry, err = r.Hosts.CallTx(tx, by, host, stay)
		return []ledger.Entry{entry}, err
	})
	return secret, err
}

// hostAdopt is the request to give a host a node that stays.
type hostAdopt struct {
	V    int    `json:"v"`
	Host string `json:"host"`
	Name string `json:"name"`
	Key  string `json:"key"` // the fingerprint of the host that is meant
}

// Adopt makes the secret with which a node joins that stays on a host without
// one, or asks for approval and is asked again.
func (r *Roster) Adopt(ctx context.Context, by identity.Principal, name string) (h target.Host, secret, approvalID string, err error) {
	if h, err = r.Hosts.Get(ctx, name); err != nil {
		return h, "", "", err
	}
	call := func(tx *store.Tx) ([]ledger.Entry, error) {
		made, entry, err := r.Hosts.CallTx(tx, by.ID, h.ID, true)
		secret = made
		return []ledger.Entry{entry}, err
	}
	approvalID, err = r.do(ctx, by, change{action: "hosts.invite", kind: KindHostAdopt, host: &h,
		request: hostAdopt{V: 1, Host: h.ID, Name: h.Name, Key: target.Fingerprint(h.SSHKey)}, now: call,
		collect: func(tx *store.Tx, _ right) ([]ledger.Entry, error) { return call(tx) },
		check: func(store.Queryer) error {
			if !h.Agentless() {
				return fault.New(fault.Conflict, "cannot adopt %s: it has a node", h.Name).WithHint("handrail host show %s", h.Name)
			}
			return nil
		}})
	return h, secret, approvalID, err
}

func hostAdoptKind() approval.Kind {
	return kind[hostAdopt]{KindHostAdopt, func(_ store.Queryer, q hostAdopt) (approval.Description, error) {
		return approval.Description{
			Subject: q.Host, Summary: "give " + q.Name + " a node that stays",
			Details: []approval.Detail{{Name: "host", Value: q.Name}, {Name: "pinned host key", Value: q.Key}},
			Grants:  []string{"the node's program is put there over SSH and runs as root from then on; sessions go through it"},
		}, nil
	}, func(tx *store.Tx, a approval.Approval, q hostAdopt) ([]ledger.Entry, error) {
		return nil, leaveRight(tx, a, "")
	}}
}
