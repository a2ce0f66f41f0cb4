package recording

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/s3"
)

// depot is servers over one ledger and one bucket.
type depot struct {
	t      testing.TB
	store  *store.Store
	ring   *keyring.Ring
	keys   string
	bucket blob.Store
	ended  map[string]Ended
	*Recordings
}

func newDepot(t testing.TB, bucket blob.Store) *depot {
	t.Helper()
	dir := t.TempDir()
	d := &depot{t: t, bucket: bucket, keys: filepath.Join(dir, "keys"), ended: map[string]Ended{}}
	fatal(t, keyring.Init(d.keys, filepath.Join(dir, "root"), "test.handrail.internal/log"))
	var err error
	d.ring, err = keyring.Open(d.keys)
	fatal(t, err)
	d.store, err = store.Open(t.Context(), store.Config{DSN: "sqlite:" + filepath.Join(dir, "db"), Origin: d.ring.Origin(), Signer: d.ring.Log(),
		Verifier: d.ring.LogVerifier(), Seals: d.ring.Subjects(), Migrations: Schema(), Spool: filepath.Join(dir, "spool")})
	fatal(t, err)
	t.Cleanup(func() { _ = d.store.Close() })
	d.Recordings = d.server(0)
	return d
}

// server is another server of the same installation.
func (d *depot) server(waiting int64) *Recordings {
	d.t.Helper()
	r, err := New(Deps{Dir: d.t.TempDir(), Store: d.store, Subjects: d.ring.Subjects(), Replay: d.ring.Replay(), Archive: &Archive{
		Bucket: d.bucket, Place: "the bucket", Store: d.store, Local: time.Hour, Waiting: waiting,
		Ended: func(_ context.Context, ids []string) (map[string]Ended, error) {
			found := map[string]Ended{}
			for _, id := range ids {
				if e, ok := d.ended[id]; ok {
					found[id] = e
				}
			}
			return found, nil
		},
		Of: func(context.Context, string) (all []string, err error) {
			for id := range d.ended {
				all = append(all, id)
			}
			return all, nil
		},
	}})
	fatal(d.t, err)
	return r
}

func (d *depot) tell(entries ...ledger.Entry) {
	d.t.Helper()
	_, err := d.store.Record(d.t.Context(), store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return entries, nil })
	fatal(d.t, err)
}

// play records a session that says lines, and closes it.
func (d *depot) play(r *Recordings, session string, lines ...string) {
	d.t.Helper()
	draft, err := r.Draft(Header{Session: session, Person: "p-00000001", Host: "h-00000001", Kind: "shell", PTY: true, Cols: 80, Rows: 24})
	fatal(d.t, err)
	d.tell(draft.Entry())
	res, err := r.Reserve()
	fatal(d.t, err)
	rec, err := r.Create(draft, res)
	fatal(d.t, err)
	for _, line := range lines {
		fatal(d.t, rec.Write(Output, []byte(line+"\r\n")))
	}
	closed, err := rec.Close()
	fatal(d.t, err)
	d.tell(closed.Entries...)
	d.ended[session] = Ended{Bytes: closed.Digest.Bytes, At: time.Now()}
}

func (d *depot) output(r *Recordings, session string) (string, error) {
	d.t.Helper()
	rd, err := r.Open(d.t.Context(), session)
	if err != nil {
		return "", err
	}
	defer rd.Close()
	var out strings.Builder
	for {
		e, err := rd.Next()
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return out.String(), err
		}
		if e.Kind == Output {
			out.Write(e.Data)
		}
	}
}

func (d *depot) wantOutput(r *Recordings, session, want string) {
	d.t.Helper()
	if got, err := d.output(r, session); err != nil || got != want {
		d.t.Fatalf("replay of %s: %q, %v; want %q", session, got, err, want)
	}
}

func (d *depot) verify(r *Recordings) ledger.Report {
	d.t.Helper()
	report, err := d.store.Verify(d.t.Context(), nil, r)
	fatal(d.t, err)
	return report
}

func (d *depot) file(r *Recordings, session string) bool {
	path, err := r.path(session)
	fatal(d.t, err)
	_, err = os.Stat(path)
	return err == nil
}

