package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// The tests of this file are the contract of a store. Each runs on both
// databases.

func TestAChangeAndItsEntryCommitTogetherOrNotAtAll(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		mustRecord(t, s, "one", bump("a"))
		before, _, err := s.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		_, err = s.Record(t.Context(), "two", func(tx *Tx) ([]ledger.Entry, error) {
			if _, err := bump("a")(tx); err != nil {
				return nil, err
			}
			return nil, boom
		})
		if !errors.Is(err, boom) {
			t.Fatalf("got %v", err)
		}
		_, err = s.Record(t.Context(), "three", func(tx *Tx) ([]ledger.Entry, error) {
			e, err := bump("a")(tx)
			e[0].Action = "not an action"
			return e, err
		})
		if fault.KindOf(err) != fault.Internal {
			t.Fatalf("got %v", err)
		}
		if n := count(t, s, "a"); n != 1 {
			t.Errorf("a is %d after one success and two failures", n)
		}
		if after, _, _ := s.Head(t.Context()); after != before {
			t.Errorf("the tree grew from %d to %d", before.N, after.N)
		}
		// A failed id may be used again.
		mustRecord(t, s, "two", bump("a"))
		if n := count(t, s, "a"); n != 2 {
			t.Errorf("a is %d", n)
		}
	})
}

func TestAWriteWithoutAnEntryCannotBeExpressed(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		_, err := s.Record(t.Context(), "x", func(tx *Tx) ([]ledger.Entry, error) {
			_, err := tx.Exec(`INSERT INTO counter (name, n, live, data) VALUES ($1, 1, $2, $3)`, "a", true, []byte{1})
			return nil, err
		})
		if fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), "without a ledger entry") {
			t.Fatalf("got %v", err)
		}
		if count(t, s, "a") != 0 {
			t.Error("the row is there")
		}
		err = s.View(t.Context(), func(v *View) error {
			_, err := All[string](v, `INSERT INTO counter (name, n, live, data) VALUES ('b', 1, TRUE, $1) RETURNING name`, []byte{1})
			return err
		})
		if err == nil || count(t, s, "b") != 0 {
			t.Error("a view can write")
		}
		r, err := s.Record(t.Context(), "nothing", func(*Tx) ([]ledger.Entry, error) { return nil, nil })
		if err != nil || len(r.Entries()) != 0 {
			t.Errorf("doing nothing: %v", err)
		}
	})
}

func TestTheSameIdIsRecordedOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		first := mustRecord(t, s, "same", func(tx *Tx) ([]ledger.Entry, error) {
			a, err := bump("a")(tx)
			if err != nil {
				return nil, err
			}
			b, err := bump("b")(tx)
			return append(a, b...), err
		})
		mustRecord(t, s, "other", bump("c"))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				r := mustRecord(t, s, "same", bump("a"))
				if len(r.Entries()) != 2 || r.Entries()[0].Seq != first.Entries()[0].Seq || !bytes.Equal(r.Entries()[1].Leaf, first.Entries()[1].Leaf) || !bytes.Equal(r.Entries()[1].Payload, first.Entries()[1].Payload) {
					t.Errorf("another receipt: %+v", r.Entries())
				}
			})
			wg.Go(func() { mustRecord(t, s, "twin", bump("twin")) })
		}
		wg.Wait()
		if count(t, s, "a") != 1 || count(t, s, "twin") != 1 {
			t.Errorf("a is %d, twin is %d", count(t, s, "a"), count(t, s, "twin"))
		}
	})
}

func TestManyCallersLoseNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		const callers, each = 16, 25
		var wg sync.WaitGroup
		var failed atomic.Int64
		for w := range callers {
			wg.Go(func() {
				for i := range each {
					if i%7 == 3 { // failures between them must not take others along
						_, err := s.Record(t.Context(), fmt.Sprintf("bad-%d-%d", w, i), func(tx *Tx) ([]ledger.Entry, error) {
							if _, err := bump("all")(tx); err != nil {
								return nil, err
							}
							return nil, fault.New(fault.Conflict, "no")
						})
						if fault.KindOf(err) == fault.Conflict {
							failed.Add(1)
						}
					}
					mustRecord(t, s, fmt.Sprintf("%d-%d", w, i), bump("all"))
				}
			})
		}
		wg.Wait()
		if n := count(t, s, "all"); n != callers*each {
			t.Errorf("%d bumps instead of %d", n, callers*each)
		}
		if failed.Load() != callers*4 {
			t.Errorf("%d failures instead of %d", failed.Load(), callers*4)
		}
		// Object versions are all there, each once, whatever the order.
		seen := map[int64]bool{}
		for after := int64(-1); ; {
			rec, err := s.Entries(t.Context(), EntryQuery{After: after, Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			if len(rec) == 0 {
				break
			}
			for _, r := range rec {
				if r.Seq != after+1 {
					t.Fatalf("entry #%d follows #%d", r.Seq, after)
				}
				if after = r.Seq; r.Parsed.Object == "all" {
					seen[r.Parsed.Version] = true
				}
			}
		}
		if len(seen) != callers*each {
			t.Errorf("%d versions in the ledger", len(seen))
		}
	})
}

func TestEveryEntryIsProvedAgainstASignedCheckpoint(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		var old []tlog.Tree
		for i := range 40 {
			r := mustRecord(t, s, fmt.Sprint(i), bump("a"))
			p, err := r.Proof(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Verify(c.Verifier, c.Origin); err != nil {
				t.Fatal(err)
			}
			tree, _, err := s.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			old = append(old, tree)
		}
		last := old[len(old)-1]
		for _, o := range old {
			proof, err := s.Consistency(t.Context(), o.N, last.N)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.CheckConsistency(proof, o, last); err != nil {
				t.Error(err)
			}
		}
		for seq := range last.N {
			p, err := s.Proof(t.Context(), seq)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Verify(c.Verifier, c.Origin); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Inclusion(t.Context(), last.N, last.N+1); fault.KindOf(err) != fault.Invalid {
			t.Errorf("proved what is not there: %v", err)
		}
	})
}

func TestAFollowerSeesEveryEntryInOrder(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan error, 1)
		next := int64(0)
		enough := errors.New("enough")
		go func() {
			done <- s.Follow(ctx, -1, func(r Recorded) error {
				if r.Seq != next {
					return fmt.Errorf("#%d instead of #%d", r.Seq, next)
				}
				if next++; next == 401 {
					return enough
				}
				return nil
			})
		}()
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					mustRecord(t, s, fmt.Sprintf("%d-%d", w, i), bump(fmt.Sprint(w)))
				}
			})
		}
		wg.Wait()
		if err := <-done; !errors.Is(err, enough) {
			t.Fatalf("after %d entries: %v", next, err)
		}
	})
}

func TestEntriesAreFoundByWhatTheyAreAbout(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		for i := range 30 {
			mustRecord(t, s, fmt.Sprint(i), func(*Tx) ([]ledger.Entry, error) {
				return []ledger.Entry{{Action: ledger.Action(fmt.Sprintf("kind%d.done", i%3)), Subjects: []string{"p-1", fmt.Sprintf("p-x%d", i%5)},
					Session: fmt.Sprintf("s-%d", i%2), Target: fmt.Sprintf("host/h-%d", i%6), Payload: map[string]int{"i": i}}}, nil
			})
		}
		for _, q := range []struct {
			q    EntryQuery
			want int
		}{
			{EntryQuery{}, 31}, {EntryQuery{Limit: 7}, 7}, {EntryQuery{Action: "kind1.done"}, 10}, {EntryQuery{Subject: "p-x3"}, 6}, {EntryQuery{Subject: "p-1"}, 30},
			{EntryQuery{Session: "s-1"}, 15}, {EntryQuery{Target: "host/h-4"}, 5}, {EntryQuery{Target: "host/h-4", Action: "kind1.done"}, 5}, {EntryQuery{Target: "host/h-4", Action: "kind0.done"}, 0},
			{EntryQuery{Before: 11}, 11}, {EntryQuery{After: 20}, 10}, {EntryQuery{After: 5, Before: 9}, 3},
		} {
			rec, err := s.Entries(t.Context(), q.q)
			if err != nil {
				t.Fatal(err)
			}
			if len(rec) != q.want {
				t.Errorf("%+v finds %d instead of %d", q.q, len(rec), q.want)
			}
			for i := 1; i < len(rec); i++ {
				if up := rec[i].Seq > rec[i-1].Seq; up != (q.q.After != 0) {
					t.Errorf("%+v is in the wrong order", q.q)
				}
			}
		}
	})
}

