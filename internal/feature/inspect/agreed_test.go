package inspect

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

// vault is a house in which ada asks for what is masked on web-1, and bob and
// carl may agree.
type vault struct {
	*house.House
	t              *testing.T
	host           target.Host
	ada, bob, carl house.Resident
	node           *teller
	drained        error // what is said of the host
	approvals      *approval.Approvals
	x              *Inspections
}

// teller plays the node of one process: it says which it is, and what is asked.
type teller struct {
	orders int // of takes
	dump   []byte
}

func (n *teller) Start(_ context.Context, pass doorway.Pass, _ string) (Stream, wire.SessionAnswer, error) {
	var o wire.OrderPayload
	for _, e := range pass.Receipt().Entries() {
		if got, err := wire.ParseOrderPayload(e.Payload); err == nil {
			o = got
		}
	}
	said := &told{}
	switch {
	case o.Inspect.Core != nil && len(o.Inspect.Core.Key) > 0:
		n.orders++
		said.sealed = n.dump
		said.records = []wire.InspectRecord{{Core: &wire.InspectDump{Bytes: 5 << 20, Sealed: int64(len(n.dump))}}}
	case o.Inspect.Unmask != nil:
		n.orders++
		said.records = []wire.InspectRecord{{Sealed: []byte("sealed to ada")}}
	default:
		said.records = []wire.InspectRecord{
			{Target: &wire.InspectTarget{PID: 7, Ticks: 70, Name: "api", User: "app", Command: "/srv/api"}},
			{Core: &wire.InspectDump{Bytes: 5 << 20}},
			{Variable: &wire.InspectVariable{Name: "DB_PASSWORD", Value: "‹masked: by name›", Masked: "by name"}},
			{Variable: &wire.InspectVariable{Name: "LANG", Value: "C"}},
		}
	}
	said.records = append(said.records, wire.InspectRecord{End: &wire.InspectEnd{Method: "as it was started", Records: int64(len(said.records))}})
	return said, wire.SessionAnswer{OK: true, Floor: wire.FloorBrokered}, nil
}

type told struct {
	sealed  []byte
	records []wire.InspectRecord
}

func (p *told) Next() (wire.FrameType, []byte, error) {
	if b := p.sealed; len(b) > 0 {
		p.sealed = nil
		return wire.FrameSealed, b, nil
	}
	if len(p.records) == 0 {
		return 0, nil, io.EOF
	}
	b, err := json.Marshal(p.records[0])
	p.records = p.records[1:]
	return wire.FrameStdout, b, err
}

func (p *told) Close() error { return nil }

func newVault(t *testing.T) *vault {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(approval.Schema(), Schema()...)})
	t.Cleanup(h.Close)
	v := &vault{House: h, t: t, host: h.Host("web-1", "production"), node: &teller{dump: []byte("sealed by the host")}}
	v.approvals = approval.New(approval.Deps{Store: h.Store, People: h.People, Kinds: Kinds(func() *Inspections { return v.x })})
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	blobs, err := blob.OpenFiles(t.TempDir())
	house.Must(t, err)
	v.x = New(Deps{
		Store: h.Store, Door: door, Hosts: h.Hosts, People: h.People, Rules: h.Force, Nodes: v.node, LockEpoch: h.People.LockEpochTx,
		Approvals: v.approvals, Seals: h.Ring.Subjects(), Blobs: blobs,
		Drained: func(store.Queryer, identity.Principal, target.Host, time.Time) error { return v.drained },
	})
	v.ada, v.bob, v.carl = v.Person("ada", "developer"), v.Person("bob", "operator"), v.Person("carl", "admin")
	return v
}

// ask is ada's request of a kind.
func (v *vault) ask(kind string) Agreed {
	v.t.Helper()
	public, _, err := seal.NewKey()
	house.Must(v.t, err)
	w := Wanted{Kind: kind, Host: "web-1", Target: "7", Why: "it hangs"}
	if kind == KindUnmask {
		w.Name, w.Key = "DB_PASSWORD", public
	}
	a, _, err := v.x.Ask(v.t.Context(), v.ada.Principal, w)
	house.Must(v.t, err)
	return a
}

func (v *vault) approve(by house.Resident, a Agreed) error {
	return v.Approve(v.approvals, by, a.Approval)
}

// take is what taking a request of either kind comes to.
func (v *vault) take(by house.Resident, a Agreed) error {
	v.t.Helper()
	if a.Kind == KindUnmask {
		_, _, err := v.x.Unmask(v.t.Context(), by.Principal, a.ID)
		return err
	}
	_, err := v.x.Take(v.t.Context(), by.Principal, a.ID, func(Asked) error { return nil }, func(wire.InspectRecord) error { return nil })
	return err
}

func (v *vault) row(a Agreed) (now Agreed) {
	v.t.Helper()
	house.Must(v.t, v.Store.View(v.t.Context(), func(q *store.View) (err error) {
		now, err = agreedTx(q, a.ID)
		return err
	}))
	return now
}

