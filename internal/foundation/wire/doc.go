// Package wire holds what server and node say to each other, as pure codecs:
// orders with their proofs, leases, brakes, the node's hello, the header and
// the frames of a session stream, and the subjects that a node may use. Both
// ends import it; it opens no connection and reads no clock.
//
// House rules of this package:
//
//   - every length is bounded before anything is allocated;
//   - what is signed is bytes, never a value: nothing is re-serialised between
//     signing and checking;
//   - JSON that commands is strict: a field that is not known is refused, since
//     it may be the one that would have forbidden the rest;
//   - a release reads the orders of the last twelve months (testdata/*.order).
package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Bounds. Each is far above what is honest and far below what would hurt.
const (
	MaxOrder    = 512 << 10 // an order with its proof
	MaxEnvelope = MaxOrder + 64<<10
	MaxPayload  = 256 << 10
	MaxLine     = 16 << 10 // hello lines
	MaxAnswer   = 64 << 10
	MaxLease    = 768 << 10 // fits a warden frame
	maxHashes   = 128       // a tree of 2^63 leaves needs 64, a consistency proof 65
)

// strict decodes exactly one JSON value with no unknown fields into v.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

// sign signs prefix ‖ body with an ed25519 key.
func sign(signer crypto.Signer, prefix string, body []byte) ([]byte, error) {
	if _, ok := signer.Public().(ed25519.PublicKey); !ok {
		return nil, fault.New(fault.Internal, "cannot sign for the wire: the order key is not ed25519")
	}
	return signer.Sign(rand.Reader, append([]byte(prefix), body...), crypto.Hash(0))
}

func verify(key ed25519.PublicKey, prefix string, body, sig []byte) bool {
	return len(key) == ed25519.PublicKeySize && len(sig) == ed25519.SignatureSize &&
		ed25519.Verify(key, append([]byte(prefix), body...), sig)
}

// signed is JSON bytes and their signature: u32 length, JSON, 64 bytes.
func packSigned(body, sig []byte) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)+len(sig)), uint32(len(body)))
	out = append(out, body...)
	return append(out, sig...)
}

func unpackSigned(b []byte, limit int) (body, sig []byte, err error) {
	if len(b) < 4+ed25519.SignatureSize || len(b) > limit {
		return nil, nil, fault.New(fault.Invalid, "cannot read signed message: %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint32(b))
	if n != len(b)-4-ed25519.SignatureSize {
		return nil, nil, fault.New(fault.Invalid, "cannot read signed message: length %d of %d bytes", n, len(b))
	}
	return b[4 : 4+n], b[4+n:], nil
}

func packHashes(hs []tlog.Hash) []byte {
	out := make([]byte, 0, len(hs)*tlog.HashSize)
	for _, h := range hs {
		out = append(out, h[:]...)
	}
	return out
}

func unpackHashes(b []byte) ([]tlog.Hash, error) {
	if len(b)%tlog.HashSize != 0 || len(b) > maxHashes*tlog.HashSize {
		return nil, fault.New(fault.Invalid, "cannot read proof: %d bytes are not a list of hashes", len(b))
	}
	hs := make([]tlog.Hash, len(b)/tlog.HashSize)
	for i := range hs {
		copy(hs[i][:], b[i*tlog.HashSize:])
	}
	return hs, nil
}
