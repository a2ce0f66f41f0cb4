package recording

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func TestWhatWasWrittenIsPlayedBackInOrder(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 300})
	rec := s.begin(id, true)
	want := []Event{{Kind: Output, Data: []byte("$ ")}, {Kind: Input, Data: []byte("l")}, {Kind: Typed, By: "p-00000002", Data: []byte("s\r")},
		{Kind: Output, Data: bytes.Repeat([]byte("a long line\n"), 500)}, {Kind: Resize, Data: ResizeData(120, 40)},
		{Kind: Join, By: "p-00000002", Data: []byte("watch")}, {Kind: Exit, Data: ExitData(-1, "stopped")}}
	for _, e := range want {
		fatal(t, rec.WriteBy(e.Kind, e.By, e.Data))
	}
	s.end(rec)
	got := s.read(id)
	if len(got) != len(want) {
		t.Fatalf("%d events", len(got))
	}
	for i, e := range got {
		if e.Kind != want[i].Kind || e.By != want[i].By || !bytes.Equal(e.Data, want[i].Data) {
			t.Errorf("event %d is %+v", i, e)
		}
		if i > 0 && e.Offset < got[i-1].Offset {
			t.Errorf("event %d goes back in time", i)
		}
	}
	if f := s.findings(); len(f) != 0 {
		t.Fatalf("false alarm: %v", f)
	}
}

func TestAnEventIsInTheFileWhenWriteReturns(t *testing.T) {
	s := newStudio(t, Bounds{})
	rec := s.begin(id, true)
	fatal(t, rec.Write(Output, []byte("seen")))
	got := s.read(id) // another open file: only the disk can know
	if len(got) != 1 || string(got[0].Data) != "seen" {
		t.Fatalf("the file holds %v", got)
	}
	raw, _ := os.ReadFile(filepath.Join(s.deps.Dir, "00", id+".rec"))
	if bytes.Contains(raw, []byte("seen")) {
		t.Fatal("the file holds it in the clear")
	}
}

func TestAPieceIsToldToTheLedgerAfterItsTimeOrSize(t *testing.T) {
	s := newStudio(t, Bounds{})
	rec := s.begin(id, true)
	fatal(t, rec.Write(Output, []byte("a")))
	s.Tend(t.Context(), time.Now())
	if len(s.book.entries) != 1 {
		t.Fatal("told before its time")
	}
	s.Tend(t.Context(), time.Now().Add(6*time.Second))
	if len(s.book.entries) != 2 || s.book.entries[1].Parsed.Action != ActionChunks {
		t.Fatalf("the ledger holds %+v", s.book.entries)
	}
	noise := make([]byte, 60<<10)
	_, _ = rand.Read(noise)
	fatal(t, rec.Write(Output, noise))
	fatal(t, rec.Write(Output, noise))
	s.Tend(t.Context(), time.Now())
	if len(s.book.entries) != 3 {
		t.Fatal("a full piece was not told")
	}
	s.Tend(t.Context(), time.Now())
	if len(s.book.entries) != 3 {
		t.Fatal("an idle session writes to the ledger")
	}
}

func TestPiecesWaitWhileTheLedgerIsAway(t *testing.T) {
	s := newStudio(t, Bounds{})
	rec := s.begin(id, true)
	fatal(t, rec.Write(Output, []byte("a")))
	s.book.away = true
	s.Tend(t.Context(), time.Now().Add(6*time.Second))
	s.book.away = false
	s.end(rec)
	if f := s.findings(); len(f) != 0 {
		t.Fatalf("after it came back: %v", f)
	}
}

