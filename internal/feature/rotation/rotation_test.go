package rotation_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/rotation"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// vault is a house whose keys two admins may replace.
type vault struct {
	*house.House
	t             *testing.T
	ada, bob, dev house.Resident
	approvals     *approval.Approvals
	x             *rotation.Rotations
}

func newVault(t *testing.T) *vault {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(approval.Schema(), rotation.Schema()...)})
	t.Cleanup(h.Close)
	v := &vault{House: h, t: t}
	v.approvals = approval.New(approval.Deps{Store: h.Store, People: h.People, Kinds: rotation.Kinds()})
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	v.x = rotation.New(rotation.Deps{Store: h.Store, Ring: h.Ring, Door: door, Approvals: v.approvals, Policy: h.Force, Settle: time.Nanosecond})
	v.ada, v.bob, v.dev = v.Person("ada", "admin"), v.Person("bob", "admin"), v.Person("dev", "developer")
	return v
}

func (v *vault) ask(overlap time.Duration) rotation.Rotation {
	v.t.Helper()
	row, err := v.x.Ask(v.t.Context(), v.ada.Principal, []string{ledger.KeyOrder, ledger.KeyLog}, overlap, "a year is over")
	house.Must(v.t, err)
	return row
}

func (v *vault) approve(by house.Resident, row rotation.Rotation) error {
	return v.Approve(v.approvals, by, row.Approval)
}

func (v *vault) bring(row rotation.Rotation) error {
	_, err := v.x.Bring(v.t.Context(), v.ada.Principal, v.Root([]byte(row.Body)))
	return err
}

// said is what the ledger says of a rotation, in order.
func (v *vault) said(id string) (actions []ledger.Action, last struct {
	Kinds    []string
	Bundle   int64
	Approval string
	Reason   string
}) {
	v.t.Helper()
	list, err := v.Store.Entries(v.t.Context(), store.EntryQuery{After: -1, Oldest: true, Limit: 1000})
	house.Must(v.t, err)
	for _, e := range list {
		if e.Parsed.Object == id && slices.Contains(rotation.Actions(), ledger.Action(e.Parsed.Action)) {
			actions = append(actions, ledger.Action(e.Parsed.Action))
			house.Must(v.t, json.Unmarshal(e.Payload, &last))
		}
	}
	return actions, last
}

func TestKeysAreReplacedWhenAnotherAgreedAndTheRootKeySigned(t *testing.T) {
	v := newVault(t)
	before, _ := v.Ring.Bundle()
	row := v.ask(time.Hour)
	shown, err := v.approvals.Get(t.Context(), row.Approval)
	house.Must(t, err)
	var d approval.Description
	house.Must(t, v.Store.View(t.Context(), func(q *store.View) (err error) {
		d, err = v.approvals.DescribeTx(q, shown)
		return err
	}))
	proposed, err := ledger.ReadBundle([]byte(row.Body))
	house.Must(t, err)
	for _, kind := range []string{ledger.KeyOrder, ledger.KeyLog} {
		for _, key := range proposed.Keys(kind) {
			if !slices.Contains(d.Details, approval.Detail{Name: kind, Value: rotation.Fingerprint(key)}) {
				t.Errorf("who agrees does not see the %s key %s", kind, rotation.Fingerprint(key))
			}
		}
	}
	house.Want(t, v.bring(row), fault.NeedsApproval, "nobody has agreed")
	house.Want(t, v.approve(v.ada, row), fault.Denied, "nobody decides their own request")
	house.Want(t, v.approve(v.dev, row), fault.Denied, "it takes somebody in")
	house.Must(t, v.approve(v.bob, row))
	if now, _ := v.Ring.Bundle(); now.Version != before.Version {
		t.Fatal("keys were replaced without the root key")
	}
	house.Must(t, v.bring(row))
	if now, _ := v.Ring.Bundle(); now.Version != before.Version+1 || !v.Ring.Rotating() {
		t.Errorf("bundle %d after %d, handing over: %v", now.Version, before.Version, v.Ring.Rotating())
	}
	house.Want(t, v.bring(row), fault.Denied, "") // a replay
	actions, last := v.said(row.ID)
	if want := []ledger.Action{rotation.Asked, rotation.Agreed, rotation.Rotated}; !slices.Equal(actions, want) {
		t.Errorf("the ledger says %v", actions)
	}
	if strings.Join(last.Kinds, " ") != row.Kinds || last.Bundle != row.Bundle || last.Approval != row.Approval {
		t.Errorf("and last %+v", last)
	}

	ctx, stop := context.WithCancel(t.Context())
	finished := make(chan error, 1)
	go func() { finished <- v.x.Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); v.Ring.Rotating(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the old keys go on acting")
		}
	}
	stop()
	house.Must(t, <-finished)
	over, err := v.Store.Entries(t.Context(), store.EntryQuery{Action: string(rotation.HandedOver), Limit: 10})
	if err != nil || len(over) != 1 {
		t.Errorf("%d hand-overs: %v", len(over), err)
	}
}