// said is the payload of the one entry about a request.
func (v *vault) said(action ledger.Action, a Agreed) (subjects []string, p corePayload) {
	v.t.Helper()
	list, err := v.Store.Entries(v.t.Context(), store.EntryQuery{Action: string(action), Limit: 10})
	house.Must(v.t, err)
	if len(list) != 1 || list[0].Parsed.Object != a.ID {
		v.t.Fatalf("%d entries %s of %s", len(list), action, a.ID)
	}
	house.Must(v.t, json.Unmarshal(list[0].Payload, &p))
	return list[0].Parsed.Subjects, p
}

// both runs a test for a dump and for a value.
func both(t *testing.T, test func(t *testing.T, v *vault, kind string)) {
	for _, kind := range []string{KindCore, KindUnmask} {
		t.Run(kind, func(t *testing.T) { test(t, newVault(t), kind) })
	}
}

func TestNothingIsTakenUntilSomebodyElseAgreed(t *testing.T) {
	both(t, func(t *testing.T, v *vault, kind string) {
		a := v.ask(kind)
		house.Want(t, v.take(v.ada, a), fault.NeedsApproval, "nobody has agreed yet")
		house.Want(t, v.approve(v.ada, a), fault.Denied, "nobody decides their own request")
		house.Must(t, v.approve(v.bob, a))
		house.Want(t, v.take(v.bob, a), fault.Denied, "asked for by somebody else")
		if v.node.orders != 0 {
			t.Fatalf("%d orders before it was taken", v.node.orders)
		}
		house.Must(t, v.take(v.ada, a))
		state, action := StateKept, CoreKept
		if kind == KindUnmask {
			state, action = StateShown, Unmasked
		}
		house.Want(t, v.take(v.ada, a), fault.Conflict, "it is "+state)
		if got := v.row(a); got.State != state || v.node.orders != 1 {
			t.Errorf("%s, after %d orders", got.State, v.node.orders)
		}
		subjects, p := v.said(action, a)
		if strings.Join(subjects, " ") != v.ada.ID+" "+v.bob.ID || p.Approval != a.Approval || p.Is != "api (7)" || p.Why != "it hangs" {
			t.Errorf("the ledger says %v %+v", subjects, p)
		}
	})
}

func TestAnApproverWhoIsLockedBeforeTheTakeCountsNoMore(t *testing.T) {
	both(t, func(t *testing.T, v *vault, kind string) {
		a := v.ask(kind)
		house.Must(t, v.approve(v.bob, a))
		v.Lock(v.bob)
		house.Want(t, v.take(v.ada, a), fault.Denied, "who agreed was locked since")
		if got := v.row(a); got.State != StateAgreed || v.node.orders != 0 {
			t.Errorf("%s, and %d orders", got.State, v.node.orders)
		}
		house.Want(t, v.approve(v.carl, a), fault.Conflict, "it is approved already") // another agreement is another request
		v.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
			_, entries, err := v.People.UnlockTx(tx, ledger.System, v.bob.ID, "found it")
			return entries, err
		})
		house.Must(t, v.take(v.ada, a))
	})
}

// A take is decided in the transaction that opens it, not by what was seen before.
func TestALockBetweenTheLookAndTheOrderOfATakeWins(t *testing.T) {
	for name, fall := range map[string]func(v *vault, a Agreed) string{
		"who agreed is locked": func(v *vault, _ Agreed) string { v.Lock(v.bob); return "who agreed was locked since" },
		"who asked is locked":  func(v *vault, _ Agreed) string { v.Lock(v.ada); return "locked" },
		"its hour is over": func(v *vault, a Agreed) string {
			v.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
				_, err := tx.Exec(`UPDATE inspect_agreed SET until = $1 WHERE id = $2`, tx.Now().UnixMicro(), a.ID)
				return []ledger.Entry{{Action: "test.late", Object: a.ID, Version: a.Version + 100}}, err
			})
			return "within 1h0m0s of the approval"
		},
		"somebody took it": func(v *vault, a Agreed) string { house.Must(v.t, v.take(v.ada, a)); return "it is shown" },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			a := v.ask(KindUnmask)
			house.Must(t, v.approve(v.bob, a))
			ready, err := v.x.begin(t.Context(), v.ada.Principal, a.ID, KindUnmask)
			house.Must(t, err)
			why := fall(v, a)
			before := v.node.orders
			l := listener{begun: func(Asked) error { return nil }, each: func(wire.InspectRecord) error { return nil }}
			err = v.x.do(t.Context(), v.ada.Principal, ready, l, func(*Agreed) string { return StateShown }, func(closedPayload) ([]ledger.Entry, error) { return nil, nil })
			if err == nil || !strings.Contains(err.Error(), why) || v.node.orders != before {
				t.Errorf("%v, and %d orders", err, v.node.orders-before)
			}
		})
	}
}