func TestEveryFlippedByteIsFoundAndNamed(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 200})
	rec := s.begin(id, true)
	for range 12 {
		fatal(t, rec.Write(Output, []byte("some output of a command\n")))
	}
	s.end(rec)
	path, _ := s.path(id)
	raw, err := os.ReadFile(path)
	fatal(t, err)
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		fatal(t, os.WriteFile(path, bad, 0o600))
		f := s.findings()
		if len(f) != 1 || !strings.Contains(f[0].Where, "recording "+id+" piece ") {
			t.Fatalf("byte %d of %d: %v", i, len(raw), f)
		}
	}
	for name, bad := range map[string][]byte{"cut": raw[:len(raw)-1], "emptied": nil, "longer": append(bytes.Clone(raw), 0), "piece gone": raw[400:]} {
		fatal(t, os.WriteFile(path, bad, 0o600))
		if len(s.findings()) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
	fatal(t, os.Remove(path))
	if f := s.findings(); len(f) != 1 || f[0].What != "is missing" {
		t.Errorf("removed: %v", f)
	}
	fatal(t, os.WriteFile(path, raw, 0o600))
	fatal(t, os.WriteFile(filepath.Join(filepath.Dir(path), "s-00zzzzzz.rec"), raw, 0o600))
	if f := s.findings(); len(f) != 1 || !strings.Contains(f[0].What, "not in the ledger") {
		t.Errorf("a stranger: %v", f)
	}
}

func TestAReplayRefusesWhatWasTouched(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 200})
	rec := s.begin(id, true)
	for range 12 {
		fatal(t, rec.Write(Output, []byte("some output of a command\n")))
	}
	s.end(rec)
	path, _ := s.path(id)
	raw, _ := os.ReadFile(path)
	for i := 0; i < len(raw); i += 3 {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		fatal(t, os.WriteFile(path, bad, 0o600))
		r, err := s.Open(t.Context(), id)
		n := 0
		for err == nil {
			_, err = r.Next()
			n++
		}
		if r != nil {
			if _, whole := r.Ended(); errors.Is(err, io.EOF) && whole {
				t.Fatalf("byte %d: played back as if it were whole", i)
			}
			r.Close()
		}
	}
}

func TestAfterACrashItVerifiesUpToItsLastBlockAndTheTailIsMarkedLost(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 200})
	rec := s.begin(id, true)
	for range 10 {
		fatal(t, rec.Write(Output, []byte("some output of a command\n")))
	}
	s.Tend(t.Context(), time.Now())
	fatal(t, rec.Write(Output, []byte("the last line\n")))
	path, _ := s.path(id)
	whole, _ := os.ReadFile(path)
	for cut := range 20 {
		fatal(t, os.WriteFile(path, whole[:len(whole)-cut], 0o600)) // as a crash may leave it
		again := &studio{t, newAgain(t, s), &book{entries: append([]store.Recorded(nil), s.book.entries...)}}
		c, err := again.Recover(id, "the server stopped")
		fatal(t, err)
		again.book.add(c.Entries...)
		if c.Digest.Lost == "" || c.Entries[len(c.Entries)-1].Outcome != ledger.Lost {
			t.Fatalf("cut %d: not marked lost: %+v", cut, c.Digest)
		}
		if f := again.findings(); len(f) != 0 {
			t.Fatalf("cut %d: %v", cut, f)
		}
		got := again.read(id)
		if cut == 0 && len(got) != 11 || len(got) < 10 {
			t.Fatalf("cut %d: %d events are left", cut, len(got))
		}
		twice, err := again.Recover(id, "the server stopped")
		fatal(t, err)
		if twice.Digest.Hash != c.Digest.Hash || twice.Digest.Bytes != c.Digest.Bytes {
			t.Fatal("recovering twice changes the file")
		}
	}
}

// A power cut may leave the name without its bytes, or part of the head. The
// server must still start and close the session.
func TestARecordingWithoutItsHeadIsLostAndNoFalseAlarm(t *testing.T) {
	for _, left := range []int64{0, 3, 40} {
		s := newStudio(t, Bounds{})
		rec := s.begin(id, true)
		fatal(t, rec.Write(Output, []byte("never synced\n")))
		path, _ := s.path(id)
		fatal(t, os.Truncate(path, left))
		again := &studio{t, newAgain(t, s), s.book}
		for range 2 {
			c, err := again.Recover(id, "the server stopped")
			fatal(t, err)
			if c.Digest.Lost == "" || c.Digest.Pieces != 0 || c.Entries[len(c.Entries)-1].Outcome != ledger.Lost {
				t.Fatalf("%d bytes are left: %+v", left, c.Digest)
			}
		}
		c, err := again.Recover(id, "the server stopped")
		fatal(t, err)
		again.book.add(c.Entries...)
		if f := again.findings(); len(f) != 0 {
			t.Fatalf("%v", f)
		}
	}
}

