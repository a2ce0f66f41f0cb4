// Package seal closes bytes for one reader: whoever carries or keeps them sees
// their length and nothing else. What a host says for one person alone (a core
// dump, a value that was unmasked) is sealed there to a key made for it.
//
// The form is HPKE (RFC 9180, X25519 with ML-KEM-768), then chunks: a u32 length
// and that many bytes, sealed in order. The last one is marked, so that what
// was cut off is an error and not a shorter answer.
package seal

import (
	"crypto/hpke"
	"encoding/binary"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	chunk = 32 << 10
	extra = 16 // what sealing adds to a chunk
	// MaxKey bounds a key of either half.
	MaxKey  = 2048
	encSize = 1120 // the key's own part, at the beginning
)

func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// NewKey makes a key that is used for one thing.
func NewKey() (public, private []byte, err error) {
	k, err := kem().GenerateKey()
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key")
	}
	if private, err = k.Bytes(); err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key")
	}
	return k.PublicKey().Bytes(), private, nil
}

// CheckKey says whether something can be sealed to a key.
func CheckKey(public []byte) error {
	if len(public) == 0 || len(public) > MaxKey {
		return fault.New(fault.Invalid, "cannot seal to a key of %d bytes", len(public))
	}
	if _, err := kem().NewPublicKey(public); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot seal to this key")
	}
	return nil
}

type sealer struct {
	w    io.Writer
	to   *hpke.Sender
	head []byte // what goes before the first chunk
	buf  []byte
	done bool
}

// NewWriter seals what is written to it, for whoever has the private half. info
// is what it is about: only who names the same can open it. Close is a part of
// it, and does not close w.
func NewWriter(w io.Writer, public []byte, info string) (io.WriteCloser, error) {
	if err := CheckKey(public); err != nil {
		return nil, err
	}
	key, err := kem().NewPublicKey(public)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot seal to this key")
	}
	enc, to, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal")
	}
	return &sealer{w: w, to: to, head: enc}, nil
}

func (s *sealer) Write(p []byte) (n int, err error) {
	n = len(p)
	for len(p) > 0 {
		if len(s.buf) == chunk { // a full one goes when it is not the last
			if err := s.send(false); err != nil {
				return 0, err
			}
		}
		k := min(len(p), chunk-len(s.buf))
		s.buf, p = append(s.buf, p[:k]...), p[k:]
	}
	return n, nil
}

func (s *sealer) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	return s.send(true)
}

func (s *sealer) send(last bool) error {
	sealed, err := s.to.Seal(mark(last), s.buf)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot seal")
	}
	out := append(s.head, binary.BigEndian.AppendUint32(nil, uint32(len(sealed)))...)
	s.head, s.buf = nil, s.buf[:0]
	_, err = s.w.Write(append(out, sealed...))
	return err
}

func mark(last bool) []byte {
	if last {
		return []byte{1}
	}
	return []byte{0}
}

type opener struct {
	r    io.Reader
	from *hpke.Recipient
	left []byte
	last bool
}

// NewReader reads what was sealed. io.EOF comes only where its end is.
func NewReader(r io.Reader, private []byte, info string) (io.Reader, error) {
	key, err := kem().NewPrivateKey(private)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot use the key")
	}
	enc := make([]byte, encSize)
	if _, err := io.ReadFull(r, enc); err != nil {
		return nil, broken(err)
	}
	from, err := hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info))
	if err != nil {
		return nil, broken(err)
	}
	return &opener{r: r, from: from}, nil
}

func broken(err error) error {
	return fault.Wrap(fault.Invalid, err, "cannot open what was sealed: it is not whole, or of something else")
}

func (o *opener) Read(p []byte) (int, error) {
	for len(o.left) == 0 {
		if o.last {
			var one [1]byte
			if n, _ := io.ReadFull(o.r, one[:]); n > 0 {
				return 0, broken(io.ErrNoProgress)
			}
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.left)
	o.left = o.left[n:]
	return n, nil
}

func (o *opener) next() error {
	var head [4]byte
	if _, err := io.ReadFull(o.r, head[:]); err != nil {
		return broken(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < extra || n > chunk+extra {
		return broken(io.ErrShortBuffer)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(o.r, b); err != nil {
		return broken(err)
	}
	plain, err := o.from.Open(mark(false), b)
	if err != nil {
		if plain, err = o.from.Open(mark(true), b); err != nil {
			return broken(err)
		}
		o.last = true
	}
	o.left = plain
	return nil
}
