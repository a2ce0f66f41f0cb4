package keyring

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// A rotation has three steps, each of which a crash leaves done or not begun:
//
//	Propose   makes keys, sealed, and the bundle that would name them. Nothing
//	          changes: people agree to that very text, and the root key signs it.
//	Install   puts the keys beside the old ones and then the bundle in place.
//	          Everybody learns the bundle; the old keys act, the log is signed by
//	          old and new.
//	Finish    destroys the old private keys; from then on the new ones act.
//
// Servers of one installation hand the proposal on through their database,
// sealed under the master key that all of them hold.

// Proposal is a rotation that nobody has agreed to yet.
type Proposal struct {
	Text   []byte // of the bundle to be signed
	Sealed []byte // the new private keys
}

// Kinds are those that can be rotated.
func Kinds() (kinds []string) {
	for _, r := range rotating {
		kinds = append(kinds, r.kind)
	}
	return kinds
}

// Propose makes new keys of these kinds, and the bundle that names them. The
// keys that they replace count until then.
func (r *Ring) Propose(kinds []string, until time.Time) (Proposal, error) {
	if len(kinds) == 0 {
		return Proposal{}, fault.New(fault.Invalid, "cannot rotate keys: none is named").WithHint("handrail keys")
	}
	if r.Rotating() {
		return Proposal{}, fault.New(fault.Conflict, "cannot rotate keys: the last rotation is not finished here").WithHint("handrail keys")
	}
	now := r.keys().bundle
	next := now
	next.Version++
	next.Former = slices.DeleteFunc(slices.Clone(now.Former), func(f ledger.Former) bool {
		return f.Kind != ledger.KeyLog && f.Until < time.Now().Unix()
	})
	files := map[string][]byte{}
	for _, kind := range kinds {
		at := slices.IndexFunc(rotating, func(k struct{ kind, file string }) bool { return k.kind == kind })
		if at < 0 {
			return Proposal{}, fault.New(fault.Invalid, "cannot rotate %q: it is no kind of key", kind).WithHint("one of %s", strings.Join(Kinds(), ", "))
		}
		if slices.Contains(kinds[slices.Index(kinds, kind)+1:], kind) {
			return Proposal{}, fault.New(fault.Invalid, "cannot rotate keys: %s is named twice", kind)
		}
		for _, public := range now.Keys(kind) {
			next.Former = append(next.Former, ledger.Former{Kind: kind, Until: until.Unix(), Key: public})
		}
		public, err := makeNext(files, kind, rotating[at].file, r.origin)
		if err != nil {
			return Proposal{}, err
		}
		next = named(next, kind, public)
	}
	text, err := next.Text()
	if err != nil {
		return Proposal{}, err
	}
	plain, err := json.Marshal(parcel{V: 1, Files: files})
	if err != nil {
		return Proposal{}, fault.Wrap(fault.Internal, err, "cannot seal the new keys")
	}
	defer clear(plain)
	aead, err := r.rotationKey()
	if err != nil {
		return Proposal{}, err
	}
	return Proposal{Text: text, Sealed: seal(aead, plain, rotationContext(text))}, nil
}

// makeNext makes one key, in files named after its public half, and returns
// that half as it stands in a bundle.
func makeNext(files map[string][]byte, kind, base, origin string) (public string, err error) {
	cannot := func(err error) (string, error) {
		return "", fault.Wrap(fault.Internal, err, "cannot make a key of kind %s", kind)
	}
	var content []byte
	switch kind {
	case ledger.KeyLog:
		skey, vkey, err := note.GenerateKey(rand.Reader, origin)
		if err != nil {
			return cannot(err)
		}
		public, content = vkey, []byte(skey+"\n")
	case ledger.KeyCA:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return cannot(err)
		}
		cert, err := certifyKey(key, origin)
		if err != nil {
			return cannot(err)
		}
		block, _ := pem.Decode(cert)
		public = base64.StdEncoding.EncodeToString(block.Bytes)
		files[certificateOf(nextName(base, public))] = cert
		if content, err = encodeKey(key); err != nil {
			return cannot(err)
		}
	default:
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return cannot(err)
		}
		if content, err = encodeKey(key); err != nil {
			return cannot(err)
		}
		public = base64.StdEncoding.EncodeToString(pub)
		if kind != ledger.KeyOrder {
			line, err := ssh.NewPublicKey(pub)
			if err != nil {
				return cannot(err)
			}
			public = sshLine(line)
		}
	}
	files[nextName(base, public)] = content
	return public, nil
}

