// Package shamir splits a secret so that any k of n shares give it back and
// fewer say nothing about it: Shamir's scheme over GF(256), byte by byte.
//
// What must stay true: no branch and no index depends on a secret byte, so the
// time that it takes says nothing; the random bytes come from the caller, who
// passes a cryptographic source; a combination is checked by whoever knows what
// the secret must be, since any k shares combine to something.
package shamir

import (
	"crypto/subtle"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Share is one of them: a point of the polynomials.
type Share struct {
	X byte // 1 to n; never 0, where the secret lies
	Y []byte
}

const maxSecret = 4096

// Split makes n shares of which k give the secret back.
func Split(secret []byte, n, k int, random io.Reader) ([]Share, error) {
	if len(secret) == 0 || len(secret) > maxSecret || k < 2 || n < k || n > 255 {
		return nil, fault.New(fault.Invalid, "cannot split a secret of %d bytes %d of %d", len(secret), k, n)
	}
	shares := make([]Share, n)
	for i := range shares {
		shares[i] = Share{X: byte(i + 1), Y: make([]byte, len(secret))}
	}
	poly := make([]byte, k)
	defer clear(poly)
	for at, b := range secret {
		if _, err := io.ReadFull(random, poly[1:]); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot split a secret")
		}
		poly[0] = b
		for i := range shares {
			y := byte(0)
			for c := k - 1; c >= 0; c-- { // Horner
				y = mul(y, shares[i].X) ^ poly[c]
			}
			shares[i].Y[at] = y
		}
	}
	return shares, nil
}

// Combine gives back what was split, if there are enough shares of it and all
// are of the same split.
func Combine(shares []Share) ([]byte, error) {
	if len(shares) < 2 || len(shares) > 255 {
		return nil, fault.New(fault.Invalid, "cannot combine %d shares: at least 2", len(shares))
	}
	size := len(shares[0].Y)
	seen := map[byte]bool{}
	for _, s := range shares {
		if s.X == 0 || seen[s.X] || len(s.Y) != size || size == 0 || size > maxSecret {
			return nil, fault.New(fault.Invalid, "cannot combine: two shares are the same, or they are not of one secret")
		}
		seen[s.X] = true
	}
	secret := make([]byte, size)
	for i, s := range shares {
		weight := byte(1) // Lagrange's, at 0; the places are no secret
		for j, o := range shares {
			if i != j {
				weight = mul(weight, mul(o.X, inverse(o.X^s.X)))
			}
		}
		for at, y := range s.Y {
			secret[at] ^= mul(weight, y)
		}
	}
	return secret, nil
}

// mul multiplies in GF(2^8) modulo x^8+x^4+x^3+x+1, the same steps for all.
func mul(a, b byte) byte {
	var p byte
	for range 8 {
		p ^= a & -(b & 1)
		carry := -(a >> 7)
		a = a<<1 ^ 0x1b&carry
		b >>= 1
	}
	return p
}

// inverse is a^254; of 0 it is 0.
func inverse(a byte) byte {
	r := byte(1)
	for bit := 7; bit >= 0; bit-- {
		r = mul(r, r)
		r = byte(subtle.ConstantTimeSelect(254>>bit&1, int(mul(r, a)), int(r)))
	}
	return r
}
