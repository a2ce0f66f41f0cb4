package wire

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"

	"handrail.dev/handrail/internal/foundation/fault"
)

const brakePrefix = "handrail-brake-v1\n"

// Kinds of brake. Each only takes power away, which is why a signature of the
// order key alone is enough. Giving power back is an order.
const (
	BrakeStopSession  = "stop-session"
	BrakePauseSession = "pause-session"
	BrakeLockPerson   = "lock-person" // kills the person's sessions and refuses their orders below Epoch
	BrakeFreeze       = "freeze"      // nothing new starts here until a lease says otherwise
)

// EveryNode as Brake.Node means all.
const EveryNode = "*"

// Brake takes power away at once.
type Brake struct {
	V       int    `json:"v"`
	ID      string `json:"id"` // b-…
	Kind    string `json:"kind"`
	Node    string `json:"node"` // h-… or "*"
	Session string `json:"session,omitempty"`
	Person  string `json:"person,omitempty"`
	Epoch   int64  `json:"epoch,omitempty"` // lock-person: orders below this epoch are refused from now on
	Reason  string `json:"reason,omitempty"`
	Issued  int64  `json:"issued"` // µs
}

// BrakeAnswer says what a brake did on a node.
type BrakeAnswer struct {
	V        int    `json:"v"`
	ID       string `json:"id"`
	Node     string `json:"node"`
	Sessions int    `json:"sessions"` // how many it met
	Killed   int    `json:"killed"`   // processes dead
	Error    string `json:"error,omitempty"`
}

func (b Brake) check() error {
	ok := b.V == 1 && ValidID('b', b.ID) && (b.Node == EveryNode || ValidID('h', b.Node)) && len(b.Reason) <= 1024
	switch b.Kind {
	case BrakeStopSession, BrakePauseSession:
		ok = ok && ValidID('s', b.Session)
	case BrakeLockPerson:
		ok = ok && ValidID('p', b.Person)
	case BrakeFreeze:
	default:
		ok = false
	}
	if !ok {
		return fault.New(fault.Invalid, "cannot read brake %q: bad form", b.ID)
	}
	return nil
}

// SignBrake signs a brake with the order key.
func SignBrake(b Brake, orderKey crypto.Signer) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(b)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode brake")
	}
	sig, err := sign(orderKey, brakePrefix, body)
	if err != nil {
		return nil, err
	}
	return packSigned(body, sig), nil
}

// OpenBrake checks a brake's signature and form.
func OpenBrake(b []byte, orderKey ed25519.PublicKey) (Brake, error) {
	body, sig, err := unpackSigned(b, MaxLine)
	if err != nil {
		return Brake{}, err
	}
	if !verify(orderKey, brakePrefix, body, sig) {
		return Brake{}, fault.New(fault.Denied, "cannot accept brake: the order key did not sign it")
	}
	var out Brake
	if err := strict(body, &out); err != nil {
		return Brake{}, fault.Wrap(fault.Invalid, err, "cannot read brake")
	}
	return out, out.check()
}