func TestOnlyWhatWasAgreedToIsPutInForce(t *testing.T) {
	for name, try := range map[string]struct {
		how  func(v *vault, row rotation.Rotation) error
		kind fault.Kind
		says string
	}{
		"another key in it": {func(v *vault, row rotation.Rotation) error {
			other, err := v.Ring.Propose([]string{ledger.KeyOrder, ledger.KeyLog}, time.Now().Add(time.Hour))
			house.Must(v.t, err)
			_, err = v.x.Bring(v.t.Context(), v.ada.Principal, v.Root(other.Text))
			return err
		}, fault.Denied, "not the one that was agreed to"},
		"signed by nobody": {func(v *vault, row rotation.Rotation) error {
			_, err := v.x.Bring(v.t.Context(), v.ada.Principal, []byte(row.Body))
			return err
		}, fault.Denied, ""},
		"given up meanwhile": {func(v *vault, row rotation.Rotation) error {
			_, err := v.x.Drop(v.t.Context(), v.bob.Principal)
			house.Must(v.t, err)
			return v.bring(row)
		}, fault.Denied, "not the one that was agreed to"},
		"brought by who may not": {func(v *vault, row rotation.Rotation) error {
			_, err := v.x.Bring(v.t.Context(), v.dev.Principal, v.Root([]byte(row.Body)))
			return err
		}, fault.Denied, ""},
		"too late": {func(v *vault, row rotation.Rotation) error {
			v.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
				_, err := tx.Exec(`UPDATE rotations SET until = $1 WHERE id = $2`, tx.Now().Add(time.Minute).Unix(), row.ID)
				return []ledger.Entry{{Action: "test.late", Object: row.ID, Version: 100}}, err
			})
			return v.bring(row)
		}, fault.Conflict, "the old keys would end at once"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			before, _ := v.Ring.Bundle()
			row := v.ask(time.Hour)
			house.Must(t, v.approve(v.bob, row))
			err := try.how(v, row)
			if err == nil || !strings.Contains(err.Error(), try.says) || try.says != "" && fault.KindOf(err) != try.kind {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
			if now, _ := v.Ring.Bundle(); now.Version != before.Version {
				t.Errorf("bundle %d is in force", now.Version)
			}
		})
	}
}

// What is agreed to is the row as it was asked for: who can write to the
// database alone gets no other keys agreed to.
func TestARequestThatWasChangedUnderItIsNotAgreedTo(t *testing.T) {
	for _, change := range []string{`body = 'x'`, `until = until + 3600`, `kinds = 'order'`, `approval = 'a-other'`, `state = 'dropped'`} {
		v := newVault(t)
		row := v.ask(time.Hour)
		v.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
			_, err := tx.Exec(`UPDATE rotations SET `+change+` WHERE id = $1`, row.ID)
			return []ledger.Entry{{Action: "test.changed", Object: row.ID, Version: 100}}, err
		})
		if err := v.approve(v.bob, row); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: %v", change, err)
		}
	}
}

