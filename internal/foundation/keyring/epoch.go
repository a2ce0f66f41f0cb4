package keyring

import (
	"os"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// NewEpoch signs, with the root key, that the ledger was restored: members who
// kept a later checkpoint accept the older ledger with this bundle and not
// without. Epoch and version are the time of the restore, so that they are
// above whatever the lost installation had signed since the backup.
func NewEpoch(dir string, rootKey []byte, at time.Time) (*Ring, error) {
	r, err := Open(dir)
	if err != nil {
		return nil, err
	}
	skey := strings.TrimSpace(string(rootKey))
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot sign a new epoch: this is no root key").WithHint("the root key is root.key of the data folder's root/, or what was printed")
	}
	vkey, err := verifierKey(skey)
	if err != nil || ledger.RootHash(vkey) != r.rootHash {
		return nil, fault.New(fault.Denied, "cannot sign a new epoch: this is another installation's root key; %s is wanted", r.rootHash)
	}
	b := r.keys().bundle
	b.Epoch, b.Version = max(b.Epoch+1, at.Unix()), max(b.Version+1, at.Unix())
	signed, err := ledger.SignBundle(b, signer)
	if err != nil {
		return nil, err
	}
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	if err := d.replace(fileBundle, signed); err != nil {
		return nil, err
	}
	return Open(dir)
}

// Erased lists the subjects whose keys were destroyed.
func (s *Subjects) Erased() ([]string, error) {
	list, err := os.ReadDir(s.d.path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read %s", s.d.path)
	}
	var all []string
	for _, f := range list {
		if name, ok := strings.CutSuffix(f.Name(), suffixGone); ok {
			all = append(all, name)
		}
	}
	return all, nil
}
