package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// This file ties what happens to who is told: the ledger's entries become
// topics, and the state of features becomes banners and what needs somebody.

// sources is asked anew each time somebody looks.
func (s *Server) sources() []notice.Source {
	return []notice.Source{
		{Banners: s.breakGlassBanners},
		{Banners: s.damageBanners},
		{Banners: s.cutBanners},
		{Banners: s.witnessBanners},
		{Banners: s.voucherBanners},
		{Banners: s.webhookBanners},
		{Banners: s.directoryBanners},
		{Attention: s.openApprovals},
		{Attention: s.owedReviews},
	}
}

func (s *Server) breakGlassBanners(ctx context.Context) (out []notice.Banner, err error) {
	inForce, err := s.inForce(ctx)
	for _, g := range inForce {
		if g.Kind == access.BreakGlass {
			out = append(out, notice.Banner{Loud: true, Text: fmt.Sprintf("BREAK-GLASS: %s may write on %s until %s: %s",
				g.PersonName, strings.Join(hostNames(g), ", "), time.UnixMicro(g.Expires).UTC().Format("15:04 MST"), g.Reason)})
		}
	}
	return out, err
}

func (s *Server) inForce(ctx context.Context) (list []access.Grant, err error) {
	err = s.store.View(ctx, func(v *store.View) error {
		list, err = access.InForceTx(v, time.Now())
		return err
	})
	return list, err
}

func hostNames(g access.Grant) (names []string) {
	for _, t := range g.Targets {
		names = append(names, t.Name)
	}
	return names
}

func (s *Server) damageBanners(context.Context) (out []notice.Banner, err error) {
	if damage := s.store.Damage(); damage != nil {
		out = append(out, notice.Banner{Loud: true, Text: "the ledger accepts no new entry: " + damage.Error()})
	}
	if s.recordings.Full() {
		out = append(out, notice.Banner{Loud: true, Text: "the disk is full: nothing can be recorded, so no session opens; locks and stops work"})
	}
	return out, nil
}

func (s *Server) openApprovals(ctx context.Context, by identity.Principal) (out []string, err error) {
	err = s.store.View(ctx, func(v *store.View) error {
		open, err := s.approvals.ListTx(v, true)
		if err != nil {
			return err
		}
		for _, a := range open {
			shown, err := s.approvals.ShowTx(v, by, a, time.Now())
			if err != nil {
				return err
			}
			if shown.MayNot == nil {
				out = append(out, "waits for your yes or no: "+shown.Description.Summary+" (handrail approve "+a.ID+")")
			}
		}
		return nil
	})
	return out, err
}

func (s *Server) owedReviews(ctx context.Context, by identity.Principal) (out []string, err error) {
	err = s.store.View(ctx, func(v *store.View) error {
		owes, err := access.OwesReview(v, by.ID)
		if owes {
			out = append(out, "a break-glass of yours waits for its review by somebody else")
		}
		return err
	})
	return out, err
}

// topics says which topic an entry concerns, by the noun of its action.
var topics = map[string]notice.Topic{
	"host": notice.Hosts, "node": notice.Hosts, "session": notice.Sessions, "approval": notice.Approvals,
	"grant": notice.Grants, "person": notice.People, "people": notice.People, "directory": notice.People, "device": notice.People, "passkey": notice.People,
	"policy": notice.Policy, "bootstrap": notice.Installation, "witness": notice.Installation,
	"voucher": notice.Installation, "webhook": notice.Installation, "breakglass": notice.Sessions,
}

// followAgain is how long follow waits after an error.
const followAgain = time.Second

// follow wakes whoever looks at what an entry changed. It never gives up: a
// database that is away, or a ledger that was touched, takes nothing from
// brakes and from reading, so it must not end the server either.
func (s *Server) follow(ctx context.Context) error {
	after := int64(-1)
	for ctx.Err() == nil {
		err := s.followFrom(ctx, &after)
		if err != nil && ctx.Err() == nil {
			s.c.Log.Warn("cannot follow the ledger", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
	}
	return nil
}

// followFrom follows from the entry after, or from now if it is negative.
func (s *Server) followFrom(ctx context.Context, after *int64) error {
	if *after < 0 {
		if s.store.Damage() != nil {
			<-ctx.Done() // nothing new comes until somebody starts us anew
			return nil
		}
		tree, _, err := s.store.Head(ctx)
		if err != nil {
			return err
		}
		*after = tree.N - 1
		if err := s.sessions.Reload(ctx); err != nil {
			*after = -1
			return err
		}
	}
	return s.store.Follow(ctx, *after, func(e store.Recorded) error {
		for _, n := range eventsOf(e) {
			s.notices.Publish(n)
		}
		s.loudly(e)
		s.heardDirectory(e)
		s.followServers(ctx, e)
		if watchersMayChange(e) {
			s.sessions.Recheck()
		}
		*after = e.Seq
		return nil
	})
}

// watchersMayChange says whether an entry can make that somebody who watches a
// session may no longer.
func watchersMayChange(e store.Recorded) bool {
	noun, _, _ := strings.Cut(string(e.Parsed.Action), ".")
	return noun == "person" || noun == "people" || noun == "policy" || noun == "credential" || e.Parsed.Action == identity.LoginEnded
}

func eventsOf(e store.Recorded) []notice.Event {
	noun, _, _ := strings.Cut(string(e.Parsed.Action), ".")
	out := []notice.Event{{Topic: notice.Ledger}}
	if alarm, ok := mismatchOf(e); ok {
		out = append(out, alarm)
	}
	if alarm, ok := alarmOf(e); ok {
		out = append(out, alarm)
	}
	if alarm, ok := webhookAlarm(e); ok {
		out = append(out, alarm)
	}
	topic, ok := topics[noun]
	if !ok {
		return out
	}
	id := e.Parsed.Object
	switch {
	case topic == notice.Sessions:
		id = e.Parsed.Session
	case topic == notice.Hosts:
		id = strings.TrimPrefix(e.Parsed.Target, "host/")
	}
	out = append(out, notice.Event{Topic: topic, ID: id})
	if topic == notice.Grants || topic == notice.Hosts || topic == notice.Policy || e.Parsed.Action == "person.locked" {
		out = append(out, notice.Event{Topic: notice.Installation}) // banners and counts
	}
	return out
}

// loudly tells every live session on the hosts of a break-glass.
func (s *Server) loudly(e ledger.Recorded) {
	if e.Parsed.Action != access.ActionDeclared {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	inForce, err := s.inForce(ctx)
	if err != nil {
		return // the banner tells all the same
	}
	for _, g := range inForce {
		if g.ID != e.Parsed.Object {
			continue
		}
		for _, t := range g.Targets {
			s.sessions.TellHost(t.ID, fmt.Sprintf("BREAK-GLASS by %s on %s: %s", g.PersonName, t.Name, g.Reason))
		}
	}
}
