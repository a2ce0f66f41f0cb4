// Package keyring keeps the keys of an installation: the log key, the order
// key, the certificate authorities, the replay key, and one data key for each
// subject. The root key that vouches for all of them is made here once and
// then kept apart; a running server never reads it.
//
// What must stay true:
//   - a ring is made once. A ring that lost a key is refused, never remade:
//     remaking the log key would look like a fork of the ledger.
//   - every file is 0600 in a directory that is 0700 and owned by the account
//     that runs the server. Anything wider is refused before a byte is read.
//   - a file appears whole or not at all (written apart, synced, linked).
//   - a destroyed data key does not come back, not even as a new key.
package keyring

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// The files of a ring. Those of the root directory are listed in make.go.
const (
	fileMaking    = "making" // present from the first byte until the ring is whole
	fileOrigin    = "origin"
	fileLog       = "log.key"
	fileOrder     = "order.key"
	fileCA        = "ca.key"
	fileCACert    = "ca.crt"
	fileSSHUserCA = "ssh-user-ca.key"
	fileSSHHostCA = "ssh-host-ca.key"
	fileSSHHost   = "ssh-host.key"
	fileVoucherCA = "voucher-ca.key" // missing in a ring from before vouchers
	fileMaster    = "master.key"
	fileReplay    = "replay.key"
	fileReplayPub = "replay.pub"
	fileBundle    = "bundle"
	fileRootHash  = "root.hash"
	dirSubjects   = "subjects"
)

// Ring is an opened key ring. It is safe for use by several goroutines.
type Ring struct {
	dir      string
	origin   string
	rootHash string
	logKey   note.Signer
	logVer   note.Verifier
	order    ed25519.PrivateKey
	ca       *ecdsa.PrivateKey
	caCert   *x509.Certificate
	sshUser  ssh.Signer
	sshHost  ssh.Signer
	hostKey  ssh.Signer
	voucher  ssh.Signer // nil in a ring from before vouchers
	bundle   ledger.Bundle
	signed   []byte
	subjects *Subjects
	replay   *ReplayKey
	server   string // which server of the installation this is; "": the only one
}

// Open reads the ring in dir. It refuses a ring that is half made, that others
// could read, or whose bundle does not name exactly the keys that lie beside it.
func Open(dir string) (*Ring, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	if d.has(fileMaking) {
		return nil, fault.New(fault.Conflict, "cannot open the key ring %s: it is half made", dir).
			WithHint("start the server once more with the root key directory at hand; it finishes the ring")
	}
	r := &Ring{dir: dir}
	for _, load := range []func(secureDir) error{r.loadNames, r.loadSigners, r.loadAuthorities, r.loadReplay, r.loadBundle} {
		if err := load(d); err != nil {
			return nil, err
		}
	}
	r.subjects, err = openSubjects(d, filepath.Join(dir, dirSubjects))
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Ring) loadNames(d secureDir) error {
	origin, err := d.read(fileOrigin)
	if err != nil {
		return err
	}
	hash, err := d.read(fileRootHash)
	if err != nil {
		return err
	}
	r.origin, r.rootHash = strings.TrimSpace(string(origin)), strings.TrimSpace(string(hash))
	return nil
}

func (r *Ring) loadSigners(d secureDir) error {
	text, err := d.read(fileLog)
	if err != nil {
		return err
	}
	skey := strings.TrimSpace(string(text))
	if r.logKey, err = note.NewSigner(skey); err != nil {
		return d.damaged(fileLog, err)
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return d.damaged(fileLog, err)
	}
	if r.logVer, err = note.NewVerifier(vkey); err != nil {
		return d.damaged(fileLog, err)
	}
	r.order, err = d.readEd25519(fileOrder)
	return err
}

func (r *Ring) loadAuthorities(d secureDir) error {
	var err error
	if r.ca, r.caCert, err = d.readAuthority(); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		into *ssh.Signer
	}{{fileSSHUserCA, &r.sshUser}, {fileSSHHostCA, &r.sshHost}, {fileSSHHost, &r.hostKey}} {
		key, err := d.readEd25519(f.name)
		if err != nil {
			return err
		}
		if *f.into, err = ssh.NewSignerFromKey(key); err != nil {
			return d.damaged(f.name, err)
		}
	}
	return r.loadVoucher(d)
}

func (r *Ring) loadReplay(d secureDir) error {
	raw, err := d.readBase64(fileReplayPub, 32)
	if err != nil {
		return err
	}
	public, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return d.damaged(fileReplayPub, err)
	}
	r.replay = &ReplayKey{dir: d, public: public}
	return nil
}

func (r *Ring) loadBundle(d secureDir) error {
	signed, err := d.read(fileBundle)
	if err != nil {
		return err
	}
	b, err := ledger.OpenBundle(signed, r.rootHash)
	if err != nil {
		return d.damaged(fileBundle, err)
	}
	want, err := r.describe(b)
	if err != nil {
		return err
	}
	if !sameKeys(b, want) {
		return fault.New(fault.Conflict, "cannot open the key ring %s: its bundle names other keys than those beside it", r.dir).
			WithHint("restore the whole directory from one backup")
	}
	r.bundle, r.signed = b, signed
	return nil
}

// Origin is the name under which the log signs, the first line of a checkpoint.
func (r *Ring) Origin() string { return r.origin }

// Log signs checkpoints.
func (r *Ring) Log() note.Signer { return r.logKey }

// LogVerifier verifies what Log signs.
func (r *Ring) LogVerifier() note.Verifier { return r.logVer }

// Order signs orders, leases and brakes (Ed25519).
func (r *Ring) Order() crypto.Signer { return r.order }

// Bundle is the trust bundle in force, parsed and as the root key signed it.
func (r *Ring) Bundle() (ledger.Bundle, []byte) { return r.bundle, append([]byte(nil), r.signed...) }

// RootHash is the hash of the root key that tokens carry.
func (r *Ring) RootHash() string { return r.rootHash }

// Subjects seals and opens payloads under one data key a subject.
func (r *Ring) Subjects() *Subjects { return r.subjects }

// Replay wraps the data keys of recordings for whoever may replay them.
func (r *Ring) Replay() *ReplayKey { return r.replay }

// describe is b with the keys of this ring in it.
func (r *Ring) describe(b ledger.Bundle) (ledger.Bundle, error) {
	text, err := os.ReadFile(filepath.Join(r.dir, fileLog))
	if err != nil {
		return ledger.Bundle{}, fault.Wrap(fault.Internal, err, "cannot read the log key")
	}
	vkey, err := verifierKey(strings.TrimSpace(string(text)))
	if err != nil {
		return ledger.Bundle{}, fault.Wrap(fault.Internal, err, "cannot read the log key")
	}
	line := func(s ssh.Signer) []string {
		return []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))}
	}
	var vouchers []string
	if r.voucher != nil {
		vouchers = line(r.voucher)
	}
	return ledger.Bundle{
		VoucherCA: vouchers, OfflineCA: b.OfflineCA,
		RootKey: b.RootKey, Version: b.Version, Epoch: b.Epoch, Origin: r.origin, LogKey: vkey,
		OrderKey: r.order.Public().(ed25519.PublicKey), CA: [][]byte{r.caCert.Raw},
		SSHUserCA: line(r.sshUser), SSHHostCA: line(r.sshHost),
	}, nil
}
