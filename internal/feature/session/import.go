package session

import (
	"context"
	"errors"
	"iter"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Foreign is a session that ran while no server saw it, as its host recorded it.
type Foreign struct {
	PTY        bool
	Term       string
	Cols, Rows uint16
	Events     iter.Seq[recording.Event]
	Ended      func() ForeignEnd                          // once Events has run
	Close      func(tx *store.Tx) ([]ledger.Entry, error) // what goes with the closing entry
}

// ForeignEnd is how it ended.
type ForeignEnd struct {
	Status int32
	Why    string
	At     time.Duration
	Lost   string // what is known to be missing
}

// Import makes a session of what a host recorded: a row, a recording that plays
// like any other, and the entries. If we crash in between, Start closes the row
// as lost, and the next Import of the same session only concludes it.
func (s *Sessions) Import(ctx context.Context, i Info, f Foreign) error {
	if old, err := s.Get(ctx, i.ID); err == nil && old.ID == i.ID {
		for range f.Events { // judged all the same
		}
		f.Ended()
		_, err := s.d.Store.Record(ctx, i.ID+"-imported", f.Close)
		return err
	}
	res, err := s.d.Recordings.Reserve()
	if err != nil {
		return err
	}
	draft, err := s.d.Recordings.Draft(recording.Header{
		Session: i.ID, Person: i.Person, Host: i.Host, Kind: i.Kind, PTY: f.PTY, Term: f.Term, Cols: f.Cols, Rows: f.Rows, Started: i.Started,
	})
	if err != nil {
		res.Release()
		return err
	}
	i.State, i.Version = StateLive, 1
	if _, err = s.d.Store.Record(ctx, i.ID+"-import", func(tx *store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{draft.Entry()}, insert(tx, i)
	}); err != nil {
		res.Release()
		return err
	}
	rec, err := s.d.Recordings.Create(draft, res)
	if err != nil {
		res.Release()
		return err
	}
	for e := range f.Events {
		if err = rec.WriteAt(e.Offset, e.Kind, e.Data); err != nil {
			break
		}
	}
	end := f.Ended()
	if err == nil && end.Lost != "" {
		err = rec.WriteAt(end.At, recording.Gap, []byte(end.Lost))
	}
	closed, cerr := rec.Close()
	if cerr != nil || err != nil {
		s.d.Log.Error("what a host recorded could not be kept whole", "session", i.ID, "error", errors.Join(err, cerr))
	}
	i.RecordingBytes = closed.Digest.Bytes
	p := closedPayload{V: 1, Session: i.ID, Why: end.Why, Text: end.Lost, Status: end.Status, Account: i.Account, Recording: &closed.Digest}
	outcome := ledger.OK
	if end.Lost != "" {
		outcome = ledger.Lost
	}
	_, err = s.d.Store.Record(ctx, i.ID+"-closed", func(tx *store.Tx) ([]ledger.Entry, error) {
		entries, err := closing(tx, i, outcome, p, closed.Entries)
		if err != nil {
			return nil, err
		}
		more, err := f.Close(tx)
		return append(entries, more...), err
	})
	if err == nil {
		s.d.Changed(i)
	}
	return err
}
