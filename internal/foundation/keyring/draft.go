package keyring

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// suffixDraft is behind the name of what is not yet in its place.
const suffixDraft = ".new"

// draft is a ring that is being made, beside the place where it will stand: it
// gets there whole, by one rename, so that a ring that stands is complete. What
// was killed before, nobody has relied on.
type draft struct {
	secureDir
	place   string
	written []*os.File // and not yet on disk
}

// stands says whether there is a ring at path, whole or not.
func stands(path string) (bool, error) {
	list, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.Wrap(fault.Unavailable, err, "cannot read %s", path)
	}
	return len(list) > 0, nil
}

// newDraft begins a ring that will stand at place, where there is none, and
// throws away what an earlier attempt left.
func newDraft(place string) (*draft, error) {
	path := place + suffixDraft
	if err := os.RemoveAll(path); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot remove %s", path)
	}
	d, err := makeDir(path)
	if err == nil {
		_, err = makeDir(filepath.Join(path, dirSubjects))
	}
	if err != nil {
		return nil, err
	}
	return &draft{secureDir: d, place: place}, nil
}

// put writes a file that is not there, in the draft or beside it.
func (d *draft) put(into secureDir, name string, content []byte, mode fs.FileMode) error {
	path := filepath.Join(into.path, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err == nil {
		d.written = append(d.written, f)
		_, err = f.Write(content)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", path)
	}
	return nil
}

// stand puts the ring in its place, with everything that was written, and the
// folders around it, on disk before.
func (d *draft) stand(around ...string) error {
	parent := filepath.Dir(d.place)
	for _, path := range append(around, d.path, filepath.Join(d.path, dirSubjects), parent) {
		f, err := os.Open(path)
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot sync %s", path)
		}
		d.written = append(d.written, f)
	}
	if err := d.toDisk(); err != nil {
		return err
	}
	// An empty folder may wait there; one that holds anything stays.
	if err := os.Remove(d.place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot make room for the key ring")
	}
	if err := os.Rename(d.path, d.place); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot put the key ring in its place")
	}
	return secureDir{path: parent}.sync()
}

// syncsAtOnce is how many files wait for the disk together. Syncs that meet share
// a commit of the file system's journal; more of them are no faster, and each is a
// thread that a supervisor keeps.
const syncsAtOnce = 4

// toDisk returns when all that was written is on disk.
func (d *draft) toDisk() error {
	next := make(chan *os.File, len(d.written))
	for _, f := range d.written {
		next <- f
	}
	close(next)
	errs := make([]error, syncsAtOnce)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			for f := range next {
				errs[i] = errors.Join(errs[i], f.Sync())
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write the key ring to disk")
	}
	return nil
}

func (d *draft) close() {
	for _, f := range d.written {
		_ = f.Close() // synced, or of a draft that failed
	}
}