func (d *depot) count(action ledger.Action) int {
	d.t.Helper()
	found, err := d.store.Entries(d.t.Context(), store.EntryQuery{Action: string(action), Limit: 100})
	fatal(d.t, err)
	return len(found)
}

func buckets(t *testing.T, test func(t *testing.T, b blob.Store)) {
	t.Run("folder", func(t *testing.T) {
		b, err := blob.OpenFiles(t.TempDir())
		fatal(t, err)
		test(t, b)
	})
	t.Run("s3", func(t *testing.T) {
		server := s3.Start(t, false)
		b, err := blob.Settings{Bucket: "s3://" + s3.Bucket, Endpoint: server.URL, Access: s3.Access, Secret: s3.Secret}.Open()
		fatal(t, err)
		test(t, b)
	})
}

var later = 2 * time.Hour

func TestAFinishedRecordingIsReadFromTheBucketByEveryServer(t *testing.T) {
	buckets(t, func(t *testing.T, b blob.Store) {
		d := newDepot(t, b)
		other := d.server(0)
		d.play(d.Recordings, "s-aaaa1111", "hello", strings.Repeat("x", 1000))
		want := "hello\r\n" + strings.Repeat("x", 1000) + "\r\n"
		fatal(t, d.Round(t.Context(), time.Now()))
		if !d.file(d.Recordings, "s-aaaa1111") || !d.Archived(t.Context(), "s-aaaa1111") {
			t.Fatal("after a round the recording is to lie here and there")
		}
		d.wantOutput(other, "s-aaaa1111", want)
		fatal(t, d.Round(t.Context(), time.Now().Add(later)))
		if d.file(d.Recordings, "s-aaaa1111") {
			t.Fatal("the file was kept longer than asked")
		}
		d.wantOutput(d.Recordings, "s-aaaa1111", want)
		for _, r := range []*Recordings{d.Recordings, other} {
			if report := d.verify(r); !report.OK || report.Recordings != 1 {
				t.Fatalf("verify: %+v", report)
			}
		}
		d.export(other, 1)
		if n := d.count(ActionArchived); n != 1 {
			t.Fatalf("%d entries recording.archived", n)
		}
	})
}

// export exports and verifies that without a server.
func (d *depot) export(r *Recordings, pieces int64) {
	d.t.Helper()
	var zip bytes.Buffer
	fatal(d.t, d.store.Export(d.t.Context(), &zip, r))
	report, err := ledger.VerifyExport(bytes.NewReader(zip.Bytes()), int64(zip.Len()), ledger.ExportOptions{LogKey: d.ring.LogVerifier(), Origin: d.ring.Origin()}, nil)
	fatal(d.t, err)
	if !report.OK || report.Recordings < pieces {
		d.t.Fatalf("export: %+v", report)
	}
}

func TestAFileGoesOnlyAfterItsObjectsWereReadBack(t *testing.T) {
	dir := t.TempDir()
	b, err := blob.OpenFiles(dir)
	fatal(t, err)
	d := newDepot(t, b)
	d.play(d.Recordings, "s-aaaa1111", "hello")
	d.play(d.Recordings, "s-bbbb2222", "there")
	fatal(t, d.Round(t.Context(), time.Now()))
	object := filepath.Join(dir, partName("s-aaaa1111", 0))
	raw, err := os.ReadFile(object)
	fatal(t, err)
	for what, damaged := range map[string][]byte{"changed": append(raw[:len(raw)-1:len(raw)-1], raw[len(raw)-1]^1), "cut": raw[:len(raw)-1], "gone": nil} {
		fatal(t, os.Remove(object))
		if damaged != nil {
			fatal(t, os.WriteFile(object, damaged, 0o600))
		}
		if err := d.Round(t.Context(), time.Now().Add(later)); err == nil || d.Status().Failed == "" {
			t.Fatalf("%s: nothing was said", what)
		}
		if !d.file(d.Recordings, "s-aaaa1111") {
			t.Fatalf("%s: the last whole copy was removed", what)
		}
		if d.file(d.Recordings, "s-bbbb2222") {
			t.Fatalf("%s: what is whole was held up by what is not", what)
		}
		if report := d.verify(d.Recordings); report.OK || !strings.Contains(fmt.Sprint(report.Findings), "s-aaaa1111") {
			t.Fatalf("%s: verify: %+v", what, report)
		}
		if damaged == nil {
			fatal(t, os.WriteFile(object, raw, 0o600))
			continue
		}
		if out, err := d.output(d.server(0), "s-aaaa1111"); err == nil {
			t.Fatalf("%s: another server replays %q", what, out)
		}
	}
	fatal(t, os.WriteFile(object, raw, 0o600))
	fatal(t, d.Round(t.Context(), time.Now().Add(later)))
	if d.file(d.Recordings, "s-aaaa1111") {
		t.Fatal("the object is whole again, and the file is still here")
	}
}

