package session_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// hanging is a ledger whose database does not answer.
type hanging struct {
	asked, answers chan struct{}
	recording.Ledger
}

func (h *hanging) Record(ctx context.Context, id string, fn func(*store.Tx) ([]ledger.Entry, error)) (store.Receipt, error) {
	h.asked <- struct{}{}
	<-h.answers
	return h.Ledger.Record(ctx, id, fn)
}

// Whose session is over is told so before anything waits for the database.
func TestTheEndIsToldBeforeItIsRecorded(t *testing.T) {
	h := &hanging{asked: make(chan struct{}, 8), answers: make(chan struct{})}
	w := newWorld(t, recording.Deps{Store: h}, session.Bounds{})
	h.Ledger = w.Store
	answer := sync.OnceFunc(func() { close(h.answers) })
	t.Cleanup(answer)
	ada := w.person("ada", "operator")
	l, node, o := w.open(ada, session.OpenRequest{PTY: true})
	node.says("the last words")
	eventually(t, "it is seen", func() bool { return o.text() != "" })
	watch, err := w.sessions.Watch(ctx, w.person("bob", "operator"), l.ID(), session.ModeWatch)
	fatal(t, err)
	go w.recordings.Tend(ctx, time.Now().Add(time.Hour))
	<-h.asked // the hashes of pieces are on their way to a database that is away
	fatal(t, node.Close())
	eventually(t, "the owner knows", o.left)
	for e := must(watch.Recv(ctx)); e.Kind != session.Notice || e.Notice != session.NoticeEnded; e = must(watch.Recv(ctx)) {
	}
	select {
	case <-l.Done():
		t.Error("it was recorded while the database was away")
	default:
	}
	answer()
	<-l.Done()
	if n := len(w.entries(session.Closed)); n != 1 {
		t.Errorf("%d closing entries", n)
	}
}