func TestWhoAgreedToADumpReadsItUntilTheyAreLocked(t *testing.T) {
	v := newVault(t)
	a := v.ask(KindCore)
	house.Must(t, v.approve(v.bob, a))
	house.Must(t, v.take(v.ada, a))
	download := func(by house.Resident) error {
		return v.x.Download(t.Context(), by.Principal, a.ID, func(Agreed) error { return io.ErrClosedPipe }, func([]byte) error { return nil })
	}
	house.Want(t, download(v.carl), fault.Denied, "only who asked for it and who agreed may")
	for _, by := range []house.Resident{v.ada, v.bob} {
		if err := download(by); err == nil || !strings.Contains(err.Error(), io.ErrClosedPipe.Error()) {
			t.Errorf("%s is not let in: %v", by.Name, err)
		}
	}
	v.Lock(v.bob)
	var readers []string
	house.Must(t, v.Store.View(t.Context(), func(q *store.View) (err error) {
		readers, err = v.x.readers(q, v.row(a))
		return err
	}))
	if len(readers) != 1 || readers[0] != v.ada.ID {
		t.Errorf("%v may read it, and bob is locked", readers)
	}
	house.Want(t, download(v.bob), fault.Denied, "locked")
}

func TestADumpIsOfADrainedHostWhenItIsAskedForAndWhenItIsTaken(t *testing.T) {
	v := newVault(t)
	v.drained = fault.New(fault.Conflict, "cannot dump: others are there")
	_, _, err := v.x.Ask(t.Context(), v.ada.Principal, Wanted{Kind: KindCore, Host: "web-1", Target: "7", Why: "it hangs"})
	house.Want(t, err, fault.Conflict, "others are there")
	v.drained = nil
	a := v.ask(KindCore)
	house.Must(t, v.approve(v.bob, a))
	v.drained = fault.New(fault.Conflict, "cannot dump: others are there")
	house.Want(t, v.take(v.ada, a), fault.Conflict, "others are there")
	if v.node.orders != 0 {
		t.Errorf("%d orders", v.node.orders)
	}
}

func TestWhatIsWantedHasBounds(t *testing.T) {
	public, _, err := seal.NewKey()
	house.Must(t, err)
	core := Wanted{Kind: KindCore, Target: "7", Why: "it hangs"}
	value := Wanted{Kind: KindUnmask, Target: "7", Why: "it hangs", Name: "DB_PASSWORD", Key: public}
	for _, c := range []struct {
		of     Wanted
		change func(*Wanted)
		says   string // "": it may be asked for
	}{
		{core, func(*Wanted) {}, ""},
		{value, func(*Wanted) {}, ""},
		{core, func(w *Wanted) { w.Kind = "inspect.all" }, "is not known"},
		{core, func(w *Wanted) { w.Target = " " }, "of which process?"},
		{core, func(w *Wanted) { w.Why = " \n" }, "say why"},
		{core, func(w *Wanted) { w.Why = strings.Repeat("x", maxReason) }, ""},
		{core, func(w *Wanted) { w.Why = strings.Repeat("x", maxReason+1) }, "say why"},
		{core, func(w *Wanted) { w.Most = 1<<20 - 1 }, "a dump of at most"},
		{core, func(w *Wanted) { w.Most = wire.MaxCoreBytes }, ""},
		{core, func(w *Wanted) { w.Most = wire.MaxCoreBytes + 1 }, "a dump of at most"},
		{core, func(w *Wanted) { w.Most = -1 }, "a dump of at most"},
		{core, func(w *Wanted) { w.Pause = time.Microsecond }, "a pause of"},
		{core, func(w *Wanted) { w.Pause = wire.MaxCorePause*time.Millisecond + 1 }, "a pause of"},
		{core, func(w *Wanted) { w.Keep = time.Minute - 1 }, "to keep it for"},
		{core, func(w *Wanted) { w.Keep = LongestFor }, ""},
		{core, func(w *Wanted) { w.Keep = LongestFor + 1 }, "to keep it for"},
		{value, func(w *Wanted) { w.Name = "A=B" }, "is no name of a variable"},
		{value, func(w *Wanted) { w.Name = "" }, "is no name of a variable"},
		{value, func(w *Wanted) { w.Key = public[1:] }, "key"},
	} {
		w := c.of
		c.change(&w)
		err := w.check("web-1")
		if c.says == "" && err != nil || c.says != "" && (fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: %v, want %q", w, err, c.says)
		}
	}
	if w := core; w.check("web-1") != nil || w.Most != UsualMost || w.Pause != UsualPause || w.Keep != UsualKeep {
		t.Errorf("what nobody says is %+v", w)
	}
}

func TestOnlyWhatIsMaskedIsUnmasked(t *testing.T) {
	v := newVault(t)
	public, _, err := seal.NewKey()
	house.Must(t, err)
	for name, says := range map[string]string{"LANG": "LANG is not masked", "NOWHERE": "started without NOWHERE"} {
		if _, _, err := v.x.Ask(t.Context(), v.ada.Principal, Wanted{Kind: KindUnmask, Host: "web-1", Target: "7", Why: "it hangs", Name: name, Key: public}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err = v.x.Ask(t.Context(), v.ada.Principal, Wanted{Kind: KindCore, Host: "web-1", Target: "7", Why: "it hangs", Most: 4 << 20})
	house.Want(t, err, fault.Exhausted, "would have 5242880 bytes")
}