func TestObservationsLieApartAndLeaveNoEntry(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		before, _, _ := s.Head(t.Context())
		for i := range 3 {
			err := s.Observe(t.Context(), func(o *Obs) error {
				_, err := o.Exec(`INSERT INTO seen (host, at) VALUES ($1, $2) ON CONFLICT (host) DO UPDATE SET at = EXCLUDED.at`, "h-1", o.Now().UnixMicro()+int64(i))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		err := s.ViewObserved(t.Context(), func(v *View) error {
			n, err := One[int64](v, `SELECT count(*) FROM seen`)
			if err == nil && n != 1 {
				err = fmt.Errorf("%d rows", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if after, _, _ := s.Head(t.Context()); after != before {
			t.Error("an observation grew the ledger")
		}
		_, err = s.Record(t.Context(), "peek", func(tx *Tx) ([]ledger.Entry, error) {
			_, err := One[int64](tx, `SELECT count(*) FROM seen`)
			return nil, err
		})
		if err == nil {
			t.Error("a decision can read observations")
		}
		boom := errors.New("boom")
		err = s.Observe(t.Context(), func(o *Obs) error {
			if _, err := o.Exec(`DELETE FROM seen`); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheLedgersTablesRefuseUpdateAndDelete(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		for i := range 300 {
			mustRecord(t, s, fmt.Sprint(i), bump("a"))
		}
		if err := s.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		for table, column := range map[string]string{"ledger_entry": "at", "ledger_subject": "seq", "ledger_tile": "idx", "ledger_checkpoint": "at"} {
			for _, q := range []string{"DELETE FROM " + table, fmt.Sprintf("UPDATE %s SET %s = %s + 1", table, column, column)} {
				_, err := s.Record(t.Context(), q, func(tx *Tx) ([]ledger.Entry, error) {
					_, err := tx.Exec(q)
					return nil, err
				})
				if err == nil || !strings.Contains(err.Error(), "append-only") {
					t.Errorf("%s: %v", q, err)
				}
			}
		}
		mustVerify(t, s)
	})
}

func TestNestingIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var inner error
		_, err := s.Record(ctx, "outer", func(tx *Tx) ([]ledger.Entry, error) {
			_, inner = s.Record(ctx, "inner", bump("b"))
			return bump("a")(tx)
		})
		if err != nil {
			t.Fatal(err)
		}
		if fault.KindOf(inner) != fault.Internal || !strings.Contains(inner.Error(), "inside") {
			t.Errorf("got %v", inner)
		}
		if count(t, s, "b") != 0 || count(t, s, "a") != 1 {
			t.Error("the inner one was recorded, or the outer one was not")
		}
	})
}

func TestAPanicStaysWithItsCaller(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		func() {
			defer func() {
				if p := recover(); p != "oh" {
					t.Errorf("recovered %v", p)
				}
			}()
			_, _ = s.Record(t.Context(), "p", func(tx *Tx) ([]ledger.Entry, error) {
				if _, err := bump("a")(tx); err != nil {
					return nil, err
				}
				panic("oh")
			})
		}()
		if count(t, s, "a") != 0 {
			t.Error("what the panic left behind was committed")
		}
		mustRecord(t, s, "q", bump("a"))
	})
}

func TestATransactionIsOverWhenItsFunctionReturns(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		var kept *Tx
		mustRecord(t, s, "x", func(tx *Tx) ([]ledger.Entry, error) {
			kept = tx
			return bump("a")(tx)
		})
		if _, err := kept.Exec(`DELETE FROM counter`); err == nil {
			t.Error("a transaction can be used later")
		}
		if _, err := All[string](kept, `SELECT name FROM counter`); err == nil {
			t.Error("a transaction can be read later")
		}
	})
}

func TestRowsAreReadByTheirTags(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		mustRecord(t, s, "x", bump("a"))
		err := s.View(t.Context(), func(v *View) error {
			got, err := All[counter](v, `SELECT data, live, n, name FROM counter WHERE n = $2 AND name = $1 AND n = $2`, "a", int64(1))
			if err != nil || len(got) != 1 || got[0].Name != "a" || !got[0].Live || got[0].N != 1 || len(got[0].Data) != 1 {
				t.Errorf("%+v %v", got, err)
			}
			if _, err := One[counter](v, `SELECT name FROM counter WHERE name = $1`, "zz"); fault.KindOf(err) != fault.NotFound {
				t.Errorf("got %v", err)
			}
			if _, err := One[counter](v, `SELECT name AS surprise FROM counter`); fault.KindOf(err) != fault.Internal {
				t.Errorf("got %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Record(t.Context(), "dup", func(tx *Tx) ([]ledger.Entry, error) {
			for range 2 {
				if _, err := tx.Exec(`INSERT INTO line (text) VALUES ($1)`, "same"); err != nil {
					return nil, err
				}
			}
			return []ledger.Entry{{Action: "line.written"}}, nil
		})
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("a duplicate is %v", err)
		}
	})
}

