package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
)

// maxFile bounds what is read: no key, certificate or bundle is larger.
const maxFile = 1 << 20

// secureDir is a directory that only its owner can enter, who is us. Root also
// opens the ring of the account that it started the server under; the files in
// it then belong to that account, or to root while the ring is being given away.
type secureDir struct {
	path  string
	owner int
}

// makeDir makes the directory if need be and checks it.
func makeDir(path string) (secureDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return secureDir{}, fault.Wrap(fault.Unavailable, err, "cannot make the key directory")
	}
	return openDir(path)
}

// openDir checks the directory. Lstat, since a link could be turned elsewhere
// after the check.
func openDir(path string) (secureDir, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return secureDir{}, fault.New(fault.NotFound, "cannot open the key ring: there is no directory %s", path).
			WithHint("start the server once; it makes the ring")
	}
	if err != nil {
		return secureDir{}, fault.Wrap(fault.Unavailable, err, "cannot open the key ring")
	}
	if !info.IsDir() {
		return secureDir{}, fault.New(fault.Conflict, "cannot open the key ring: %s is not a directory", path)
	}
	d := secureDir{path: path, owner: os.Geteuid()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		d.owner = int(st.Uid)
	}
	return d, d.private(path, info, "chmod 700")
}

// private refuses what others may read, and what others own.
func (d secureDir) private(path string, info fs.FileInfo, repair string) error {
	if wide := info.Mode().Perm() & 0o077; wide != 0 {
		return fault.New(fault.Denied, "cannot use %s: others may read or change it (mode %04o)", path, info.Mode().Perm()).
			WithHint("%s %s, and think about who has read it", repair, path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() && int(st.Uid) != d.owner {
		return fault.New(fault.Denied, "cannot use %s: it belongs to uid %d, and this is uid %d", path, st.Uid, os.Geteuid()).
			WithHint("run as the owner of the data folder")
	}
	return nil
}

func (d secureDir) has(name string) bool {
	_, err := os.Lstat(filepath.Join(d.path, name))
	return err == nil
}

// read returns a file's bytes after checking the very file that is open.
func (d secureDir) read(name string) ([]byte, error) {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "cannot open the key ring: %s is missing", path).
			WithHint("restore it from a backup; a new key would not be the same installation")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read a key")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read a key")
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Conflict, "cannot use %s: it is not a plain file", path)
	}
	if err := d.private(path, info, "chmod 600"); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read %s", path)
	}
	return b, nil
}

// create puts a file in place whole or not at all: written and synced under
// another name, then linked, which fails if somebody else was first. A crash
// in between leaves a stray temporary file and no key.
func (d secureDir) create(name string, content []byte, mode fs.FileMode) error {
	tmp := filepath.Join(d.path, "."+name+"."+randomName())
	defer os.Remove(tmp)
	if err := writeSynced(tmp, content, mode); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", filepath.Join(d.path, name))
	}
	if err := os.Link(tmp, filepath.Join(d.path, name)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return err // the caller reads what was first
		}
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", filepath.Join(d.path, name))
	}
	return d.sync()
}

// createOnce makes a file that is missing, and keeps one that is there.
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

// replace puts a file in the place of another: a crash leaves one of them.
func (d secureDir) replace(name string, content []byte) error {
	tmp := filepath.Join(d.path, "."+name+"."+randomName())
	defer os.Remove(tmp)
	err := writeSynced(tmp, content, 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(d.path, name))
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", filepath.Join(d.path, name))
	}
	return d.sync()
}

func (d secureDir) remove(name string) error {
	if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot remove a file of the key ring")
	}
	return d.sync()
}

func (d secureDir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot sync %s", d.path)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot sync %s", d.path)
	}
	return nil
}

func writeSynced(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func randomName() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// damaged says which file cannot be understood, without quoting it.
func (d secureDir) damaged(name string, cause error) error {
	return fault.Wrap(fault.Conflict, cause, "cannot understand %s", filepath.Join(d.path, name)).
		WithHint("restore it from a backup; a new key would not be the same installation")
}

func (d secureDir) readBase64(name string, size int) ([]byte, error) {
	text, err := d.read(name)
	if err != nil {
		return nil, err
	}
	b, err := decodeLine(text)
	if err != nil || len(b) != size {
		return nil, d.damaged(name, fmt.Errorf("not %d bytes of base64", size))
	}
	return b, nil
}

func (d secureDir) readPEM(name, kind string) ([]byte, error) {
	text, err := d.read(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, d.damaged(name, fmt.Errorf("no PEM block %q", kind))
	}
	return block.Bytes, nil
}

func (d secureDir) readEd25519(name string) (ed25519.PrivateKey, error) {
	der, err := d.readPEM(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, d.damaged(name, err)
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, d.damaged(name, errors.New("not an Ed25519 key"))
	}
	return key, nil
}

func (d secureDir) readAuthority(keyName, certName string) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	der, err := d.readPEM(keyName, "PRIVATE KEY")
	if err != nil {
		return nil, nil, err
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, d.damaged(keyName, err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, d.damaged(keyName, errors.New("not an ECDSA key"))
	}
	der, err = d.readPEM(certName, "CERTIFICATE")
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, d.damaged(certName, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, d.damaged(certName, errors.New("it certifies another key"))
	}
	return key, cert, nil
}

func decodeLine(text []byte) ([]byte, error) {
	return base64.StdEncoding.DecodeString(string(trimLine(text)))
}

func trimLine(text []byte) []byte { return bytes.TrimSpace(text) }
