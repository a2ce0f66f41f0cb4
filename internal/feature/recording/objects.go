package recording

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"handrail.dev/handrail/internal/foundation/fault"
)

// source opens the bytes of a recording: the file, or what lies in the bucket.
func (r *Recordings) source(ctx context.Context, session string) (io.ReadCloser, error) {
	path, err := r.path(session)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the recording of session %s", session)
	}
	p, err := r.places(ctx, session)
	if err != nil {
		return nil, err
	}
	switch p[session].State {
	case stateBucket:
		return r.objects(ctx, p[session])
	case stateRemoved:
		return nil, fault.New(fault.NotFound, "cannot read the recording of session %s: it was removed", session)
	}
	return nil, os.ErrNotExist
}

// objects reads a recording out of the bucket. Nothing of it is believed: who
// reads it checks its chain, and the ledger's hashes where it verifies.
func (r *Recordings) objects(ctx context.Context, p place) (io.ReadCloser, error) {
	if r.archive.Bucket == nil {
		return nil, fault.New(fault.Unavailable, "cannot read the recording of session %s: it lies in a bucket, and none is configured", p.Session).
			WithHint("handrail config explain --help")
	}
	return &objects{ctx: ctx, r: r, place: p, left: len(p.hashes())}, nil
}

// objects are the objects of one recording as one stream. Where it breaks off
// is no end: err says why, for who would take it for one.
type objects struct {
	ctx   context.Context
	r     *Recordings
	place place
	next  int
	left  int
	total int64
	in    io.ReadCloser
	err   error
}

// Read reads one object after the other.
func (o *objects) Read(b []byte) (int, error) {
	for o.err == nil {
		if o.in == nil && !o.more() {
			break
		}
		n, err := o.in.Read(b)
		o.total += int64(n)
		if errors.Is(err, io.EOF) {
			err = o.in.Close()
			o.in = nil
		}
		if err != nil {
			o.err = fault.Wrap(fault.Unavailable, err, "cannot read the recording of session %s out of the bucket", o.place.Session)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, o.err
}

// more opens the next object; at the end it leaves io.EOF.
func (o *objects) more() bool {
	if o.left == 0 {
		if o.err = io.EOF; o.total != o.place.Bytes {
			o.err = touchedObject(o.place.Session, o.next-1)
		}
		return false
	}
	o.in, o.err = o.r.archive.Bucket.Get(o.ctx, partName(o.place.Session, o.next), 0, -1)
	o.next, o.left = o.next+1, o.left-1
	return o.err == nil
}

// broken is why a stream ended, if that is not its end.
func broken(in io.Reader) error {
	if o, ok := in.(*objects); ok && o.err != nil && !errors.Is(o.err, io.EOF) {
		return o.err
	}
	return nil
}

// Close closes the object that is being read.
func (o *objects) Close() error {
	if o.in != nil {
		return o.in.Close()
	}
	return nil
}

// sum is the SHA-256 of what a reader gives, in hex.
func sum(in io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, in)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// intact reads every object back and compares it with what was put.
func (r *Recordings) intact(ctx context.Context, p place) error {
	var total int64
	for n, want := range p.hashes() {
		in, err := r.archive.Bucket.Get(ctx, partName(p.Session, n), 0, -1)
		if err != nil {
			return err
		}
		got, size, err := sum(in)
		in.Close()
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot read %s back", partName(p.Session, n))
		}
		if got != want {
			return touchedObject(p.Session, n)
		}
		total += size
	}
	if total != p.Bytes {
		return touchedObject(p.Session, 0)
	}
	return nil
}

func touchedObject(session string, n int) error {
	return fault.New(fault.Conflict, "cannot trust the bucket: object %s is not what was put there", partName(session, n)).WithHint("handrail ledger verify")
}

// wipe deletes what there is of a recording, here and in the bucket.
func (r *Recordings) wipe(ctx context.Context, session string) error {
	if err := r.wipeFiles(session); err != nil {
		return err
	}
	if r.archive == nil || r.archive.Bucket == nil {
		return nil
	}
	for o, err := range r.archive.Bucket.List(ctx, folderOf(session)) {
		if err == nil {
			err = r.archive.Bucket.Delete(ctx, o.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wipeFiles deletes a recording's files here, so that a power cut does not bring
// them back.
func (r *Recordings) wipeFiles(session string) error {
	path, err := r.path(session)
	if err != nil {
		return err
	}
	gone := false
	for _, name := range []string{path, indexPath(path)} {
		err := os.Remove(name)
		gone = gone || err == nil
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Wrap(fault.Unavailable, err, "cannot remove the recording of session %s", session)
		}
	}
	if !gone {
		return nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the recording of session %s", session)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// indexPath is where a recording's index lies, beside it.
func indexPath(path string) string { return path[:len(path)-len(".rec")] + ".idx" }
