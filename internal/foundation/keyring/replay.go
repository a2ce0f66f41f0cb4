package keyring

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"

	"golang.org/x/crypto/chacha20poly1305"

	"handrail.dev/handrail/internal/foundation/fault"
)

// ReplayKey wraps the data key of each recording. Wrapping needs the public
// half alone; the private half is read from its own file at each replay, so
// that a server whose file was moved away goes on recording but replays nothing.
type ReplayKey struct {
	dir    secureDir
	public *ecdh.PublicKey
}

const x25519Size = 32

// WrapReplay encrypts a data key to the replay key: ephemeral X25519, HKDF
// over both public keys, XChaCha20-Poly1305.
func (k *ReplayKey) WrapReplay(dataKey []byte) ([]byte, error) {
	once, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot wrap a replay key")
	}
	shared, err := once.ECDH(k.public)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot wrap a replay key")
	}
	aead, err := k.derive(shared, once.PublicKey().Bytes())
	if err != nil {
		return nil, err
	}
	return append(once.PublicKey().Bytes(), seal(aead, dataKey, nil)...), nil
}

// OpenReplay reads the private half and opens what WrapReplay made.
func (k *ReplayKey) OpenReplay(wrapped []byte) ([]byte, error) {
	if len(wrapped) < x25519Size {
		return nil, fault.New(fault.Conflict, "cannot open a replay key: it is cut short")
	}
	raw, err := k.dir.readBase64(fileReplay, x25519Size)
	if err != nil {
		return nil, err
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return nil, k.dir.damaged(fileReplay, err)
	}
	once, err := ecdh.X25519().NewPublicKey(wrapped[:x25519Size])
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "cannot open a replay key")
	}
	shared, err := private.ECDH(once)
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "cannot open a replay key")
	}
	aead, err := k.derive(shared, once.Bytes())
	if err != nil {
		return nil, err
	}
	dataKey, err := unseal(aead, wrapped[x25519Size:], nil)
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "cannot open a replay key")
	}
	return dataKey, nil
}

func (k *ReplayKey) derive(shared, once []byte) (cipher.AEAD, error) {
	salt := append(append([]byte(nil), once...), k.public.Bytes()...)
	key, err := hkdf.Key(sha256.New, shared, salt, "handrail-replay-v1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot derive a replay key")
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot derive a replay key")
	}
	return aead, nil
}
