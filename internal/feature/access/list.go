package access

import (
	"context"
	"strings"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/store"
)

// maxListed bounds a list.
const maxListed = 500

// Filter says which grants are meant; the zero value means all.
type Filter struct {
	Open     bool   // live, or with a review owed
	InForce  bool   // active or paused
	Mine     bool   // of whoever asks
	AgreedBy string // by name or id: somebody whose approval of it counts
}

// List returns grants, newest first.
func (x *Access) List(ctx context.Context, f Filter) ([]Grant, error) {
	by, err := actor(ctx)
	if err != nil {
		return nil, err
	}
	if err := x.d.Door.Read(ctx, doorway.Act{Action: "grants.list", By: by}); err != nil {
		return nil, err
	}
	var list []Grant
	err = x.d.Store.View(ctx, func(v *store.View) (err error) {
		list, err = x.listTx(v, by, f)
		return err
	})
	return list, err
}

func (x *Access) listTx(q store.Queryer, by identity.Principal, f Filter) (list []Grant, err error) {
	var agreed map[string]bool
	if f.AgreedBy != "" {
		who, err := x.d.People.GetTx(q, f.AgreedBy)
		if err != nil {
			return nil, err
		}
		if agreed, err = x.d.Approvals.AgreedTx(q, who.ID); err != nil {
			return nil, err
		}
	}
	where := f.where() + `(g.person = $1 OR $2) ORDER BY g.requested DESC, g.id LIMIT $3 OFFSET $4`
	for seen := 0; len(list) < maxListed; seen += maxListed {
		page, err := find(q, where, by.ID, !f.Mine, maxListed, seen)
		if err != nil {
			return nil, err
		}
		for _, g := range page {
			if agreed == nil || agreed[g.Approval] {
				list = append(list, g)
			}
		}
		if len(page) < maxListed {
			break
		}
	}
	return list[:min(len(list), maxListed)], nil
}

// where chooses by state before a list is cut off: what is over must not push
// out what is not.
func (f Filter) where() string {
	var states []State
	switch {
	case f.InForce:
		states = []State{Active, Paused}
	case f.Open:
		states = []State{Requested, Approved, Active, Paused, InReview}
	default:
		return `WHERE `
	}
	quoted := make([]string, len(states))
	for i, s := range states {
		quoted[i] = `'` + string(s) + `'`
	}
	return `WHERE g.state IN (` + strings.Join(quoted, `, `) + `) AND `
}