func newAgain(t *testing.T, s *studio) *Recordings {
	t.Helper()
	r, err := New(s.deps)
	fatal(t, err)
	return r
}

func TestALongStreamKeepsHeadTailLengthAndHash(t *testing.T) {
	s := newStudio(t, Bounds{BulkHead: 1000, BulkTail: 100})
	rec := s.begin(id, false)
	for i := range 100 {
		fatal(t, rec.Write(Output, bytes.Repeat([]byte{byte(i)}, 50)))
	}
	fatal(t, rec.Write(Error, []byte("warning")))
	s.end(rec)
	var head, tail int
	var b Bulk
	for _, e := range s.read(id) {
		switch {
		case e.Kind == Gap:
			b, _ = ParseBulk(e.Data)
		case e.Kind == Output && b.Length == 0:
			head += len(e.Data)
		case e.Kind == Output:
			tail += len(e.Data)
			if e.Data[0] != 98 || e.Data[99] != 99 {
				t.Errorf("the tail is %v", e.Data)
			}
		}
	}
	if head != 1000 || tail != 100 || b.Length != 5000 || b.Skipped != 3900 || len(b.SHA256) != 32 {
		t.Fatalf("head %d, tail %d, %+v", head, tail, b)
	}
}

func TestATerminalIsKeptWhole(t *testing.T) {
	s := newStudio(t, Bounds{BulkHead: 10})
	rec := s.begin(id, true)
	fatal(t, rec.Write(Output, bytes.Repeat([]byte("x"), 200_000)))
	s.end(rec)
	n := 0
	for _, e := range s.read(id) {
		n += len(e.Data)
	}
	if n != 200_000 {
		t.Fatalf("%d bytes", n)
	}
}

func TestSeekingSkipsToTheOffset(t *testing.T) {
	s := newStudio(t, Bounds{})
	rec := s.begin(id, true)
	fatal(t, rec.Write(Output, []byte("early")))
	fatal(t, rec.Write(Resize, ResizeData(100, 50)))
	rec.start = rec.start.Add(-time.Minute) // as if a minute went by
	fatal(t, rec.Write(Output, []byte("late")))
	s.end(rec)
	r, err := s.Open(t.Context(), id)
	fatal(t, err)
	defer r.Close()
	cols, rows, err := r.SeekTo(30 * time.Second)
	fatal(t, err)
	e, err := r.Next()
	if err != nil || string(e.Data) != "late" || cols != 100 || rows != 50 {
		t.Fatalf("%q at %dx%d, %v", e.Data, cols, rows, err)
	}
}

// smallDisk is a file on a disk with room for so many bytes.
type smallDisk struct {
	File
	room *int
}

func (d smallDisk) Write(p []byte) (int, error) {
	if len(p) > *d.room {
		n, _ := d.File.Write(p[:*d.room])
		*d.room = 0
		return n, syscall.ENOSPC
	}
	*d.room -= len(p)
	return d.File.Write(p)
}

func TestADiskThatFillsUpStopsTheSessionButNotTheRecording(t *testing.T) {
	room := 3000
	s := newStudioWith(t, Deps{Bounds: Bounds{Patience: time.Millisecond},
		OpenFile: func(path string) (File, error) { f, err := createFile(path); return smallDisk{f, &room}, err }})
	rec := s.begin(id, true)
	var err error
	n := 0
	for ; err == nil; n++ {
		err = rec.Write(Output, []byte("some output of a command\n"))
	}
	if fault.KindOf(err) != fault.Exhausted || n < 10 {
		t.Fatalf("after %d writes: %v", n, err)
	}
	if rec.Write(Output, []byte("more")) == nil {
		t.Fatal("a broken recorder took more")
	}
	c, err := rec.Close()
	if err == nil || c.Digest.Lost == "" {
		t.Fatalf("closed as if nothing were lost: %+v", c.Digest)
	}
	s.book.add(c.Entries...)
	if f := s.findings(); len(f) != 0 {
		t.Fatalf("what was written does not verify: %v", f)
	}
	if got := s.read(id); len(got) != n-1 {
		t.Fatalf("%d of %d events are left", len(got), n-1)
	}
}

