package warden

import (
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// Judge decides what a warden would do, and does nothing: for simulations of
// many hosts, which have the wardens' own judgement and no processes.
type Judge struct{ j *judge }

// NewJudge returns the judge of a host that has just joined, on its boot time.
func NewJudge(p Pin, boot func() time.Duration) (*Judge, error) {
	j, err := newJudge(pinFile{V: 1, Node: p.Node, RootHash: p.RootHash, Bundle: p.Bundle}, hostPolicy{}, boot)
	if err != nil {
		return nil, err
	}
	return &Judge{j}, nil
}

// Restart returns the judge of the same host after its warden was killed: it
// knows what was on disk.
func (j *Judge) Restart() (*Judge, error) {
	next, err := newJudge(j.j.snapshot(), hostPolicy{}, j.j.boot)
	if err != nil {
		return nil, err
	}
	return &Judge{next}, nil
}

// Ask asks for a lease, Answer takes one.
func (j *Judge) Ask() ([]byte, error) { return j.j.ask() }

// Answer takes the answer to the ask with that nonce.
func (j *Judge) Answer(nonce, signed []byte) error {
	_, err := j.j.answer(nonce, signed, 0, nil)
	return err
}

// Fresh says whether the lease is, and for how long it still will be.
func (j *Judge) Fresh() time.Duration {
	since, have := j.j.staleFor()
	if !have {
		return 0
	}
	return max(leaseFresh-since, 0)
}

// Seen is the size of the longest ledger that it has seen.
func (j *Judge) Seen() int64 { return j.j.size() }

// Order judges an envelope and says for how long what it starts may run.
func (j *Judge) Order(raw []byte) (wire.OrderPayload, time.Duration, error) {
	e, err := wire.ParseEnvelope(raw)
	if err != nil {
		return wire.OrderPayload{}, 0, err
	}
	a, err := j.j.order(e)
	return a.OrderPayload, a.left, err
}

// Brake judges a brake; one that was met before is not fresh.
func (j *Judge) Brake(signed []byte) (b wire.Brake, fresh bool, err error) { return j.j.brake(signed) }

// Overtaken says whether a person was locked since an epoch.
func (j *Judge) Overtaken(person string, epoch int64) bool { return j.j.overtaken(person, epoch) }
