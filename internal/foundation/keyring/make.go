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
	"math/big"
	"os"
	"path/filepath"
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
// trust bundle. On a ring that is there it does nothing but look whether it is
// whole. Two renames put everything in place, the ring before its root key: a
// crash before the first leaves a draft, which the next Init throws away, and one
// between them a root key that has its name to get.
func Init(dir, rootDir, origin string) error {
	if err := checkOrigin(origin); err != nil {
		return err
	}
	there, err := stands(dir)
	if err != nil {
		return err
	}
	if there {
		r, err := Open(dir)
		if err != nil {
			return err
		}
		return nameRoot(rootDir, r.rootHash)
	}
	root, err := makeDir(rootDir)
	if err != nil {
		return err
	}
	if root.has(fileRoot) {
		return fault.New(fault.Conflict, "cannot make a key ring in %s: %s holds the root key of another", dir, rootDir).
			WithHint("restore %s from a backup, or move %s away to begin a new installation", dir, rootDir)
	}
	if root.has(fileRoot + suffixDraft) {
		if err := root.remove(fileRoot + suffixDraft); err != nil {
			return err
		}
	}
	d, err := newDraft(dir)
	if err != nil {
		return err
	}
	defer d.close()
	hash, err := d.fill(root, origin)
	if err != nil {
		return err
	}
	if err := d.stand(root.path, filepath.Dir(root.path)); err != nil {
		return err
	}
	return nameRoot(rootDir, hash)
}

// fill makes every key, and the bundle that names them.
func (d *draft) fill(root secureDir, origin string) (rootHash string, err error) {
	skey, _, err := note.GenerateKey(rand.Reader, origin+"-root") // who finds it printed knows what it is for
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot make the root key")
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot make the root key")
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot make the root key")
	}
	if err := d.put(root, fileRoot+suffixDraft, []byte(skey+"\n"), 0o400); err != nil {
		return "", err
	}
	rootHash = ledger.RootHash(vkey)
	for _, f := range append(ringFiles(d.secureDir, origin), ringFile{fileRootHash, func() ([]byte, error) { return []byte(rootHash + "\n"), nil }}, ringFile{fileBundle, func() ([]byte, error) {
		b, err := firstBundle(d.secureDir, origin, vkey)
		if err != nil {
			return nil, err
		}
		return ledger.SignBundle(b, signer)
	}}) {
		content, err := f.make()
		if err != nil {
			return "", fault.Wrap(fault.Internal, err, "cannot make %s", filepath.Join(d.path, f.name))
		}
		if err := d.put(d.secureDir, f.name, content, 0o600); err != nil {
			return "", err
		}
	}
	_, err = Open(d.path) // what would not open does not get into its place
	return rootHash, err
}

// nameRoot gives the root key of a ring that stands its name. Where none waits,
// it has it, or is kept elsewhere.
func nameRoot(rootDir, hash string) error {
	if !(secureDir{path: rootDir}).has(fileRoot + suffixDraft) {
		return nil
	}
	root, err := openDir(rootDir)
	if err != nil {
		return err
	}
	text, err := root.read(fileRoot + suffixDraft)
	if err != nil {
		return err
	}
	vkey, err := verifierKey(strings.TrimSpace(string(text)))
	if err != nil {
		return root.damaged(fileRoot+suffixDraft, err)
	}
	if root.has(fileRoot) || ledger.RootHash(vkey) != hash {
		return fault.New(fault.Conflict, "cannot name the root key: %s and %s are of two installations", root.path, fileRoot+suffixDraft).
			WithHint("move away what is not this installation's")
	}
	if err := os.Rename(filepath.Join(root.path, fileRoot+suffixDraft), filepath.Join(root.path, fileRoot)); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot name the root key")
	}
	return root.sync()
}

// ringFile is a file of a ring and how it is made.
type ringFile struct {
	name string
	make func() ([]byte, error)
}

// ringFiles are the keys of a ring in d, each after what it is made of.
func ringFiles(d secureDir, origin string) []ringFile {
	pemEd := func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return encodeKey(key)
	}
	return []ringFile{
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
	}
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
