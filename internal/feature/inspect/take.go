package inspect

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

const maxDumps = 2 // that one server takes at once

// taking is a request on its way to what was asked for.
type taking struct {
	row     Agreed
	request approval.Approval
	terms   terms
	host    target.Host
	spec    wire.InspectSpec
	key     []byte // of a dump: the private half, sealed
}

// begin finds what is to be taken. All of it is looked at again in the deciding
// transaction.
func (s *Inspections) begin(ctx context.Context, by identity.Principal, id, kind string) (t taking, err error) {
	err = s.d.Store.View(ctx, func(v *store.View) error {
		if t.row, err = agreedTx(v, id); err != nil {
			return err
		}
		if t.row.Kind != kind {
			return fault.New(fault.Invalid, "cannot take %s: it is a request of another kind", t.row.ID).WithHint("handrail inspect core list")
		}
		if t.request, err = approval.Lookup(v, t.row.Approval); err != nil {
			return err
		}
		if t.host, err = s.d.Hosts.GetTx(v, t.row.Host); err != nil {
			return err
		}
		return s.mayTake(v, by, t, time.Now())
	})
	if err != nil {
		return t, err
	}
	if err = approval.Read(t.row.Kind, t.request.Request, &t.terms); err != nil {
		return t, err
	}
	t.spec = wire.InspectSpec{ID: store.NewID('n'), Person: by.ID, PersonName: by.Name, Target: t.terms.Target}
	if kind == KindUnmask {
		t.spec.What, t.spec.TimeMS = wire.InspectEnv, s.timeFor(t.host)
		t.spec.Unmask = &wire.UnmaskSpec{Process: t.terms.Process, Name: t.terms.Name, Key: t.terms.Key}
		return t, nil
	}
	public, private, err := seal.NewKey()
	if err != nil {
		return t, err
	}
	if t.key, err = s.d.Seals.Seal(t.spec.ID, private, []byte(t.row.ID)); err != nil {
		return t, err
	}
	t.spec.What, t.spec.TimeMS, t.spec.PauseMS = wire.InspectCore, wire.MaxCoreTime, t.terms.PauseMS
	t.spec.Core = &wire.CoreSpec{Process: t.terms.Process, Most: t.terms.Most, Key: public}
	return t, nil
}

// mayTake is what has to be true beside the rules of policy.
func (s *Inspections) mayTake(q store.Queryer, by identity.Principal, t taking, now time.Time) error {
	switch {
	case t.row.Person != by.ID:
		return fault.New(fault.Denied, "cannot take %s: it was asked for by somebody else", t.row.ID).WithRule("only-who-asked")
	case t.row.State == StateAsked:
		return fault.New(fault.NeedsApproval, "cannot take %s: nobody has agreed yet", t.row.ID).WithHint("somebody else: handrail approve %s", t.row.Approval)
	case t.row.State != StateAgreed:
		return fault.New(fault.Conflict, "cannot take %s: it is %s", t.row.ID, t.row.State).WithHint("ask again")
	case t.row.Until <= now.UnixMicro():
		return fault.New(fault.Conflict, "cannot take %s: it had to be taken within %s of the approval", t.row.ID, takeWithin).WithHint("ask again")
	case t.request.State != approval.Approved || t.request.Requester != by.ID || t.request.Kind != t.row.Kind:
		return fault.New(fault.Denied, "cannot take %s: what was agreed to is not this", t.row.ID)
	}
	standing, err := s.approvers(q, t.request)
	if err != nil {
		return err
	}
	if len(standing) < t.request.Rule.Needed {
		return fault.New(fault.Denied, "cannot take %s: who agreed was locked since", t.row.ID).WithHint("ask again")
	}
	if t.row.Kind == KindCore {
		return s.mayDump(q, by, t.host, now)
	}
	return nil
}

