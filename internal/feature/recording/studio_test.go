package recording

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// book is a ledger in memory.
type book struct {
	mu      sync.Mutex
	entries []store.Recorded
	away    bool
}

func (b *book) Record(_ context.Context, _ string, fn func(*store.Tx) ([]ledger.Entry, error)) (store.Receipt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return nil, errors.New("away")
	}
	entries, err := fn(nil)
	if err != nil {
		return nil, err
	}
	b.add(entries...)
	return nil, nil
}

func (b *book) add(entries ...ledger.Entry) {
	for _, e := range entries {
		payload, _ := json.Marshal(e.Payload)
		b.entries = append(b.entries, store.Recorded{Seq: int64(len(b.entries)), Payload: payload,
			Parsed: ledger.Leaf{Action: e.Action, Session: e.Session, Outcome: e.Outcome}})
	}
}

func (b *book) all(fn func(store.Recorded) error) error {
	for _, e := range b.entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// keys seal nothing: what is tested here is what the recording does with them.
type keys struct{}

func (keys) Seal(_ string, plain, _ []byte) ([]byte, error)  { return plain, nil }
func (keys) Open(_ string, sealed, _ []byte) ([]byte, error) { return sealed, nil }
func (keys) WrapReplay(k []byte) ([]byte, error)             { return k, nil }
func (keys) OpenReplay(k []byte) ([]byte, error)             { return k, nil }

type studio struct {
	t testing.TB
	*Recordings
	book *book
}

func newStudio(t testing.TB, b Bounds) *studio {
	t.Helper()
	return newStudioWith(t, Deps{Bounds: b})
}

func newStudioWith(t testing.TB, d Deps) *studio {
	t.Helper()
	b := &book{}
	if d.Dir == "" {
		d.Dir = t.TempDir()
	}
	d.Store, d.Subjects, d.Replay = b, keys{}, keys{}
	r, err := New(d)
	fatal(t, err)
	return &studio{t, r, b}
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *studio) begin(session string, pty bool) *Recorder {
	s.t.Helper()
	d, err := s.Draft(Header{Session: session, Person: "p-00000001", Host: "h-00000001", Kind: "shell", PTY: pty, Cols: 80, Rows: 24})
	fatal(s.t, err)
	s.book.add(d.Entry())
	res, err := s.Reserve()
	fatal(s.t, err)
	rec, err := s.Create(d, res)
	fatal(s.t, err)
	return rec
}

func (s *studio) end(rec *Recorder) Closed {
	s.t.Helper()
	c, err := rec.Close()
	fatal(s.t, err)
	s.book.add(c.Entries...)
	return c
}

func (s *studio) read(session string) []Event {
	s.t.Helper()
	r, err := s.Open(s.t.Context(), session)
	fatal(s.t, err)
	defer r.Close()
	var out []Event
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		fatal(s.t, err)
		e.Data = bytes.Clone(e.Data)
		out = append(out, e)
	}
}

func (s *studio) findings() []ledger.Finding {
	s.t.Helper()
	_, f, err := s.VerifyBlobs(s.t.Context(), s.book.all)
	fatal(s.t, err)
	return f
}

const id = "s-00000001"
