package warden

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Pin is what a warden trusts from the moment of joining.
type Pin struct {
	Node     string // h-…
	RootHash string // ledger.RootHash of the root key
	Bundle   []byte // signed trust bundle
}

// pinFile is pin.json: the pin, the highest bundle and the last checkpoint.
type pinFile struct {
	V          int    `json:"v"`
	Node       string `json:"node"`
	RootHash   string `json:"root_hash"`
	Bundle     []byte `json:"bundle"`
	Checkpoint []byte `json:"checkpoint,omitempty"`
}

const pinName = "pin.json"

// SetPin writes the pin into a warden's folder. It refuses to replace another
// root key or node id: that is a person's decision, made by removing the folder.
func SetPin(dir string, p Pin) error {
	if !wire.ValidID('h', p.Node) {
		return fault.New(fault.Invalid, "cannot pin %q: not a host id", p.Node)
	}
	if _, err := ledger.OpenBundle(p.Bundle, p.RootHash); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make folder %s", dir)
	}
	old, err := readPin(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case old.Node != p.Node || old.RootHash != p.RootHash:
		return fault.New(fault.Conflict, "cannot join as %s: this machine is %s of the installation with root key %s", p.Node, old.Node, old.RootHash).
			WithHint("to leave that installation, stop handrail and remove %s", dir)
	default:
		return nil // joined before: keep the newer bundle and the checkpoint
	}
	return writePin(dir, pinFile{V: 1, Node: p.Node, RootHash: p.RootHash, Bundle: p.Bundle})
}

func readPin(dir string) (pinFile, error) {
	var p pinFile
	b, err := os.ReadFile(filepath.Join(dir, pinName))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil || p.V != 1 {
		return p, fault.New(fault.Invalid, "cannot read %s: it is damaged", filepath.Join(dir, pinName)).
			WithHint("restore it from a backup; without it this host cannot tell a fork of the ledger")
	}
	return p, nil
}

// writePin replaces pin.json: written, synced, renamed, folder synced. A crash
// leaves the old or the new one.
func writePin(dir string, p pinFile) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, pinName), b); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot save the last checkpoint")
	}
	return nil
}

func replace(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// keeperOfPin saves the judge's memory, several waiting orders with one write.
type pinKeeper struct {
	dir string
	j   *judge

	mu    sync.Mutex
	saved int64 // size of the tree on disk
	vers  int64
}

// save returns when a tree of at least size is on disk.
func (k *pinKeeper) save(size int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if size <= k.saved && k.j.bundleVersion() == k.vers {
		return nil
	}
	v := k.j.bundleVersion()
	p, n := k.j.snapshot(), k.j.size()
	if err := writePin(k.dir, p); err != nil {
		return err
	}
	k.saved, k.vers = min(n, k.j.size()), v
	return nil
}
