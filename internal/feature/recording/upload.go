package recording

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	roundEvery  = 10 * time.Second
	roundAtMost = 15 * time.Minute // between rounds that fail
	sweepEvery  = time.Hour
	sweepFiles  = 5 * time.Minute // between rounds without a bucket
	// behindAfter is how long a finished recording may wait before it is an alarm.
	behindAfter = 15 * time.Minute
)

// here is one finished file of this server.
type here struct {
	session string
	path    string
	size    int64
	ended   Ended
	place   place
}

// Keep sends finished recordings to the bucket, removes what has been there
// long enough, and lets go of what is past its time, until ctx ends.
func (r *Recordings) Keep(ctx context.Context) error {
	if r.archive == nil {
		<-ctx.Done()
		return nil
	}
	usual := roundEvery
	if r.archive.Bucket == nil {
		usual = sweepFiles // every finished file is looked at each time
	}
	var swept time.Time
	for wait := usual; ; {
		err := r.Round(ctx, time.Now())
		if err == nil && time.Since(swept) > sweepEvery {
			if err = r.sweep(ctx, time.Now()); err == nil {
				swept = time.Now()
			}
		}
		wait = min(2*wait, roundAtMost)
		if err == nil {
			wait = usual
		} else if ctx.Err() == nil {
			r.deps.Log.Warn("finished recordings could not all be put into the bucket; trying again", "in", wait, "error", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-r.shared.kick:
			t.Stop()
		case <-t.C:
		}
	}
}

// Round is one round of Keep over the files that are here. It ends at the first
// error of the bucket; a recording that is at fault itself is passed over.
func (r *Recordings) Round(ctx context.Context, now time.Time) error {
	files, err := r.finished(ctx)
	if err != nil {
		return err
	}
	var waiting []here
	for _, f := range files {
		switch {
		case f.place.State == stateRemoved:
			if err := r.wipeFiles(f.session); err != nil {
				return err
			}
		case f.place.State == "" && r.archive.Bucket != nil:
			waiting = append(waiting, f)
		}
	}
	r.index(ctx, files)
	r.tell(files, waiting, nil)
	failed := r.send(ctx, files, waiting, now)
	if failed == nil {
		failed = r.release(ctx, files, now)
	}
	return r.report(ctx, now, failed)
}

// atOnce is how many indexes a round makes.
const atOnce = 50

// index makes what is missing of indexes, so that the first search need not.
func (r *Recordings) index(ctx context.Context, files []here) {
	made := 0
	for _, f := range files {
		if _, err := os.Lstat(indexPath(f.path)); err == nil || f.place.State == stateRemoved || r.shared.unread[f.session] {
			continue
		}
		if made++; made > atOnce || ctx.Err() != nil {
			return
		}
		if _, raw, err := r.makeIndex(ctx, f.session); err != nil || raw == nil {
			r.shared.unread[f.session] = true // by this process: a search tries again
		}
	}
}

// send puts what waits into the bucket, oldest first.
func (r *Recordings) send(ctx context.Context, files, waiting []here, now time.Time) (failed error) {
	slices.SortFunc(waiting, func(a, b here) int { return a.ended.At.Compare(b.ended.At) })
	var left []here
	for i, f := range waiting {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := r.upload(ctx, f)
		if err == nil {
			r.tell(files, append(slices.Clone(left), waiting[i+1:]...), failed)
			continue
		}
		left = append(left, f)
		if failed == nil {
			failed = err
		}
		if k := fault.KindOf(err); k != fault.Conflict && k != fault.Internal {
			left = append(left, waiting[i+1:]...)
			break // the bucket's, and so everybody's
		}
	}
	r.tell(files, left, failed)
	return failed
}

// tell keeps what Status answers.
func (r *Recordings) tell(files, waiting []here, failed error) {
	s := Status{Waiting: len(waiting), Here: len(files)}
	for _, f := range waiting {
		s.Bytes += f.size
		if s.Oldest.IsZero() || f.ended.At.Before(s.Oldest) {
			s.Oldest = f.ended.At
		}
	}
	if failed != nil {
		s.Failed = fault.From(failed).Text
	}
	r.shared.mu.Lock()
	defer r.shared.mu.Unlock()
	s.Delayed, s.Rounds = r.shared.status.Delayed, r.shared.status.Rounds
	r.shared.status = s
}

// report ends a round: if the archive is behind, or has caught up, an entry
// says so, once.
func (r *Recordings) report(ctx context.Context, now time.Time, failed error) error {
	r.shared.mu.Lock()
	s := &r.shared.status
	if failed != nil {
		s.Failed = fault.From(failed).Text
	}
	behind := s.Waiting > 0 && (now.Sub(s.Oldest) > behindAfter || r.archive.Waiting > 0 && s.Bytes > r.archive.Waiting*4/5)
	s.Rounds++
	was, p := s.Delayed, delayedPayload{V: 1, Waiting: s.Waiting, Bytes: s.Bytes, Why: s.Failed}
	if s.Waiting > 0 {
		p.Since = s.Oldest.UnixMicro()
	}
	r.shared.mu.Unlock()
	if behind == was {
		return failed
	}
	e := ledger.Entry{Action: ActionCaughtUp, Subjects: []string{ledger.System}, Payload: p}
	if behind {
		e.Action, e.Outcome = ActionDelayed, ledger.Failed
	}
	_, err := r.archive.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return []ledger.Entry{e}, nil })
	if err == nil {
		r.shared.mu.Lock()
		r.shared.status.Delayed = behind
		r.shared.mu.Unlock()
	}
	if failed != nil {
		return failed
	}
	return err
}

