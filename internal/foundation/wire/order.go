package wire

import (
	"crypto"
	"crypto/ed25519"
	"encoding/binary"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

const (
	orderMagic  = "HRO1"
	orderPrefix = "handrail-order-v1\n"
	orderFields = 8 // magic, leaf, salt, payload, inclusion, index, checkpoint, signature
)

// Order is an order as it travels: the exact bytes of a ledger entry, the
// proof that it is in the ledger, and the order key's signature over all.
//
//	u32 len ‖ field, eight times:
//	"HRO1" leaf salt payload inclusion(n·32) index(8) checkpoint signature(64)
//
// The payload that is executed is the payload that was committed to: nobody
// re-serialises it on the way.
type Order struct {
	Leaf, Salt, Payload []byte
	Inclusion           []tlog.Hash
	Index               int64
	Checkpoint          []byte // signed note
	Signature           []byte

	signed []byte // all bytes before the signature field
}

// BuildOrder makes an order from an entry's proof and signs it with the order key.
func BuildOrder(p ledger.Proof, orderKey crypto.Signer) ([]byte, error) {
	if p.Index < 0 || len(p.Salt) == 0 || len(p.Payload) == 0 {
		return nil, fault.New(fault.Internal, "cannot build order: the proof of entry #%d is not complete", p.Index)
	}
	var b []byte
	index := binary.BigEndian.AppendUint64(nil, uint64(p.Index))
	for _, f := range [][]byte{[]byte(orderMagic), p.Leaf, p.Salt, p.Payload, packHashes(p.Inclusion), index, p.Checkpoint} {
		b = appendField(b, f)
	}
	sig, err := sign(orderKey, orderPrefix, b)
	if err != nil {
		return nil, err
	}
	b = appendField(b, sig)
	if len(b) > MaxOrder {
		return nil, fault.New(fault.Exhausted, "cannot build order: %d bytes are more than %d", len(b), MaxOrder)
	}
	return b, nil
}

// ParseOrder takes an order apart. It checks form only: see VerifySignature
// and Proof.
func ParseOrder(b []byte) (Order, error) {
	if len(b) > MaxOrder {
		return Order{}, fault.New(fault.Invalid, "cannot read order: %d bytes are more than %d", len(b), MaxOrder)
	}
	var fields [orderFields][]byte
	rest := b
	for i := range fields {
		if i == orderFields-1 {
			break
		}
		var err error
		if fields[i], rest, err = cutField(rest); err != nil {
			return Order{}, err
		}
	}
	o := Order{signed: b[:len(b)-len(rest)]}
	sig, rest, err := cutField(rest)
	if err != nil {
		return Order{}, err
	}
	switch {
	case len(rest) != 0:
		return Order{}, fault.New(fault.Invalid, "cannot read order: %d bytes follow it", len(rest))
	case string(fields[0]) != orderMagic:
		return Order{}, fault.New(fault.Invalid, "cannot read order: it is of another format")
	case len(fields[5]) != 8 || fields[5][0]&0x80 != 0:
		return Order{}, fault.New(fault.Invalid, "cannot read order: bad index")
	case len(fields[3]) > MaxPayload:
		return Order{}, fault.New(fault.Invalid, "cannot read order: payload of %d bytes", len(fields[3]))
	case len(sig) != ed25519.SignatureSize:
		return Order{}, fault.New(fault.Invalid, "cannot read order: bad signature length")
	}
	o.Leaf, o.Salt, o.Payload, o.Checkpoint, o.Signature = fields[1], fields[2], fields[3], fields[6], sig
	o.Index = int64(binary.BigEndian.Uint64(fields[5]))
	o.Inclusion, err = unpackHashes(fields[4])
	return o, err
}

// VerifySignature reports whether the order key signed these bytes.
func (o Order) VerifySignature(key ed25519.PublicKey) bool {
	return verify(key, orderPrefix, o.signed, o.Signature)
}

// Proof is the ledger proof that the order carries.
func (o Order) Proof() ledger.Proof {
	return ledger.Proof{Index: o.Index, Leaf: o.Leaf, Salt: o.Salt, Payload: o.Payload, Inclusion: o.Inclusion, Checkpoint: o.Checkpoint}
}

// Envelope is an order and, when the sender knows what the node last saw, the
// consistency proof between that tree (size From) and the order's own
// checkpoint, whichever is the larger. From 0 with no hashes means: ask.
type Envelope struct {
	Order       []byte
	From        int64
	Consistency []tlog.Hash
}

// Marshal returns the envelope's bytes: order, from, hashes, each a field.
func (e Envelope) Marshal() []byte {
	b := appendField(make([]byte, 0, len(e.Order)+64), e.Order)
	b = appendField(b, binary.BigEndian.AppendUint64(nil, uint64(e.From)))
	return appendField(b, packHashes(e.Consistency))
}

// ParseEnvelope reads what Marshal wrote.
func ParseEnvelope(b []byte) (Envelope, error) {
	if len(b) > MaxEnvelope {
		return Envelope{}, fault.New(fault.Invalid, "cannot read order envelope: %d bytes are more than %d", len(b), MaxEnvelope)
	}
	order, rest, err := cutField(b)
	if err != nil {
		return Envelope{}, err
	}
	from, rest, err := cutField(rest)
	if err != nil {
		return Envelope{}, err
	}
	hashes, rest, err := cutField(rest)
	if err != nil {
		return Envelope{}, err
	}
	if len(rest) != 0 || len(from) != 8 || from[0]&0x80 != 0 {
		return Envelope{}, fault.New(fault.Invalid, "cannot read order envelope: bad form")
	}
	e := Envelope{Order: order, From: int64(binary.BigEndian.Uint64(from))}
	e.Consistency, err = unpackHashes(hashes)
	return e, err
}

func appendField(b, field []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
	return append(b, field...)
}

func cutField(b []byte) (field, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fault.New(fault.Invalid, "cannot read order: cut short")
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, fault.New(fault.Invalid, "cannot read order: a field of %d bytes where %d are left", n, len(b)-4)
	}
	return b[4 : 4+n : 4+n], b[4+n:], nil
}
