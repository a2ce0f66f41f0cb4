package session_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// sentOut reads what a watcher still gets, until the end.
func sentOut(t *testing.T, a *session.Attachment) (words string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		e, err := a.Recv(ctx)
		if err == io.EOF {
			return words
		}
		if err != nil {
			t.Fatalf("the watcher was not sent out: %v (%q)", err, words)
		}
		words += e.Text
	}
}

// Whoever joined a session of somebody else types into it, so a lock, a logout
// or another group must end that as surely as their own sessions.
func TestWhoMayNoLongerWatchIsSentOut(t *testing.T) {
	for name, change := range map[string]struct {
		to    func(*world, identity.Principal)
		words string
	}{
		"locked": {func(w *world, bob identity.Principal) {
			w.sessions.EndByPerson(t.Context(), bob.ID, bob.Epoch+1, "gone rogue")
		}, "you are locked: gone rogue"},
		"logged out": {func(w *world, bob identity.Principal) {
			fatal(t, w.People.Logout(t.Context(), bob))
			w.sessions.Recheck()
		}, "this login was ended"},
		"of another group": {func(w *world, bob identity.Principal) {
			w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
				_, e, err := w.People.SetGroupsTx(tx, identity.Principal{ID: ledger.System}, bob.ID, []string{"developer"})
				return e, err
			})
			w.sessions.Recheck()
		}, "cannot go on"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, recording.Deps{}, session.Bounds{})
			ctx, stop := context.WithCancel(t.Context())
			loop := make(chan error, 1)
			go func() { loop <- w.sessions.RecheckLoop(ctx) }()
			defer func() { stop(); <-loop }()
			ada, bob, cem := w.person("ada", "developer"), w.person("bob", "operator"), w.person("cem", "operator")
			l, node, _ := w.open(ada, session.OpenRequest{PTY: true})
			joined, err := w.sessions.Watch(t.Context(), bob, l.ID(), session.ModeJoin)
			fatal(t, err)
			stays, err := w.sessions.Watch(t.Context(), cem, l.ID(), session.ModeJoin)
			fatal(t, err)
			fatal(t, joined.Send(session.Event{Kind: session.Input, Data: []byte("before")}))
			change.to(w, bob)
			if words := sentOut(t, joined); !strings.Contains(words, change.words) {
				t.Errorf("they read %q", words)
			}
			if err := joined.Send(session.Event{Kind: session.Input, Data: []byte("after")}); err == nil {
				t.Error("what they type still acts")
			}
			fatal(t, stays.Send(session.Event{Kind: session.Input, Data: []byte("mine")}))
			eventually(t, "their leaving is recorded", func() bool { return len(w.entries(session.Left)) == 1 })
			if typed := node.typed(); strings.Contains(typed, "after") || !strings.Contains(typed, "mine") {
				t.Errorf("the host got %q", typed)
			}
		})
	}
}

func TestATicketOfSomebodyWhoWasLockedMeanwhileIsWorthNothing(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada, bob := w.person("ada", "developer"), w.person("bob", "operator")
	l, _, _ := w.open(ada, session.OpenRequest{PTY: true})
	swept := must(w.sessions.Ticket(t.Context(), bob, l.ID(), session.ModeJoin))
	w.sessions.EndByPerson(t.Context(), bob.ID, bob.Epoch+1, "gone rogue")
	if _, err := w.sessions.Attach(l.ID(), swept); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("a ticket from before the lock: %v", err)
	}
	late := must(w.sessions.Ticket(t.Context(), bob, l.ID(), session.ModeJoin))
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := w.People.LockTx(tx, ada.ID, bob.ID, "gone rogue")
		return e, err
	})
	if _, err := w.sessions.Attach(l.ID(), late); err == nil {
		t.Error("a ticket that the sweep did not see let a locked person in")
	}
	if n := len(l.Info().Watchers); n != 0 {
		t.Errorf("%d watch", n)
	}
}