// finished are the files here whose sessions have ended, with their rows.
func (r *Recordings) finished(ctx context.Context) ([]here, error) {
	var found []here
	var sessions []string
	paths, err := filepath.Glob(filepath.Join(r.deps.Dir, "*", "*.rec"))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot list recordings")
	}
	for _, path := range paths {
		session := strings.TrimSuffix(filepath.Base(path), ".rec")
		if own, err := r.path(session); err != nil || own != path || r.isLive(session) {
			continue
		}
		st, err := os.Lstat(path)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		found, sessions = append(found, here{session: session, path: path, size: st.Size()}), append(sessions, session)
	}
	if len(sessions) == 0 {
		return nil, nil
	}
	ended, err := r.archive.Ended(ctx, sessions)
	if err != nil {
		return nil, err
	}
	rows, err := r.places(ctx, sessions...)
	if err != nil {
		return nil, err
	}
	known := found[:0]
	for _, f := range found {
		over, ok := ended[f.session]
		if f.ended, f.place = over, rows[f.session]; ok || f.place.State != "" {
			known = append(known, f)
		}
	}
	return known, nil
}

func (r *Recordings) isLive(session string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[session] != nil
}

// upload puts one recording into the bucket, and says so in the ledger. What an
// earlier try put there is compared, not sent again.
func (r *Recordings) upload(ctx context.Context, f here) error {
	in, err := os.Open(f.path)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot archive the recording of session %s", f.session)
	}
	defer in.Close()
	s, err := scan(bufio.NewReaderSize(in, 256<<10), f.session)
	if err != nil || s.ending == 0 || s.broken != "" || s.end != f.ended.Bytes || s.end != f.size {
		return fault.New(fault.Internal, "cannot archive the recording of session %s: the file is not what its session closed with", f.session).WithHint("handrail ledger verify")
	}
	p := archivedPayload{V: 1, Session: f.session, Bytes: f.size}
	for n, at := 0, int64(0); at < f.size; n, at = n+1, at+partSize {
		hash, err := r.putPart(ctx, partName(f.session, n), io.NewSectionReader(in, at, min(partSize, f.size-at)))
		if err != nil {
			return err
		}
		p.Parts = append(p.Parts, hash)
	}
	_, err = r.archive.Store.Record(ctx, "archived-"+f.session, func(tx *store.Tx) ([]ledger.Entry, error) {
		n, err := tx.Exec(`INSERT INTO recording_places (session, state, bytes, parts, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (session) DO NOTHING`,
			f.session, stateBucket, f.size, strings.Join(p.Parts, " "), tx.Now().UnixMicro())
		if err == nil && n == 0 { // removed meanwhile: the next sweep takes the objects away
			err = fault.New(fault.Conflict, "cannot archive the recording of session %s: it has a place", f.session)
		}
		return []ledger.Entry{{Action: ActionArchived, Subjects: []string{ledger.System}, Session: f.session, Payload: p}}, err
	})
	if err != nil && fault.KindOf(err) != fault.Conflict {
		return err
	}
	r.shareIndex(ctx, f.session)
	return nil
}

