package inspect

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

// player plays the nodes: each look gets the same answer.
type player struct {
	orders  []wire.OrderPayload
	records []wire.InspectRecord
}

func (p *player) Start(_ context.Context, pass doorway.Pass, _ string) (Stream, wire.SessionAnswer, error) {
	for _, e := range pass.Receipt().Entries() {
		if o, err := wire.ParseOrderPayload(e.Payload); err == nil {
			p.orders = append(p.orders, o)
		}
	}
	return &played{p.records}, wire.SessionAnswer{OK: true, Floor: wire.FloorBrokered}, nil
}

type played struct{ left []wire.InspectRecord }

func (p *played) Next() (wire.FrameType, []byte, error) {
	if len(p.left) == 0 {
		return 0, nil, io.EOF
	}
	b, err := json.Marshal(p.left[0])
	p.left = p.left[1:]
	return wire.FrameStdout, b, err
}

func (p *played) Close() error { return nil }

// remote is a house with somebody who looks at a host that has no node.
type remote struct {
	*house.House
	t    *testing.T
	host target.Host
	ada  identity.Principal
	node *player
	x    *Inspections
}

func newRemote(t *testing.T, sshNode bool) *remote {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(approval.Schema(), Schema()...)})
	t.Cleanup(h.Close)
	r := &remote{House: h, t: t, node: &player{records: []wire.InspectRecord{
		{Variable: &wire.InspectVariable{Name: "DB_PASSWORD", Value: "‹masked: by name›", Masked: "by name"}},
		{End: &wire.InspectEnd{Method: "as it was started", Masked: 1, Records: 1}},
	}}}
	h.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		host, e, err := h.Hosts.AddSSHTx(tx, "system", target.Host{Name: "db-7", Environment: "dev", SSHAddress: "192.0.2.7:22", SSHUser: "look",
			SSHKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(house.NewKey(t).PublicKey()))), SSHNode: sshNode})
		r.host = host
		return []ledger.Entry{e}, err
	})
	r.ada = h.Person("ada", "developer").Principal
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	r.x = New(Deps{Store: h.Store, Door: door, Hosts: h.Hosts, People: h.People, Rules: h.Force, Nodes: r.node, LockEpoch: h.People.LockEpochTx, Seals: h.Ring.Subjects()})
	return r
}

// look looks, and says what began.
func (r *remote) look(what string) (a Asked, err error) {
	r.t.Helper()
	err = r.x.Look(r.t.Context(), r.ada, Request{Host: "db-7", What: what, Target: "1"}, func(begun Asked) error { a = begun; return nil },
		func(wire.InspectRecord) error { return nil })
	return a, err
}

func (r *remote) entries(action ledger.Action) []store.Recorded {
	r.t.Helper()
	list, err := r.Store.Entries(r.t.Context(), store.EntryQuery{Action: string(action), Limit: 100})
	house.Must(r.t, err)
	return list
}

func TestALookWhereANodeComesForItHasTimeForItsWay(t *testing.T) {
	r := newRemote(t, true)
	a, err := r.look(wire.InspectEnv)
	house.Must(t, err)
	if !a.Visited || a.Floor != wire.FloorBrokered {
		t.Errorf("who asked hears %+v", a)
	}
	if len(r.node.orders) != 1 {
		t.Fatalf("%d orders", len(r.node.orders))
	}
	if o := r.node.orders[0]; o.ValidMS != wire.MaxOrderAge || o.Inspect.TimeMS != wire.MaxInspectTime {
		t.Errorf("the order is good for %d ms and takes up to %d ms: its node has yet to come", o.ValidMS, o.Inspect.TimeMS)
	}
	var p closedPayload
	house.Must(t, json.Unmarshal(r.entries(Closed)[0].Payload, &p))
	if !p.Visited || p.Floor != wire.FloorBrokered || p.Masked != 1 {
		t.Errorf("the ledger says %+v", p)
	}
}

func TestNothingLooksWhereThereIsNoNodeAndNoneMayCome(t *testing.T) {
	r := newRemote(t, false)
	for _, what := range append([]string{wire.InspectCore}, wire.InspectVerbs...) {
		err := r.x.look(t.Context(), r.ada, Request{Host: "db-7", What: what, Target: "1"}, func(Asked) error { return nil }, func(wire.InspectRecord) error { return nil })
		house.Want(t, err, fault.Denied, "no node to look and to mask")
		if f := fault.From(err); f.Rule != "no-look-without-a-node" || f.Hint != "handrail host set db-7 --ssh-node" {
			t.Errorf("%s: %+v", what, f)
		}
	}
	for _, act := range []string{KindCore, KindUnmask} {
		for what, refused := range map[string]bool{wire.InspectEnv: true, "": false} { // the latter: of a dump that is kept here
			d, err := r.x.d.Door.(*doorway.Door).Explain(t.Context(), doorway.Act{Action: act, By: r.ada, Host: &r.host, Context: policy.Context{Self: true, Inspect: what}})
			house.Must(t, err)
			if slices.Contains(d.Rules, "no-look-without-a-node") != refused {
				t.Errorf("%s of %q: %+v", act, what, d)
			}
		}
	}
	if len(r.node.orders) != 0 || len(r.entries(Opened)) != 0 {
		t.Errorf("%d orders, %d openings", len(r.node.orders), len(r.entries(Opened)))
	}
}
