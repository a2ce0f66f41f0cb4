package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/json"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

const leasePrefix = "handrail-lease-v1\n"

// NonceSize is the length of a lease nonce.
const NonceSize = 16

// LeaseAsk is a node's request for a lease. The nonce is the node's own, so
// that an old answer cannot be played again.
type LeaseAsk struct {
	V             int    `json:"v"`
	Node          string `json:"node"`
	Nonce         []byte `json:"nonce"`
	Size          int64  `json:"size"` // the last tree that this node saw; 0 at first
	Root          []byte `json:"root,omitempty"`
	BundleVersion int64  `json:"bundle_version"`
	Vouchers      bool   `json:"vouchers,omitempty"` // this node understands VoucherRevoked
}

// LeaseAnswer lets a node act for another ten seconds from when it asked.
type LeaseAnswer struct {
	V            int              `json:"v"`
	Node         string           `json:"node"`
	Nonce        []byte           `json:"nonce"`
	ServerTime   int64            `json:"server_time"` // µs
	Checkpoint   []byte           `json:"checkpoint"`  // signed note
	Consistency  [][]byte         `json:"consistency,omitempty"`
	LockEpoch    int64            `json:"lock_epoch"`
	PolicyEpoch  int64            `json:"policy_epoch"`
	PersonEpochs map[string]int64 `json:"person_epochs,omitempty"` // with live sessions, or locked in the last day
	Off          bool             `json:"off,omitempty"`           // the off-switch is on
	Bundle       []byte           `json:"bundle,omitempty"`        // when newer than asked

	// Vouchers that are void before their time; only to a node that asked so,
	// since a field that a node does not know is refused.
	VoucherRevoked []uint64 `json:"voucher_revoked,omitempty"`
}

// Marshal returns the ask as JSON.
func (a LeaseAsk) Marshal() ([]byte, error) { return json.Marshal(a) }

// ParseLeaseAsk reads an ask strictly.
func ParseLeaseAsk(b []byte) (LeaseAsk, error) {
	var a LeaseAsk
	if len(b) > MaxLine {
		return a, fault.New(fault.Invalid, "cannot read lease request: %d bytes", len(b))
	}
	if err := strict(b, &a); err != nil {
		return a, fault.Wrap(fault.Invalid, err, "cannot read lease request")
	}
	if a.V != 1 || !ValidID('h', a.Node) || len(a.Nonce) != NonceSize || a.Size < 0 {
		return a, fault.New(fault.Invalid, "cannot read lease request: bad form")
	}
	return a, nil
}

// SignLease signs an answer with the order key.
func SignLease(a LeaseAnswer, orderKey crypto.Signer) ([]byte, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode lease")
	}
	sig, err := sign(orderKey, leasePrefix, body)
	if err != nil {
		return nil, err
	}
	return packSigned(body, sig), nil
}

// OpenLease checks the signature and that the answer is to this ask.
func OpenLease(b []byte, orderKey ed25519.PublicKey, ask LeaseAsk) (LeaseAnswer, error) {
	body, sig, err := unpackSigned(b, MaxLease)
	if err != nil {
		return LeaseAnswer{}, err
	}
	if !verify(orderKey, leasePrefix, body, sig) {
		return LeaseAnswer{}, fault.New(fault.Denied, "cannot accept lease: the order key did not sign it")
	}
	var a LeaseAnswer
	if err := strict(body, &a); err != nil {
		return LeaseAnswer{}, fault.Wrap(fault.Invalid, err, "cannot read lease")
	}
	if a.V != 1 || a.Node != ask.Node || !bytes.Equal(a.Nonce, ask.Nonce) {
		return LeaseAnswer{}, fault.New(fault.Denied, "cannot accept lease: it answers another question")
	}
	return a, nil
}

// PeekLeaseBundle returns the trust bundle that a lease answer carries, before
// anything in it is believed: a new bundle may hold the very key that signed
// the answer. The bundle itself is checked against the pinned root key.
func PeekLeaseBundle(b []byte) []byte {
	body, _, err := unpackSigned(b, MaxLease)
	if err != nil {
		return nil
	}
	var a struct {
		Bundle []byte `json:"bundle"`
	}
	if json.Unmarshal(body, &a) != nil {
		return nil
	}
	return a.Bundle
}

// ConsistencyAsk asks for the proof between two trees (up.consistency).
type ConsistencyAsk struct {
	V   int   `json:"v"`
	Old int64 `json:"old"`
	New int64 `json:"new"`
}

// ConsistencyAnswer carries it; Error is set when there is none.
type ConsistencyAnswer struct {
	V      int      `json:"v"`
	Hashes [][]byte `json:"hashes,omitempty"`
	Error  string   `json:"error,omitempty"`
}

// HashList turns hashes into the form that JSON messages carry.
func HashList(hs []tlog.Hash) [][]byte {
	out := make([][]byte, len(hs))
	for i := range hs {
		out[i] = hs[i][:]
	}
	return out
}

// ParseHashList is the inverse of HashList, bounded.
func ParseHashList(list [][]byte) ([]tlog.Hash, error) {
	if len(list) > maxHashes {
		return nil, fault.New(fault.Invalid, "cannot read proof: %d hashes", len(list))
	}
	out := make([]tlog.Hash, len(list))
	for i, b := range list {
		if len(b) != tlog.HashSize {
			return nil, fault.New(fault.Invalid, "cannot read proof: a hash of %d bytes", len(b))
		}
		copy(out[i][:], b)
	}
	return out, nil
}