// open spends the request and writes the order.
func (s *Inspections) open(tx *store.Tx, by identity.Principal, t taking) ([]ledger.Entry, error) {
	var err error
	if t.row, err = agreedTx(tx, t.row.ID); err != nil {
		return nil, err
	}
	if t.request, err = approval.Lookup(tx, t.row.Approval); err != nil {
		return nil, err
	}
	if err := s.mayTake(tx, by, t, tx.Now()); err != nil {
		return nil, err
	}
	if t.row.Kind == KindCore {
		if err := s.roomTx(tx, t.terms.Most); err != nil {
			return nil, err
		}
	}
	t.row.Taken, t.row.Home, t.row.Look = tx.Now().UnixMicro(), s.d.Home, t.spec.ID
	if _, err := t.row.to(tx, StateTaking); err != nil {
		return nil, err
	}
	authority := t.request.Authority()
	return s.opened(tx, by, t.host, t.spec, &authority)
}

// settle is where a request stands after its take.
func settle(tx *store.Tx, id string, outcome ledger.Outcome, done func(*Agreed) string) error {
	row, err := agreedTx(tx, id)
	if err != nil {
		return err
	}
	if row.State != StateTaking {
		return fault.New(fault.Conflict, "cannot close %s: it is %s", row.ID, row.State)
	}
	if outcome != ledger.OK { // nothing of it can be opened: it may be tried again
		_, err = row.to(tx, StateAgreed)
		return err
	}
	state := done(&row)
	_, err = row.to(tx, state)
	return err
}

// do is a take, from the decision to its outcome.
func (s *Inspections) do(ctx context.Context, by identity.Principal, t taking, l listener, done func(*Agreed) string, more func(closedPayload) ([]ledger.Entry, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.enter(by.ID, t.spec.ID, cancel); err != nil {
		return err
	}
	defer s.leave(by.ID, t.spec.ID)
	act := doorway.Act{Action: t.row.Kind, By: by, Host: &t.host, Context: policy.Context{Level: "read", Inspect: t.spec.What, Self: true}, ID: t.spec.ID,
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) { return s.open(tx, by, t) },
		Close: func(tx *store.Tx, outcome ledger.Outcome) error {
			if err := end(tx, t.spec.ID, outcome); err != nil {
				return err
			}
			return settle(tx, t.row.ID, outcome, done)
		}}
	_, err := s.d.Door.Do(ctx, act, func(ctx context.Context, pass doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		outcome, entries, p, err := s.run(ctx, pass, t.spec, t.host, l)
		if err == nil && outcome == ledger.OK {
			var also []ledger.Entry
			if also, err = more(p); err != nil {
				entries[0].Outcome = ledger.Failed
				return ledger.Failed, entries, err
			}
			entries = append(entries, also...)
		}
		return outcome, entries, err
	})
	return err
}

// Unmask has the host say the value, sealed to who asked. It is done once.
func (s *Inspections) Unmask(ctx context.Context, by identity.Principal, id string) (box []byte, info string, err error) {
	t, err := s.begin(ctx, by, id, KindUnmask)
	if err != nil {
		return nil, "", err
	}
	l := listener{begun: func(Asked) error { return nil }, each: func(r wire.InspectRecord) error {
		if r.Sealed != nil {
			box = r.Sealed
		}
		return nil
	}}
	err = s.do(ctx, by, t, l, func(*Agreed) string { return StateShown }, func(closedPayload) ([]ledger.Entry, error) {
		if box == nil {
			return nil, fault.New(fault.Unavailable, "cannot unmask %s: its node says nothing", t.terms.Name)
		}
		return []ledger.Entry{{Action: Unmasked, Subjects: s.involved(ctx, t), Target: t.host.Path(), Object: t.row.ID, Version: 2,
			Payload: corePayload{V: 1, ID: t.row.ID, Inspection: t.spec.ID, Approval: t.row.Approval, Is: t.terms.Is, Name: t.terms.Name, Why: t.terms.Why}}}, nil
	})
	return box, t.spec.SealInfo(), err
}

// involved are who asked and who agreed.
func (s *Inspections) involved(ctx context.Context, t taking) []string {
	ids := []string{t.row.Person}
	_ = s.d.Store.View(ctx, func(v *store.View) error { // the approval itself is in the ledger in any case
		more, err := s.approvers(v, t.request)
		if err == nil {
			ids = append(ids[:1], more...)
		}
		return err
	})
	return ids
}
