package keyring

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A server that joins gets the ring sealed to a key that it made itself (HPKE,
// RFC 9180, X25519 with ML-KEM-768), after somebody else agreed to that very
// key. The root key is not in the ring, so it cannot travel; data keys come by
// the shelf.

// travelling are the files that another server needs, mayMiss those that a ring
// may lack: the replay key is kept apart by some, and a ring from before
// vouchers has no authority for them.
var travelling = []string{
	fileOrigin, fileLog, fileOrder, fileCA, fileCACert, fileSSHUserCA, fileSSHHostCA, fileSSHHost,
	fileVoucherCA, fileMaster, fileReplay, fileReplayPub, fileBundle, fileRootHash,
}

func mayMiss(name string) bool { return name == fileReplay || name == fileVoucherCA }

const (
	travelInfo = "handrail-ring-v1\n"
	maxParcel  = 256 << 10
	fileChest  = "joining.key"
)

// Chest is the key of a server that joins. Its private half never leaves that
// machine and is removed once the ring is there.
type Chest struct {
	d   secureDir
	key hpke.PrivateKey
}

// MakeChest makes the key in dir, or reads the one that an earlier try made.
func MakeChest(dir string) (*Chest, error) {
	d, err := makeDir(dir)
	if err != nil {
		return nil, err
	}
	kem := hpke.MLKEM768X25519()
	err = d.createOnce(fileChest, func() ([]byte, error) {
		key, err := kem.GenerateKey()
		if err != nil {
			return nil, err
		}
		raw, err := key.Bytes()
		return base64Line(raw), err
	})
	if err != nil {
		return nil, err
	}
	text, err := d.read(fileChest)
	if err != nil {
		return nil, err
	}
	raw, err := decodeLine(text)
	if err != nil {
		return nil, d.damaged(fileChest, err)
	}
	key, err := kem.NewPrivateKey(raw)
	if err != nil {
		return nil, d.damaged(fileChest, err)
	}
	return &Chest{d: d, key: key}, nil
}

// Public is what the other servers seal to.
func (c *Chest) Public() []byte { return c.key.PublicKey().Bytes() }

// Fingerprint is what two people compare before one of them agrees.
func Fingerprint(public []byte) string {
	sum := sha256.Sum256(public)
	text := hex.EncodeToString(sum[:16])
	return text[:8] + "-" + text[8:16] + "-" + text[16:24] + "-" + text[24:]
}

// CheckChest refuses bytes that nobody can seal to.
func CheckChest(public []byte) error {
	if _, err := hpke.MLKEM768X25519().NewPublicKey(public); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot use the key of the joining server")
	}
	return nil
}

// parcel is what travels.
type parcel struct {
	V     int               `json:"v"`
	Files map[string][]byte `json:"files"`
}

// SealFor seals the ring to a joining server. context binds it to one join: the
// same bytes open no other.
func (r *Ring) SealFor(public []byte, context string) ([]byte, error) {
	to, err := hpke.MLKEM768X25519().NewPublicKey(public)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot seal the keys")
	}
	d, err := openDir(r.dir)
	if err != nil {
		return nil, err
	}
	p := parcel{V: 1, Files: map[string][]byte{}}
	for _, name := range travelling {
		if mayMiss(name) && !d.has(name) {
			continue
		}
		if p.Files[name], err = d.read(r.keys().file(name)); err != nil {
			return nil, err
		}
	}
	plain, err := json.Marshal(p)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal the keys")
	}
	defer clear(plain)
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(travelInfo+context), plain)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal the keys")
	}
	return sealed, nil
}

// Unpack makes a ring in dir of what SealFor sealed. rootHash is what the
// token carried: keys of another installation are refused. A crash leaves all of
// it or none.
func (c *Chest) Unpack(dir, rootHash, context string, sealed []byte) error {
	if len(sealed) > maxParcel {
		return fault.New(fault.Invalid, "cannot read the keys: %d bytes", len(sealed))
	}
	plain, err := hpke.Open(c.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(travelInfo+context), sealed)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot open the keys: they were sealed for another server or another join")
	}
	defer clear(plain)
	var p parcel
	if err := json.Unmarshal(plain, &p); err != nil || p.V != 1 {
		return fault.New(fault.Invalid, "cannot read the keys: they are of another version")
	}
	if err := checkParcel(p, rootHash); err != nil {
		return err
	}
	there, err := stands(dir)
	if err != nil {
		return err
	}
	if there {
		return fault.New(fault.Conflict, "cannot put the keys into %s: there are keys already", dir)
	}
	d, err := newDraft(dir)
	if err != nil {
		return err
	}
	defer d.close()
	for _, name := range travelling {
		if content, there := p.Files[name]; there {
			if err := d.put(d.secureDir, name, content, 0o600); err != nil {
				return err
			}
		}
	}
	if _, err := Open(d.path); err != nil {
		return err
	}
	return d.stand()
}

// checkParcel takes exactly the files that travel, of the pinned installation.
func checkParcel(p parcel, rootHash string) error {
	if got := string(trimLine(p.Files[fileRootHash])); got != rootHash {
		return fault.New(fault.Denied, "cannot use the keys: they are of another installation than the token")
	}
	known := map[string]bool{}
	for _, name := range travelling {
		known[name] = true
		if _, there := p.Files[name]; !there && !mayMiss(name) {
			return fault.New(fault.Invalid, "cannot use the keys: %s is missing", name)
		}
	}
	for name := range p.Files {
		if !known[name] {
			return fault.New(fault.Invalid, "cannot use the keys: %q is no key", name)
		}
	}
	return nil
}

// Remove destroys the private half.
func (c *Chest) Remove() error {
	if err := c.d.remove(fileChest); err != nil {
		return err
	}
	_ = os.Remove(c.d.path) // the folder may hold something else
	return nil
}
