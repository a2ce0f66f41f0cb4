package keyring

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Several servers seal for the same subjects, so they must agree on one data
// key a subject. They do on a shelf that all of them reach: whoever puts a key
// there first has made it. What lies there is wrapped by the master key, as the
// file is; each server keeps a file of every key that it has used, so the shelf
// can be filled again from any of them.

// Shelf holds wrapped data keys and tombstones.
type Shelf interface {
	// Put keeps a wrapped key unless one is there, and returns the one that is;
	// gone says that the subject was erased.
	Put(subject string, wrapped []byte) (kept []byte, gone bool, err error)
	// Get returns the wrapped key, or nil.
	Get(subject string) (wrapped []byte, gone bool, err error)
	// Destroy removes the key and leaves a tombstone.
	Destroy(subject string) error
	// List says of each subject whether it was erased.
	List() (map[string]bool, error)
}

// Share says that other servers seal, too: until UseShelf no data key is made.
func (s *Subjects) Share() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = true
}

// UseShelf agrees with what lies on the shelf: keys of ours go there, and what
// was erased elsewhere is erased here. Two different keys for one subject are a
// refusal: one half of what was sealed could not be read.
func (s *Subjects) UseShelf(shelf Shelf) error {
	there, err := shelf.List()
	if err != nil {
		return err
	}
	for subject, gone := range there {
		if gone {
			if err := s.destroyHere(subject); err != nil {
				return err
			}
		}
	}
	files, err := os.ReadDir(s.d.path)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read the data keys")
	}
	for _, f := range files {
		if subject, ok := strings.CutSuffix(f.Name(), suffixGone); ok && !there[subject] {
			err = shelf.Destroy(subject)
		} else if subject, ok := strings.CutSuffix(f.Name(), suffixKey); ok && !strings.HasPrefix(subject, ".") {
			err = s.offer(shelf, subject)
		}
		if err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared, s.shelf = true, shelf
	return nil
}

func (s *Subjects) offer(shelf Shelf, subject string) error {
	if s.d.has(subject + suffixGone) {
		return nil // a crash left both; the tombstone wins
	}
	wrapped, err := s.d.read(subject + suffixKey)
	if err != nil {
		return err
	}
	kept, gone, err := shelf.Put(subject, wrapped)
	switch {
	case err != nil:
		return err
	case gone:
		return s.destroyHere(subject)
	case !bytes.Equal(kept, wrapped):
		return fault.New(fault.Conflict, "cannot agree on the data key of %s: the other servers have another", subject).
			WithHint("restore %s of one of the servers from a backup", filepath.Join(s.d.path, subject+suffixKey))
	}
	return nil
}

// Forget erases a subject here because another server erased it.
func (s *Subjects) Forget(subject string) error {
	if err := checkSubject(subject); err != nil {
		return err
	}
	return s.destroyHere(subject)
}

func (s *Subjects) destroyHere(subject string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, subject)
	if err := s.d.create(subject+suffixGone, nil, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.shred(subject)
}

// fetch gets the file of a subject from the shelf, or makes the key there
// first. The caller holds mu.
func (s *Subjects) fetch(subject string, mayMake bool) error {
	if s.shelf == nil {
		if !mayMake {
			return nil
		}
		return fault.New(fault.Unavailable, "cannot make the data key of %s: the other servers are not asked yet", subject)
	}
	wrapped, gone, err := s.shelf.Get(subject)
	if err == nil && wrapped == nil && !gone && mayMake {
		if wrapped, err = s.wrapNew(subject); err == nil {
			wrapped, gone, err = s.shelf.Put(subject, wrapped)
		}
	}
	if err != nil {
		return err
	}
	if gone {
		return s.d.create(subject+suffixGone, nil, 0o600)
	}
	if wrapped == nil {
		return nil
	}
	return s.d.create(subject+suffixKey, wrapped, 0o600)
}