func TestWhatAKilledServerPutThereIsTakenForDone(t *testing.T) {
	buckets(t, func(t *testing.T, b blob.Store) {
		d := newDepot(t, b)
		d.play(d.Recordings, "s-aaaa1111", "put, but not recorded")
		d.play(d.Recordings, "s-bbbb2222", "somebody else's object is in its place")
		d.play(d.Recordings, "s-cccc3333", "not held up")
		path, err := d.path("s-aaaa1111")
		fatal(t, err)
		raw, err := os.ReadFile(path)
		fatal(t, err)
		fatal(t, b.Put(t.Context(), partName("s-aaaa1111", 0), bytes.NewReader(raw)))
		fatal(t, b.Put(t.Context(), partName("s-bbbb2222", 0), bytes.NewReader([]byte("mine"))))
		if err := d.Round(t.Context(), time.Now()); fault.KindOf(err) != fault.Conflict {
			t.Fatalf("got %v", err)
		}
		for session, want := range map[string]bool{"s-aaaa1111": true, "s-bbbb2222": false, "s-cccc3333": true} {
			if d.Archived(t.Context(), session) != want {
				t.Errorf("%s in the bucket: %v", session, !want)
			}
		}
		if s := d.Status(); s.Waiting != 1 || !strings.Contains(s.Failed, "something else") {
			t.Fatalf("status %+v", s)
		}
	})
}

func TestABucketThatIsAwayHoldsNobodyUpAndIsAnAlarm(t *testing.T) {
	server := s3.Start(t, false)
	b, err := blob.Settings{Bucket: "s3://" + s3.Bucket, Endpoint: server.URL, Access: s3.Access, Secret: s3.Secret}.Open()
	fatal(t, err)
	d := newDepot(t, b)
	server.Stop()
	d.play(d.Recordings, "s-aaaa1111", "recorded while the bucket is away")
	d.wantOutput(d.Recordings, "s-aaaa1111", "recorded while the bucket is away\r\n")
	for range 2 {
		if err := d.Round(t.Context(), time.Now().Add(behindAfter+time.Minute)); fault.KindOf(err) != fault.Unavailable {
			t.Fatalf("got %v", err)
		}
	}
	if s := d.Status(); s.Waiting != 1 || !s.Delayed || s.Failed == "" || d.count(ActionDelayed) != 1 {
		t.Fatalf("status %+v, %d entries", s, d.count(ActionDelayed))
	}
	server.Again()
	fatal(t, d.Round(t.Context(), time.Now()))
	if s := d.Status(); s.Waiting != 0 || s.Delayed || s.Failed != "" || d.count(ActionCaughtUp) != 1 {
		t.Fatalf("status %+v, %d entries", s, d.count(ActionCaughtUp))
	}
}

func TestWhatMayWaitForTheBucketIsBounded(t *testing.T) {
	server := s3.Start(t, false)
	b, err := blob.Settings{Bucket: "s3://" + s3.Bucket, Endpoint: server.URL, Access: s3.Access, Secret: s3.Secret}.Open()
	fatal(t, err)
	d := newDepot(t, b)
	r := d.server(100)
	d.play(r, "s-aaaa1111", strings.Repeat("some words ", 50))
	server.Stop()
	if err := r.Round(t.Context(), time.Now()); err == nil {
		t.Fatal("no bucket, no error")
	}
	if _, err := r.Reserve(); fault.KindOf(err) != fault.Exhausted {
		t.Fatalf("got %v", err)
	}
	server.Again()
	fatal(t, r.Round(t.Context(), time.Now()))
	res, err := r.Reserve()
	fatal(t, err)
	res.Release()
}