func (r *Recordings) putPart(ctx context.Context, name string, part *io.SectionReader) (string, error) {
	want, size, err := sum(io.NewSectionReader(part, 0, part.Size()))
	if err != nil || size != part.Size() {
		return "", fault.New(fault.Internal, "cannot read a recording to archive it: %v", err)
	}
	err = r.archive.Bucket.Put(ctx, name, part)
	if fault.KindOf(err) != fault.Conflict {
		return want, err
	}
	there, err := r.archive.Bucket.Get(ctx, name, 0, -1)
	if err != nil {
		return "", err
	}
	defer there.Close()
	got, _, err := sum(there)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot read %s back", name)
	}
	if got != want {
		return "", fault.New(fault.Conflict, "cannot archive a recording: %s is in the bucket, and is something else", name).WithHint("move that object away")
	}
	return want, nil
}

// release removes files whose objects have been there long enough, once they
// were read back.
func (r *Recordings) release(ctx context.Context, files []here, now time.Time) (failed error) {
	for _, f := range files {
		if f.place.State != stateBucket || r.archive.Bucket == nil || now.Sub(time.UnixMicro(f.place.At)) < r.archive.Local {
			continue
		}
		err := r.intact(ctx, f.place)
		if err == nil {
			err = r.wipeFiles(f.session)
		}
		if err != nil && failed == nil {
			failed = err
		}
		if k := fault.KindOf(err); err != nil && k != fault.Conflict && k != fault.NotFound {
			return failed
		}
	}
	return failed
}

// sweep lets go of what is past its time, and deletes objects of what was
// removed: a crash, or a server that was away, may have left some.
func (r *Recordings) sweep(ctx context.Context, now time.Time) error {
	if r.archive.Keep > 0 {
		if err := r.expire(ctx, now.Add(-r.archive.Keep)); err != nil {
			return err
		}
	}
	if r.archive.Bucket == nil {
		return nil
	}
	removed := map[string]bool{}
	err := r.every(ctx, stateRemoved, func(p place) error {
		removed[p.Session] = true
		return nil
	})
	if err != nil || len(removed) == 0 {
		return err
	}
	for o, err := range r.archive.Bucket.List(ctx, "") {
		if err != nil {
			return err
		}
		if session, ok := ofPart(o.Name); ok && removed[session] {
			if err := r.archive.Bucket.Delete(ctx, o.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// expire removes recordings that are older than a moment.
func (r *Recordings) expire(ctx context.Context, before time.Time) error {
	var old []string
	err := r.every(ctx, stateBucket, func(p place) error {
		if p.At < before.UnixMicro() {
			old = append(old, p.Session)
		}
		return nil
	})
	if err != nil {
		return err
	}
	files, err := r.finished(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.place.State == "" && f.ended.At.Before(before) {
			old = append(old, f.session)
		}
	}
	return r.Remove(ctx, "kept long enough", old...)
}