func TestWhatIsAskedForHasAReasonAndBounds(t *testing.T) {
	v := newVault(t)
	order := []string{ledger.KeyOrder}
	for name, try := range map[string]struct {
		kinds   []string
		overlap time.Duration
		reason  string
	}{
		"no reason":   {order, time.Hour, " \n"},
		"a novel":     {order, time.Hour, strings.Repeat("x", 501)},
		"at once":     {order, rotation.MinOverlap - 1, "why"},
		"for ever":    {order, rotation.MaxOverlap + 1, "why"},
		"before now":  {order, -time.Hour, "why"},
		"no key":      {nil, time.Hour, "why"},
		"a wrong key": {[]string{"root"}, time.Hour, "why"},
		"one twice":   {[]string{ledger.KeyOrder, ledger.KeyOrder}, time.Hour, "why"},
	} {
		if _, err := v.x.Ask(t.Context(), v.ada.Principal, try.kinds, try.overlap, try.reason); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := v.x.Ask(t.Context(), v.dev.Principal, order, time.Hour, "why")
	house.Want(t, err, fault.Denied, "")
	if row, err := v.x.Open(t.Context()); err != nil || row.ID != "" {
		t.Errorf("%+v is open: %v", row, err)
	}
	for _, overlap := range []time.Duration{rotation.MinOverlap, rotation.MaxOverlap} {
		row := v.ask(overlap)
		_, err := v.x.Ask(t.Context(), v.bob.Principal, order, time.Hour, "two at once")
		house.Want(t, err, fault.Conflict, row.ID+" is under way")
		_, err = v.x.Drop(t.Context(), v.bob.Principal)
		house.Must(t, err)
	}
}

func TestARotationThatIsGivenUpOrRefusedLeavesNoKeys(t *testing.T) {
	for name, end := range map[string]func(v *vault, row rotation.Rotation) error{
		"given up": func(v *vault, _ rotation.Rotation) error {
			_, err := v.x.Drop(v.t.Context(), v.ada.Principal)
			return err
		},
		"refused": func(v *vault, row rotation.Rotation) error {
			_, err := v.Store.Record(v.t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
				_, entries, err := v.approvals.DenyTx(tx, v.bob.Principal, row.Approval, "not today")
				return entries, err
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			row := v.ask(time.Hour)
			house.Must(t, end(v, row))
			sealed := "there"
			house.Must(t, v.Store.View(t.Context(), func(q *store.View) (err error) {
				sealed, err = store.One[string](q, `SELECT sealed FROM rotations WHERE id = $1 AND state = 'dropped'`, row.ID)
				return err
			}))
			if sealed != "" {
				t.Error("the new keys lie there")
			}
			if actions, _ := v.said(row.ID); !slices.Equal(actions, []ledger.Action{rotation.Asked, rotation.Dropped}) {
				t.Errorf("the ledger says %v", actions)
			}
			_, err := v.x.Drop(t.Context(), v.ada.Principal)
			house.Want(t, err, fault.NotFound, "none is open")
			v.ask(time.Hour) // another may be asked for
		})
	}
}

// Neither who is locked agrees, nor anybody for who is.
func TestWhoIsLockedAgreesToNoKeys(t *testing.T) {
	v := newVault(t)
	row := v.ask(time.Hour)
	v.Lock(v.bob)
	house.Want(t, v.approve(v.bob, row), fault.Denied, "locked")
	v.Lock(v.ada)
	carl := v.Person("carl", "admin")
	house.Want(t, v.approve(carl, row), fault.Denied, "is locked") // for who asked is
	if actions, _ := v.said(row.ID); len(actions) != 1 {
		t.Errorf("the ledger says %v", actions)
	}
}