func TestASessionWaitsForRoomBeforeItGivesUp(t *testing.T) {
	room := 1500
	var mu sync.Mutex
	s := newStudioWith(t, Deps{Bounds: Bounds{Patience: 10 * time.Second}, OpenFile: func(path string) (File, error) {
		f, err := createFile(path)
		return lockedDisk{smallDisk{f, &room}, &mu}, err
	}})
	rec := s.begin(id, true)
	done := make(chan error, 1)
	go func() {
		for range 100 {
			if err := rec.Write(Output, []byte("some output of a command\n")); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for full := false; !full; {
		mu.Lock()
		full = room == 0
		if full {
			room = 1 << 20 // somebody made room
		}
		mu.Unlock()
	}
	fatal(t, <-done)
	s.end(rec)
	if got := s.read(id); len(got) != 100 {
		t.Fatalf("%d events", len(got))
	}
}

type lockedDisk struct {
	smallDisk
	mu *sync.Mutex
}

func (d lockedDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.smallDisk.Write(p)
}

func TestRoomIsReservedBeforeASessionOpens(t *testing.T) {
	free := int64(100 << 20)
	s := newStudioWith(t, Deps{Bounds: Bounds{PerSession: 10 << 20, KeepFree: 75 << 20}, Free: func() (int64, error) { return free, nil }})
	a, err := s.Reserve()
	fatal(t, err)
	_, err = s.Reserve()
	fatal(t, err)
	if _, err := s.Reserve(); fault.KindOf(err) != fault.Exhausted || !s.Full() {
		t.Fatalf("a third was let in: %v", err)
	}
	a.Release()
	a.Release()
	if s.Full() {
		t.Fatal("room was not given back")
	}
}

func TestAnExportHandsOutEveryPieceUnderItsHash(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 200})
	rec := s.begin(id, true)
	for range 12 {
		fatal(t, rec.Write(Output, []byte("some output of a command\n")))
	}
	c := s.end(rec)
	var total int64
	n := 0
	fatal(t, s.ExportBlobs(t.Context(), s.book.all, func(hash string, body io.Reader) error {
		h := newHasher()
		m, err := io.Copy(h, body)
		if sum := h.next(); fmt.Sprintf("%x", sum) != hash {
			t.Errorf("piece %d is not what its name says", n)
		}
		n++
		total += m
		return err
	}))
	if int64(n) != c.Digest.Pieces || total != c.Digest.Bytes {
		t.Fatalf("%d pieces, %d bytes; the digest says %+v", n, total, c.Digest)
	}
}

func FuzzReadingAFile(f *testing.F) {
	s := newStudio(f, Bounds{ChunkBytes: 100})
	rec := s.begin(id, true)
	for range 6 {
		_ = rec.Write(Output, []byte("some output of a command\n"))
	}
	s.end(rec)
	path, _ := s.path(id)
	raw, _ := os.ReadFile(path)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = scan(bytes.NewReader(b), id)
		if e, err := parseEvent(b); err == nil && len(e.Data) > len(b) {
			t.Fatal("an event larger than its bytes")
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Skip()
		}
		r, err := s.Open(t.Context(), id)
		for err == nil {
			_, err = r.Next()
		}
		if r != nil {
			r.Close()
		}
	})
}

func BenchmarkBulk(b *testing.B) {
	s := newStudio(b, Bounds{})
	rec := s.begin(id, false)
	data := make([]byte, 32<<10)
	_, _ = rand.Read(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		fatal(b, rec.Write(Output, data))
	}
}

func BenchmarkTerminal(b *testing.B) {
	s := newStudio(b, Bounds{})
	rec := s.begin(id, true)
	data := bytes.Repeat([]byte("2026-11-21 04:30:11 web-1 app[123]: GET /index.html 200 12ms\n"), 64)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		fatal(b, rec.Write(Output, data))
	}
}

func BenchmarkKeystroke(b *testing.B) {
	s := newStudio(b, Bounds{})
	rec := s.begin(id, true)
	for b.Loop() {
		fatal(b, rec.Write(Input, []byte("x")))
	}
}
