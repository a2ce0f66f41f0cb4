package warden

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// witnessesName is a C2SP tlog-policy in the warden's folder. Where it is
// there, this host carries out an order only if the very tree that holds it was
// cosigned by enough of the witnesses named. So whoever holds all keys of the
// server commands nothing here that an outsider has not seen.
const witnessesName = "witnesses"

// cosignedFor is how old a cosignature may be, by the server's clock: a tree
// that was cosigned long ago says nothing about what grew since.
const cosignedFor = 2 * time.Minute

// SetWitnesses writes what the host demands. Where it demands something else
// already, that is a person's decision, made by editing the file.
func SetWitnesses(dir string, policy []byte) error {
	if _, err := ledger.ParseWitnessPolicy(policy); err != nil {
		return err
	}
	path := filepath.Join(dir, witnessesName)
	old, err := os.ReadFile(path)
	switch {
	case err == nil && string(old) == string(policy):
		return nil
	case err == nil:
		return fault.New(fault.Conflict, "cannot set the witnesses of this host: others are named in %s", path).WithHint("edit that file")
	case !errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.Unavailable, err, "cannot set the witnesses of this host")
	}
	if err := replace(path, policy); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot set the witnesses of this host")
	}
	return nil
}

// readWitnesses reads it. One that cannot be understood stops the warden: it
// was written to demand something.
func readWitnesses(dir string) (ledger.WitnessPolicy, error) {
	path := filepath.Join(dir, witnessesName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ledger.WitnessPolicy{}, nil
	}
	if err != nil {
		return ledger.WitnessPolicy{}, fault.Wrap(fault.Unavailable, err, "cannot read the witnesses of this host")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, ledger.MaxWitnessPolicy+1))
	if err != nil {
		return ledger.WitnessPolicy{}, fault.Wrap(fault.Unavailable, err, "cannot read the witnesses of this host")
	}
	p, err := ledger.ParseWitnessPolicy(text)
	if err != nil {
		return p, fault.Wrap(fault.Invalid, err, "cannot use %s", path)
	}
	return p, nil
}

// checkCosigned checks that enough witnesses cosigned the tree of an order,
// lately. The caller holds mu.
func (j *judge) checkCosigned(o wire.Order, now time.Duration) error {
	p := j.policy.witnesses
	if !p.Wants() {
		return nil
	}
	server := j.lease.server + (now - j.lease.asked).Microseconds()
	since := server/1e6 - int64((cosignedFor+skew)/time.Second)
	if who, met := p.Check(o.Checkpoint, since); !met {
		had := "nobody"
		if len(who) > 0 {
			had = strings.Join(who, ", ")
		}
		r := refuse(RuleWitness, "cannot accept order: this host wants the ledger cosigned by witnesses, and lately %s did", had)
		r.fault.Hint = "handrail ledger witness list"
		return r
	}
	return nil
}