// nextName is the file of a key that came by a rotation.
func nextName(base, public string) string {
	sum := sha256.Sum256([]byte(public))
	return base + "." + hex.EncodeToString(sum[:6])
}

func (r *Ring) rotationKey() (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, r.subjects.master.Reveal(), nil, "handrail-rotation-v1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal the new keys")
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal the new keys")
	}
	return aead, nil
}

func rotationContext(text []byte) []byte {
	sum := sha256.Sum256(text)
	return append([]byte("handrail-rotation-v1\n"), sum[:]...)
}

// Install puts the keys of a proposal, whose text the root key has signed,
// beside those in force, and then the bundle in place. One that is older than
// the bundle in force, or the same, changes nothing and is refused.
func (r *Ring) Install(sealed, signed []byte) error {
	b, err := ledger.OpenBundle(signed, r.rootHash)
	if err != nil {
		return err
	}
	text, err := b.Text()
	if err != nil {
		return err
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	now := r.keys().bundle
	if b.Version <= now.Version || b.Epoch < now.Epoch || b.Origin != now.Origin {
		return fault.New(fault.Denied, "cannot install trust bundle %d: %d is in force", b.Version, now.Version)
	}
	aead, err := r.rotationKey()
	if err != nil {
		return err
	}
	plain, err := unseal(aead, sealed, rotationContext(text))
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot open the keys of trust bundle %d", b.Version)
	}
	defer clear(plain)
	var p parcel
	if err := json.Unmarshal(plain, &p); err != nil || p.V != 1 {
		return fault.New(fault.Invalid, "cannot read the keys of trust bundle %d: they are of another version", b.Version)
	}
	d, err := openDir(r.dir)
	if err != nil {
		return err
	}
	if err := putKeys(d, p.Files); err != nil {
		return err
	}
	if err := d.replace(fileBundle, signed); err != nil {
		return err
	}
	return r.loadKeys(d)
}

// putKeys writes certificates before the keys that they are of, so that a key
// without one is never seen.
func putKeys(d secureDir, files map[string][]byte) error {
	names := make([]string, 0, len(files))
	for name := range files {
		if filepath.Base(name) != name || !slices.ContainsFunc(rotating, func(k struct{ kind, file string }) bool {
			return strings.HasPrefix(name, k.file+".") || k.kind == ledger.KeyCA && strings.HasPrefix(name, fileCACert+".")
		}) {
			return fault.New(fault.Invalid, "cannot install keys: %q is none", name)
		}
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return strings.Compare(strings.TrimPrefix(a, fileCACert), strings.TrimPrefix(b, fileCACert))
	})
	for _, name := range names {
		if d.has(name) {
			if held, err := d.read(name); err != nil || !bytes.Equal(held, files[name]) {
				return fault.New(fault.Conflict, "cannot install keys: another file lies at %s", filepath.Join(d.path, name))
			}
			continue
		}
		if err := d.createOnce(name, func() ([]byte, error) { return files[name], nil }); err != nil {
			return err
		}
	}
	return nil
}

// Rotating says whether former keys still act: a rotation was installed here
// and is not finished.
func (r *Ring) Rotating() bool { return len(r.keys().former) > 0 }

// Finish destroys the former private keys. That of the authority for people's
// keys stays, to log in to hosts without a node alone, until its end.
func (r *Ring) Finish() error {
	r.turn.Lock()
	defer r.turn.Unlock()
	d, err := openDir(r.dir)
	if err != nil {
		return err
	}
	for _, name := range r.keys().former {
		if strings.HasPrefix(name, fileSSHUserCA) {
			if err := os.Rename(filepath.Join(d.path, name), filepath.Join(d.path, fileSSHUserCA+suffixHop)); err != nil {
				return fault.Wrap(fault.Unavailable, err, "cannot finish the rotation")
			}
			continue
		}
		if err := d.remove(name); err != nil { // the key first: what is left is no key
			return err
		}
		if strings.HasPrefix(name, fileCA) {
			if err := d.remove(certificateOf(name)); err != nil {
				return err
			}
		}
	}
	if err := d.sync(); err != nil {
		return err
	}
	return r.loadKeys(d)
}

// Tidy destroys the former authority for people's keys once its time has ended.
func (r *Ring) Tidy(now time.Time) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	k := r.keys()
	if k.hop == nil || k.hopSigner(now) == k.hop {
		return nil
	}
	d, err := openDir(r.dir)
	if err == nil {
		err = d.remove(fileSSHUserCA + suffixHop)
	}
	if err == nil {
		err = r.loadKeys(d)
	}
	return err
}
