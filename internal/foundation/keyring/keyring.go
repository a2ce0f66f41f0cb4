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
//   - a ring appears whole or not at all (made beside, synced, renamed), and so
//     does each file that joins it later (written apart, synced, linked).
//   - a destroyed data key does not come back, not even as a new key.
package keyring

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// The files of a ring. Those of the root directory are listed in make.go.
const (
	fileMaking    = "making" // in a ring that an earlier version did not finish
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

// Ring is an opened key ring. It is safe for use by several goroutines. What a
// rotation replaces is in keys, and is replaced as a whole.
type Ring struct {
	dir      string
	origin   string
	rootHash string
	now      atomic.Pointer[keys]
	turn     sync.Mutex // one rotation at a time
	hostKey  ssh.Signer
	subjects *Subjects
	replay   *ReplayKey
	server   string // which server of the installation this is; "": the only one
}

func (r *Ring) keys() *keys { return r.now.Load() }

// Open reads the ring in dir. It refuses a ring that is half made, that others
// could read, or whose bundle does not name exactly the keys that lie beside it.
func Open(dir string) (*Ring, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	if d.has(fileMaking) {
		return nil, fault.New(fault.Conflict, "cannot open the key ring %s: it is half made", dir).
			WithHint("an earlier version was stopped before anything relied on it: begin anew in another folder")
	}
	r := &Ring{dir: dir}
	for _, load := range []func(secureDir) error{r.loadNames, r.loadHostKey, r.loadReplay, r.loadKeys} {
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

func (r *Ring) loadHostKey(d secureDir) error {
	key, err := d.readEd25519(fileSSHHost)
	if err != nil {
		return err
	}
	if r.hostKey, err = ssh.NewSignerFromKey(key); err != nil {
		return d.damaged(fileSSHHost, err)
	}
	return nil
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

// Origin is the name under which the log signs, the first line of a checkpoint.
func (r *Ring) Origin() string { return r.origin }

// Log signs checkpoints, by the old key too while one is handed over.
func (r *Ring) Log() note.Signer { return logSigner{r} }

// LogVerifier verifies what Log signs, and has ever signed.
func (r *Ring) LogVerifier() note.Verifier { return logVerifier{r} }

// Order signs orders, leases and brakes (Ed25519).
func (r *Ring) Order() crypto.Signer { return r.keys().order }

// OrderKeys are the keys by which the servers of this installation sign now.
func (r *Ring) OrderKeys() []ed25519.PublicKey { return r.keys().bundle.OrderKeys(time.Now()) }

// Bundle is the trust bundle in force, parsed and as the root key signed it.
func (r *Ring) Bundle() (ledger.Bundle, []byte) {
	k := r.keys()
	return k.bundle, append([]byte(nil), k.signed...)
}

// RootHash is the hash of the root key that tokens carry.
func (r *Ring) RootHash() string { return r.rootHash }

// Subjects seals and opens payloads under one data key a subject.
func (r *Ring) Subjects() *Subjects { return r.subjects }

// Replay wraps the data keys of recordings for whoever may replay them.
func (r *Ring) Replay() *ReplayKey { return r.replay }
