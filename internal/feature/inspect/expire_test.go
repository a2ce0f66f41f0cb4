package inspect

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// shelf is a house with a place for core dumps.
type shelf struct {
	*house.House
	t     *testing.T
	blobs blob.Store
	x     *Inspections
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(approval.Schema(), Schema()...)})
	t.Cleanup(h.Close)
	blobs, err := blob.OpenFiles(t.TempDir())
	house.Must(t, err)
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	return &shelf{h, t, blobs, New(Deps{
		Store: h.Store, Door: door, Hosts: h.Hosts, People: h.People, Rules: h.Force, LockEpoch: h.People.LockEpochTx,
		Seals: h.Ring.Subjects(), Blobs: blobs,
	})}
}

// put puts a request as it lies when its take has come to a state: its key is
// there, and a part of it.
func (s *shelf) put(id, kind, state string, until time.Time) Agreed {
	s.t.Helper()
	look := "n-" + id[2:]
	key, err := s.Ring.Subjects().Seal(look, []byte("the private half"), []byte(id))
	house.Must(s.t, err)
	house.Must(s.t, s.blobs.Put(s.t.Context(), partName(look, 0), strings.NewReader("noise")))
	s.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`INSERT INTO inspect_agreed (id, kind, person, host, approval, state, asked, until, taken, look, home, bytes, sealed, parts, key, removed, version)
VALUES ($1, $2, 'p-1', 'h-1', 'a-1', $3, 1, $4, 1, $5, '', 5, 5, '', $6, 0, 3)`, id, kind, state, until.UnixMicro(), look, base64.StdEncoding.EncodeToString(key))
		return []ledger.Entry{{Action: "test.put", Object: id, Version: 3}}, err
	})
	return s.row(id)
}

func (s *shelf) row(id string) (a Agreed) {
	s.t.Helper()
	house.Must(s.t, s.Store.View(s.t.Context(), func(v *store.View) (err error) {
		a, err = agreedTx(v, id)
		return err
	}))
	return a
}

// opens says whether the key of a dump can still be had.
func (s *shelf) opens(a Agreed) bool {
	s.t.Helper()
	key, err := base64.StdEncoding.DecodeString(a.Key)
	house.Must(s.t, err)
	_, err = s.Ring.Subjects().Open(a.Look, key, []byte(a.ID))
	return err == nil
}

// parts is how many parts of a dump lie there.
func (s *shelf) parts(a Agreed) (n int) {
	s.t.Helper()
	for _, err := range s.blobs.List(s.t.Context(), "cores/"+a.Look+"/") {
		house.Must(s.t, err)
		n++
	}
	return n
}

// destroyed is how many dumps were, by the ledger.
func (s *shelf) destroyed() (n int) {
	s.t.Helper()
	list, err := s.Store.Entries(s.t.Context(), store.EntryQuery{Action: string(CoreDestroyed), Limit: 100})
	house.Must(s.t, err)
	return len(list)
}

func TestADumpIsDestroyedWhenItsTimeIsOverAndNotBefore(t *testing.T) {
	s := newShelf(t)
	now := time.Now()
	late := s.put("c-late00001", KindCore, StateKept, now.Add(-time.Second))
	early := s.put("c-early0001", KindCore, StateKept, now.Add(20*time.Second))
	next, err := s.x.Expire(t.Context(), now)
	house.Must(t, err)
	if next <= 0 || next > 20*time.Second {
		t.Errorf("the next look is in %v", next)
	}
	if got := s.row(late.ID); got.State != StateGone || got.Key != "" || s.opens(late) || s.parts(late) != 0 {
		t.Errorf("left of what is over: %+v, %d parts, key there: %v", got, s.parts(late), s.opens(late))
	}
	if got := s.row(early.ID); got.State != StateKept || !s.opens(early) || s.parts(early) != 1 {
		t.Errorf("destroyed before its time: %+v", got)
	}
	if _, err := s.x.Expire(t.Context(), now); err != nil || s.destroyed() != 1 {
		t.Errorf("%d entries, %v", s.destroyed(), err)
	}
	if err := s.x.expire(t.Context(), late); err != nil || s.destroyed() != 1 {
		t.Errorf("another server that does the same: %d entries, %v", s.destroyed(), err)
	}
}

func TestWhatACrashLeftOfATakeCanBeOpenedByNobody(t *testing.T) {
	s := newShelf(t)
	until := time.Now().Add(time.Hour)
	dump := s.put("c-dump00001", KindCore, StateTaking, until)
	value := s.put("c-value0001", KindUnmask, StateTaking, until)
	house.Must(t, s.x.Start(t.Context()))
	if got := s.row(dump.ID); got.State != StateAgreed || s.opens(dump) || s.parts(dump) != 0 {
		t.Errorf("a dump that was cut off: %+v, %d parts, key there: %v", got, s.parts(dump), s.opens(dump))
	}
	if got := s.row(value.ID); got.State != StateShown {
		t.Errorf("a value that may have been shown is %s: it could be shown twice", got.State)
	}
	if n := s.destroyed(); n != 2 {
		t.Errorf("%d entries", n)
	}
}