func TestWhatIsRemovedIsGoneEverywhereAndEveryProofStands(t *testing.T) {
	buckets(t, func(t *testing.T, b blob.Store) {
		d := newDepot(t, b)
		other := d.server(0)
		d.play(d.Recordings, "s-aaaa1111", "in the bucket alone")
		d.play(d.Recordings, "s-bbbb2222", "here and there")
		fatal(t, d.Round(t.Context(), time.Now()))
		fatal(t, d.wipeFiles("s-aaaa1111"))
		d.play(other, "s-cccc3333", "with another server")
		fatal(t, d.RemovePerson(t.Context(), "p-00000001"))
		for o, err := range b.List(t.Context(), "") {
			t.Errorf("left in the bucket: %s %v", o.Name, err)
		}
		if d.file(d.Recordings, "s-bbbb2222") {
			t.Error("the file is still here")
		}
		fatal(t, other.Round(t.Context(), time.Now()))
		if d.file(other, "s-cccc3333") {
			t.Error("the other server keeps its file")
		}
		if _, err := d.output(other, "s-aaaa1111"); fault.KindOf(err) != fault.NotFound {
			t.Errorf("replay: %v", err)
		}
		if report := d.verify(other); !report.OK {
			t.Errorf("verify: %+v", report)
		}
		d.export(other, 0)
		fatal(t, d.RemovePerson(t.Context(), "p-00000001")) // again: nothing more is recorded
		if n := d.count(ActionRemoved); n != 1 {
			t.Errorf("%d entries recording.removed", n)
		}
		// A crash between the entry and the deletion.
		fatal(t, b.Put(t.Context(), partName("s-aaaa1111", 0), strings.NewReader("left behind")))
		fatal(t, d.sweep(t.Context(), time.Now()))
		for o := range b.List(t.Context(), "") {
			t.Errorf("the sweep left %s", o.Name)
		}
	})
}

func TestRecordingsAreKeptAsLongAsAsked(t *testing.T) {
	b, err := blob.OpenFiles(t.TempDir())
	fatal(t, err)
	d := newDepot(t, b)
	d.archive.Keep = 48 * time.Hour
	d.play(d.Recordings, "s-aaaa1111", "old")
	fatal(t, d.Round(t.Context(), time.Now()))
	fatal(t, d.sweep(t.Context(), time.Now().Add(47*time.Hour)))
	d.wantOutput(d.Recordings, "s-aaaa1111", "old\r\n")
	fatal(t, d.sweep(t.Context(), time.Now().Add(49*time.Hour)))
	if _, err := d.output(d.Recordings, "s-aaaa1111"); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("replay: %v", err)
	}
	if report := d.verify(d.Recordings); !report.OK {
		t.Fatalf("verify: %+v", report)
	}
}

func TestWithoutTheReplayKeyTheRestOfTheRingReplaysNothing(t *testing.T) {
	b, err := blob.OpenFiles(t.TempDir())
	fatal(t, err)
	d := newDepot(t, b)
	d.play(d.Recordings, "s-aaaa1111", "secret")
	fatal(t, os.Rename(filepath.Join(d.keys, "replay.key"), filepath.Join(d.keys, "..", "replay.key")))
	if out, err := d.output(d.Recordings, "s-aaaa1111"); fault.KindOf(err) != fault.Unavailable || fault.From(err).Hint == "" {
		t.Fatalf("replayed %q, %v", out, err)
	}
	fatal(t, os.Rename(filepath.Join(d.keys, "..", "replay.key"), filepath.Join(d.keys, "replay.key")))
	d.wantOutput(d.Recordings, "s-aaaa1111", "secret\r\n")
}

func TestAnObjectOfNobodyIsFound(t *testing.T) {
	b, err := blob.OpenFiles(t.TempDir())
	fatal(t, err)
	d := newDepot(t, b)
	fatal(t, b.Put(t.Context(), partName("s-aaaa1111", 0), strings.NewReader("slipped in")))
	if report := d.verify(d.Recordings); report.OK || !strings.Contains(fmt.Sprint(report.Findings), "s-aaaa1111 in the bucket") {
		t.Fatalf("%+v", report)
	}
}