func TestAnErasedPersonIsUnreadableAndEveryProofStands(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		secret := func(who string) Receipt {
			return mustRecord(t, s, "of "+who, func(*Tx) ([]ledger.Entry, error) {
				return []ledger.Entry{{Action: "login.opened", Subjects: []string{"p-mary"}, SealTo: who, Payload: map[string]string{"address": "192.0.2.7"}}}, nil
			})
		}
		gone, stays := secret("p-john"), secret("p-mary")
		if _, err := s.Erase(t.Context(), "erase", "p-john", ledger.Entry{Subjects: []string{"p-mary"}, Payload: map[string]string{"ground": "asked"}}); err != nil {
			t.Fatal(err)
		}
		rec, err := s.Entries(t.Context(), EntryQuery{Oldest: true, After: gone.Entries()[0].Seq - 1})
		if err != nil {
			t.Fatal(err)
		}
		if rec[0].Payload != nil || rec[0].Salt != nil || rec[1].Payload == nil {
			t.Errorf("%q %q", rec[0].Payload, rec[1].Payload)
		}
		p, err := s.Proof(t.Context(), rec[0].Seq)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.VerifyLeaf(c.Verifier, c.Origin); err != nil {
			t.Error(err)
		}
		if p.Verify(c.Verifier, c.Origin) == nil {
			t.Error("an erased payload verifies as an empty one")
		}
		for _, r := range []Receipt{gone, stays} { // proofs handed out before
			p, err := r.Proof(t.Context(), 0)
			if err != nil || p.Verify(c.Verifier, c.Origin) != nil {
				t.Errorf("%v", err)
			}
		}
		if rep := mustVerify(t, s); rep.Erased != 1 {
			t.Errorf("%d erased", rep.Erased)
		}
	})
}

func TestEntriesOfABootstrapAreMarked(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		var on atomic.Bool
		c.Bootstrap = on.Load
		s := mustOpen(t, c)
		on.Store(true)
		a := mustRecord(t, s, "a", bump("a")).Entries()[0]
		on.Store(false)
		b := mustRecord(t, s, "b", bump("a")).Entries()[0]
		if !a.Parsed.Bootstrap || b.Parsed.Bootstrap {
			t.Error("the mark is wrong")
		}
	})
}

func TestABrakeIsKeptWhileTheLedgerIsAwayAndDrainedOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		away := fault.New(fault.Unavailable, "away")
		lock := ledger.Entry{Action: "person.locked", Subjects: []string{"p-1", "p-2"}, Payload: map[string]string{"reason": "why"}}
		if _, err := s.Brake(t.Context(), "lock", func(*Tx) ([]ledger.Entry, error) { return nil, away }, lock); err != nil {
			t.Fatal(err)
		}
		if s.Spool().Held() != 1 {
			t.Fatal("it is not in the spool")
		}
		if err := s.Close(); err != nil { // and it survives a restart
			t.Fatal(err)
		}
		s = mustOpen(t, c)
		for range 2 {
			if err := s.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		rec, err := s.Entries(t.Context(), EntryQuery{Action: "person.locked"})
		if err != nil || len(rec) != 1 || string(rec[0].Payload) != `{"reason":"why"}` {
			t.Errorf("%d entries: %v", len(rec), err)
		}
		if s.Spool().Held() != 0 {
			t.Error("the spool is not empty")
		}
	})
}

func mustVerify(t testing.TB, s *Store) ledger.Report {
	t.Helper()
	rep, err := s.Verify(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK {
		t.Fatalf("%v", rep.Findings)
	}
	return rep
}
