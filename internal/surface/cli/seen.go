package cli

import (
	"encoding/json"
	"os"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// seen is the newest checkpoint that this device has seen. A ledger only grows:
// one that is shorter, or as long with another hash, was rolled back or forked,
// unless the root key signed a new epoch since.
type seen struct {
	Epoch      int64  `json:"epoch"`
	Checkpoint string `json:"checkpoint"`
}

// checkpoint verifies a signed checkpoint with the log key of the trust bundle
// and against what was seen before, and remembers it.
func (c *client) checkpoint(signed string) (tlog.Tree, error) {
	b := c.bundle()
	key, err := b.Log(time.Now())
	if err != nil {
		return tlog.Tree{}, err
	}
	tree, err := ledger.OpenCheckpoint([]byte(signed), b.Origin, key)
	if err != nil {
		return tlog.Tree{}, fault.Wrap(fault.Internal, err, "cannot trust the checkpoint of the server").WithHint("tell who runs the server, and do not use it until it is explained")
	}
	old, _, known := c.seenBefore(b)
	if known && (tree.N < old.N || (tree.N == old.N && tree.Hash != old.Hash)) {
		return tlog.Tree{}, fault.New(fault.Internal, "cannot trust the ledger: this device has seen a checkpoint at %d, which the one at %d does not contain: it was rolled back or forked", old.N, tree.N).
			WithHint("tell who runs the server, and do not use it until it is explained")
	}
	if known && tree.N == old.N {
		return tree, nil
	}
	raw, err := json.Marshal(seen{b.Epoch, signed})
	if err != nil {
		return tlog.Tree{}, err
	}
	return tree, c.folder.write(fileSeen, append(raw, '\n'))
}

// seenBefore is the remembered tree of this epoch, if there is one, and the
// checkpoint that says so.
func (c *client) seenBefore(b ledger.Bundle) (tree tlog.Tree, signed []byte, known bool) {
	raw, err := os.ReadFile(c.folder.path(fileSeen))
	if err != nil {
		return tlog.Tree{}, nil, false
	}
	var s seen
	if json.Unmarshal(raw, &s) != nil || s.Epoch != b.Epoch {
		return tlog.Tree{}, nil, false
	}
	key, err := b.LogEver() // our own: it may be from before a rotation
	if err != nil {
		return tlog.Tree{}, nil, false
	}
	tree, err = ledger.OpenCheckpoint([]byte(s.Checkpoint), b.Origin, key)
	return tree, []byte(s.Checkpoint), err == nil
}
