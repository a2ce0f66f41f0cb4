package keyring

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// The one file of the root directory, readable only (0400).
const fileRoot = "root.key"

const authorityFor = 10 * 365 * 24 * time.Hour

// Init makes the ring in dir and the root key in rootDir, and signs the first
// trust bundle. On a ring that is whole it does nothing. It writes "making"
// first and removes it last, so that after a crash it knows which keys nobody
// can have relied on yet: while "making" is there, missing keys are made and
// present ones kept; without it, a missing key is a refusal.
func Init(dir, rootDir, origin string) error {
	if err := checkOrigin(origin); err != nil {
		return err
	}
	d, err := makeDir(dir)
	if err != nil {
		return err
	}
	fresh, err := d.empty()
	if err != nil {
		return err
	}
	if !fresh && !d.has(fileMaking) {
		_, err := Open(dir)
		return err
	}
	root, err := makeDir(rootDir)
	if err != nil {
		return err
	}
	if fresh {
		if root.has(fileRoot) {
			return fault.New(fault.Conflict, "cannot make a key ring in %s: %s holds the root key of another", dir, rootDir).
				WithHint("restore %s from a backup, or move %s away to begin a new installation", dir, rootDir)
		}
		if err := d.create(fileMaking, []byte("this ring is being made\n"), 0o600); err != nil {
			return err
		}
	}
	return finish(d, root, origin)
}

// finish makes what is missing; the bundle comes last, and then the marker goes.
func finish(d, root secureDir, origin string) error {
	rootKey, rootPublic, err := makeRoot(d, root, origin)
	if err != nil {
		return err
	}
	if err := makeKeys(d, origin); err != nil {
		return err
	}
	if _, err := makeDir(filepath.Join(d.path, dirSubjects)); err != nil {
		return err
	}
	r := &Ring{dir: d.path}
	for _, load := range []func(secureDir) error{r.loadNames, r.loadHostKey, r.loadReplay} {
		if err := load(d); err != nil {
			return err
		}
	}
	if r.origin != origin {
		return fault.New(fault.Conflict, "cannot finish the key ring: it was begun as %q, not %q", r.origin, origin)
	}
	if !d.has(fileBundle) {
		b, err := firstBundle(d, r.origin, rootPublic)
		if err != nil {
			return err
		}
		signed, err := ledger.SignBundle(b, rootKey)
		if err != nil {
			return err
		}
		if err := d.create(fileBundle, signed, 0o600); err != nil {
			return err
		}
	}
	if err := r.loadKeys(d); err != nil {
		return err
	}
	return d.remove(fileMaking)
}

// makeRoot makes or reads the root key. The name in it is the origin's, so
// that a person who finds it printed knows what it is for.
func makeRoot(d, root secureDir, origin string) (note.Signer, string, error) {
	if !root.has(fileRoot) {
		if d.has(fileRootHash) {
			return nil, "", fault.New(fault.NotFound, "cannot finish the key ring: the root key is not in %s", root.path).
				WithHint("put root.key back, or remove %s and begin anew (nothing has relied on it yet)", d.path)
		}
		skey, _, err := note.GenerateKey(rand.Reader, origin+"-root")
		if err != nil {
			return nil, "", fault.Wrap(fault.Internal, err, "cannot make the root key")
		}
		if err := root.create(fileRoot, []byte(skey+"\n"), 0o400); err != nil {
			return nil, "", err
		}
	}
	text, err := root.read(fileRoot)
	if err != nil {
		return nil, "", err
	}
	skey := strings.TrimSpace(string(text))
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, "", root.damaged(fileRoot, err)
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return nil, "", root.damaged(fileRoot, err)
	}
	err = d.createOnce(fileRootHash, func() ([]byte, error) { return []byte(ledger.RootHash(vkey) + "\n"), nil })
	return signer, vkey, err
}

func makeKeys(d secureDir, origin string) error {
	pemEd := func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return encodeKey(key)
	}
	for _, f := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{fileOrigin, func() ([]byte, error) { return []byte(origin + "\n"), nil }},
		{fileLog, func() ([]byte, error) {
			skey, _, err := note.GenerateKey(rand.Reader, origin)
			return []byte(skey + "\n"), err
		}},
		{fileOrder, pemEd}, {fileSSHUserCA, pemEd}, {fileSSHHostCA, pemEd}, {fileSSHHost, pemEd}, {fileVoucherCA, pemEd},
		{fileCA, func() ([]byte, error) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return nil, err
			}
			return encodeKey(key)
		}},
		{fileCACert, func() ([]byte, error) { return certifyAuthority(d, origin) }},
		{fileMaster, func() ([]byte, error) { return base64Line(randomBytes(32)), nil }},
		{fileReplay, func() ([]byte, error) { return base64Line(randomBytes(32)), nil }},
		{fileReplayPub, func() ([]byte, error) {
			raw, err := d.readBase64(fileReplay, 32)
			if err != nil {
				return nil, err
			}
			key, err := ecdh.X25519().NewPrivateKey(raw)
			if err != nil {
				return nil, err
			}
			return base64Line(key.PublicKey().Bytes()), nil
		}},
	} {
		if err := d.createOnce(f.name, f.make); err != nil {
			return err
		}
	}
	return nil
}

// createOnce keeps what is there: a ring is finished, not remade.
func (d secureDir) createOnce(name string, content func() ([]byte, error)) error {
	if d.has(name) {
		return nil
	}
	b, err := content()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot make %s", filepath.Join(d.path, name))
	}
	if err := d.create(name, b, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// empty says whether the ring was never begun. Stray temporary files of a
// crash before the marker count as nothing.
func (d secureDir) empty() (bool, error) {
	list, err := os.ReadDir(d.path)
	if err != nil {
		return false, fault.Wrap(fault.Unavailable, err, "cannot read %s", d.path)
	}
	return !slices.ContainsFunc(list, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), ".") }), nil
}

func certifyAuthority(d secureDir, origin string) ([]byte, error) {
	der, err := d.readPEM(fileCA, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key of the authority is not ECDSA")
	}
	return certifyKey(key, origin)
}

func certifyKey(key *ecdsa.PrivateKey, origin string) ([]byte, error) {
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: randomSerial(), Subject: pkix.Name{CommonName: "handrail " + origin},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityFor),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), nil
}

func encodeKey(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func base64Line(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b) + "\n") }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func randomSerial() *big.Int { return new(big.Int).SetBytes(randomBytes(16)) }

// verifierKey derives the public text of a note key from its private text
// ("PRIVATE+KEY+name+hash+base64"), which note itself does not offer.
func verifierKey(skey string) (string, error) {
	parts := strings.SplitN(skey, "+", 5)
	if len(parts) != 5 || parts[0] != "PRIVATE" || parts[1] != "KEY" {
		return "", errors.New("not a note signer key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize || raw[0] != 1 {
		return "", errors.New("not an Ed25519 note signer key")
	}
	public := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(parts[2], public)
}

func checkOrigin(origin string) error {
	if origin == "" || len(origin) > 200 || strings.ContainsAny(origin, "+ \t\r\n") {
		return fault.New(fault.Invalid, "cannot make a key ring named %q: a name has 1 to 200 characters, no space and no plus", origin)
	}
	return nil
}
