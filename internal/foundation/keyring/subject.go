package keyring

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"handrail.dev/handrail/internal/foundation/fault"
)

// keptKeys bounds the opened data keys in memory.
const keptKeys = 16 << 10

const (
	suffixKey  = ".key"
	suffixGone = ".destroyed"
)

var subjectName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`) })

// Subjects seals payloads under one data key a subject, so that a subject can
// be erased while every proof over the sealed bytes' commitment stays valid.
// A data key is a file of its own, wrapped by the master key, on disk before
// the first payload is sealed with it. Destroying it leaves a tombstone first:
// if we crash between the two, the tombstone wins.
type Subjects struct {
	d      secureDir
	master Secret

	mu     sync.RWMutex
	open   map[string]cipher.AEAD
	shared bool  // other servers seal, too
	shelf  Shelf // where they agree; nil: not yet, or there are none
}

func openSubjects(ring secureDir, path string) (*Subjects, error) {
	d, err := openDir(path)
	if err != nil {
		return nil, err
	}
	master, err := ring.readBase64(fileMaster, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return &Subjects{d: d, master: NewSecret(master), open: map[string]cipher.AEAD{}}, nil
}

// Seal encrypts plain under the subject's data key, bound to ad. The first
// time it makes the key; after Destroy it refuses.
func (s *Subjects) Seal(subject string, plain, ad []byte) ([]byte, error) {
	aead, err := s.key(subject, true)
	if err != nil {
		return nil, err
	}
	return seal(aead, plain, sealContext(subject, ad)), nil
}

// Open decrypts what Seal made for the same subject and ad.
func (s *Subjects) Open(subject string, sealed, ad []byte) ([]byte, error) {
	aead, err := s.key(subject, false)
	if err != nil {
		return nil, err
	}
	plain, err := unseal(aead, sealed, sealContext(subject, ad))
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "cannot open a payload of %s", subject)
	}
	return plain, nil
}

// Destroy makes everything that was sealed for the subject unreadable for
// good. Doing it twice is no error.
func (s *Subjects) Destroy(subject string) error {
	if err := checkSubject(subject); err != nil {
		return err
	}
	s.mu.RLock()
	shelf := s.shelf
	s.mu.RUnlock()
	if shelf != nil { // first: a crash in between leaves it erased for everybody
		if err := shelf.Destroy(subject); err != nil {
			return err
		}
	}
	return s.destroyHere(subject)
}

// shred overwrites and unlinks the key file. The overwrite does not reach
// copies below the file system; what makes the key worthless there is that it
// is wrapped by the master key, which is on no backup of the database.
func (s *Subjects) shred(subject string) error {
	path := filepath.Join(s.d.path, subject+suffixKey)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot destroy the key of %s", subject)
	}
	_, err = f.WriteAt(randomBytes(wrappedSize), 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot destroy the key of %s", subject)
	}
	return s.d.remove(subject + suffixKey)
}

func (s *Subjects) key(subject string, mayMake bool) (cipher.AEAD, error) {
	s.mu.RLock()
	aead, ok := s.open[subject]
	s.mu.RUnlock()
	if ok {
		return aead, nil
	}
	if err := checkSubject(subject); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if aead, ok := s.open[subject]; ok {
		return aead, nil
	}
	raw, err := s.load(subject, mayMake)
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	if aead, err = chacha20poly1305.NewX(raw.Reveal()); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot use the key of %s", subject)
	}
	if len(s.open) >= keptKeys {
		clear(s.open) // rare and cheap to fill again
	}
	s.open[subject] = aead
	return aead, nil
}

func (s *Subjects) load(subject string, mayMake bool) (Secret, error) {
	if s.d.has(subject + suffixGone) {
		if err := s.shred(subject); err != nil { // we crashed in Destroy
			return Secret{}, err
		}
		return Secret{}, fault.New(fault.NotFound, "cannot open anything of %s: it was erased", subject)
	}
	if !s.d.has(subject + suffixKey) {
		var err error
		if s.shared {
			err = s.fetch(subject, mayMake)
		} else if mayMake {
			err = s.make(subject)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return Secret{}, err
		}
		if s.d.has(subject + suffixGone) {
			return Secret{}, fault.New(fault.NotFound, "cannot open anything of %s: it was erased", subject)
		}
	}
	if !s.d.has(subject + suffixKey) {
		return Secret{}, fault.New(fault.NotFound, "cannot open anything of %s: it has no key", subject)
	}
	wrapped, err := s.d.read(subject + suffixKey)
	if err != nil {
		return Secret{}, err
	}
	master, err := chacha20poly1305.NewX(s.master.Reveal())
	if err != nil {
		return Secret{}, fault.Wrap(fault.Internal, err, "cannot use the master key")
	}
	raw, err := unseal(master, wrapped, wrapContext(subject))
	if err != nil {
		return Secret{}, s.d.damaged(subject+suffixKey, err)
	}
	return NewSecret(raw), nil
}

func (s *Subjects) make(subject string) error {
	wrapped, err := s.wrapNew(subject)
	if err != nil {
		return err
	}
	return s.d.create(subject+suffixKey, wrapped, 0o600)
}

func (s *Subjects) wrapNew(subject string) ([]byte, error) {
	master, err := chacha20poly1305.NewX(s.master.Reveal())
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot use the master key")
	}
	raw := NewSecret(randomBytes(chacha20poly1305.KeySize))
	defer raw.Wipe()
	return seal(master, raw.Reveal(), wrapContext(subject)), nil
}

func checkSubject(subject string) error {
	if !subjectName().MatchString(subject) {
		return fault.New(fault.Invalid, "cannot seal for %q: it is not the id of a subject", subject)
	}
	return nil
}

const (
	sealVersion = 1
	wrappedSize = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.KeySize + chacha20poly1305.Overhead
)

func wrapContext(subject string) []byte { return []byte("handrail-data-key-v1\n" + subject) }

func sealContext(subject string, ad []byte) []byte {
	return append([]byte("handrail-sealed-v1\n"+subject+"\n"), ad...)
}

// seal prefixes a version byte and a random nonce, which is long enough
// (192 bits) never to repeat under one key.
func seal(aead cipher.AEAD, plain, ad []byte) []byte {
	out := make([]byte, 1+aead.NonceSize(), 1+aead.NonceSize()+len(plain)+aead.Overhead())
	out[0] = sealVersion
	_, _ = rand.Read(out[1:]) // never fails
	return aead.Seal(out, out[1:], plain, ad)
}

func unseal(aead cipher.AEAD, sealed, ad []byte) ([]byte, error) {
	head := 1 + aead.NonceSize()
	if len(sealed) < head+aead.Overhead() || sealed[0] != sealVersion {
		return nil, errors.New("it is cut short or of another version")
	}
	return aead.Open(nil, sealed[1:head], sealed[head:], ad)
}
