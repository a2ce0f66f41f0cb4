package notice

import (
	"context"
	"errors"
	"testing"

	"handrail.dev/handrail/internal/foundation/identity"
)

func TestAnEventReachesWhomItConcernsAndNobodyElse(t *testing.T) {
	h := New()
	ann, _ := h.Subscribe(identity.Principal{ID: "p-ann", Groups: []string{"operator"}})
	bob, _ := h.Subscribe(identity.Principal{ID: "p-bob"})
	h.Publish(Event{Topic: Approvals, ID: "a-1", Group: "operator", Urgency: Told})
	h.Publish(Event{Topic: Sessions, ID: "s-1", Not: "p-ann"})
	if e, err := ann.Next(t.Context()); err != nil || e.ID != "a-1" {
		t.Fatalf("ann got %+v, %v", e, err)
	}
	if e, err := bob.Next(t.Context()); err != nil || e.ID != "s-1" {
		t.Fatalf("bob got %+v, %v", e, err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := ann.Next(done); err == nil {
		t.Fatalf("ann got %+v too", e)
	}
}

func TestASlowSubscriberIsToldToLookAtEverything(t *testing.T) {
	h := New()
	s, _ := h.Subscribe(identity.Principal{ID: "p-ann"})
	for range maxQueue * 3 {
		h.Publish(Event{Topic: Sessions, Urgency: Told})
	}
	for range maxQueue {
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if e, err := s.Next(t.Context()); err != nil || e.Topic != Everything {
		t.Fatalf("got %+v, %v", e, err)
	}
}

func TestTheSameChangeTwiceIsFetchedOnce(t *testing.T) {
	h := New()
	s, _ := h.Subscribe(identity.Principal{ID: "p-ann"})
	h.Publish(Event{Topic: Hosts, ID: "h-1"})
	h.Publish(Event{Topic: Hosts, ID: "h-1"})
	if len(s.queue) != 1 {
		t.Fatalf("%d events wait", len(s.queue))
	}
}

func TestABannerThatCannotBeReadIsShownAsThat(t *testing.T) {
	h := New(Source{Banners: func(context.Context) ([]Banner, error) { return []Banner{{Text: "quiet"}}, nil }},
		Source{Banners: func(context.Context) ([]Banner, error) { return nil, errors.New("the database is away") }})
	b := h.Banners(t.Context())
	if len(b) != 2 || !b[0].Loud || b[1].Text != "quiet" {
		t.Fatalf("got %+v", b)
	}
}

func TestOnePersonCannotTakeAllSubscriptions(t *testing.T) {
	h := New()
	for range maxPerPerson {
		if _, err := h.Subscribe(identity.Principal{ID: "p-ann"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Subscribe(identity.Principal{ID: "p-ann"}); err == nil {
		t.Fatal("one more was let in")
	}
	if _, err := h.Subscribe(identity.Principal{ID: "p-bob"}); err != nil {
		t.Fatal(err)
	}
}
