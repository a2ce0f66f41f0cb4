package access

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// Approve says that the actor agrees to a request of any kind: exactly to the
// bytes whose hash they saw. id is that of the request or of what it is about.
func (x *Access) Approve(ctx context.Context, id string, hash []byte, ev approval.Evidence) (approval.Approval, error) {
	return x.decide(ctx, id, func(tx *store.Tx, by identity.Principal) (approval.Approval, []ledger.Entry, error) {
		return x.d.Approvals.ApproveTx(tx, by, id, hash, ev)
	})
}

// Deny says that the actor refuses it, which ends it.
func (x *Access) Deny(ctx context.Context, id, reason string) (approval.Approval, error) {
	if len(reason) > maxReason {
		return approval.Approval{}, fault.New(fault.Invalid, "cannot deny: the reason may have %d characters", maxReason)
	}
	return x.decide(ctx, id, func(tx *store.Tx, by identity.Principal) (approval.Approval, []ledger.Entry, error) {
		return x.d.Approvals.DenyTx(tx, by, id, reason)
	})
}

func (x *Access) decide(ctx context.Context, id string, how func(*store.Tx, identity.Principal) (approval.Approval, []ledger.Entry, error)) (approval.Approval, error) {
	by, err := actor(ctx)
	if err != nil {
		return approval.Approval{}, err
	}
	var a approval.Approval
	_, err = x.d.Door.Do(ctx, doorway.Act{
		Action: "approvals.decide", By: by,
		Facts: func(q store.Queryer, c *policy.Context) error {
			a, err := x.d.Approvals.GetTx(q, id)
			c.Self = a.Requester == by.ID
			return err
		},
		Open: func(tx *store.Tx, _ policy.Decision) (entries []ledger.Entry, err error) {
			a, entries, err = how(tx, by)
			return entries, err
		},
	}, nil)
	if err != nil {
		return approval.Approval{}, err
	}
	x.settled(ctx, a)
	return a, nil
}

// settled carries out what follows from a decision about a grant.
func (x *Access) settled(ctx context.Context, a approval.Approval) {
	x.poke()
	if a.State == approval.Requested || a.Kind != KindGrant && a.Kind != KindRatification {
		return
	}
	var g Grant
	err := x.d.Store.View(ctx, func(v *store.View) (err error) {
		g, err = getTx(v, a.Subject)
		return err
	})
	if err != nil {
		return // Run finds the grant again
	}
	x.enforce(ctx, g)
	x.tell(ctx, g, Effect{Kind: EffectTell, Grant: g.ID, Why: string(g.State)})
}

// Show returns one request as the actor sees it.
func (x *Access) Show(ctx context.Context, id string) (approval.Shown, error) {
	list, err := x.show(ctx, func(q store.Queryer) ([]approval.Approval, error) {
		a, err := x.d.Approvals.GetTx(q, id)
		return []approval.Approval{a}, err
	})
	if err != nil {
		return approval.Shown{}, err
	}
	return list[0], nil
}

// ShowAll returns requests as the actor sees them, newest first.
func (x *Access) ShowAll(ctx context.Context, openOnly bool) ([]approval.Shown, error) {
	return x.show(ctx, func(q store.Queryer) ([]approval.Approval, error) { return x.d.Approvals.ListTx(q, openOnly) })
}

func (x *Access) show(ctx context.Context, which func(store.Queryer) ([]approval.Approval, error)) ([]approval.Shown, error) {
	by, err := actor(ctx)
	if err != nil {
		return nil, err
	}
	if err := x.d.Door.Read(ctx, doorway.Act{Action: "approvals.list", By: by}); err != nil {
		return nil, err
	}
	var shown []approval.Shown
	err = x.d.Store.View(ctx, func(v *store.View) error {
		list, err := which(v)
		if err != nil {
			return err
		}
		shown = make([]approval.Shown, len(list))
		for i, a := range list {
			if shown[i], err = x.d.Approvals.ShowTx(v, by, a, time.Now().UTC()); err != nil {
				return err
			}
		}
		return nil
	})
	return shown, err
}
