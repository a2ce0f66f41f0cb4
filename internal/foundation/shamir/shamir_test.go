package shamir

import (
	"bytes"
	"crypto/rand"
	"testing"

	"pgregory.net/rapid"
)

func TestTheFieldIsAField(t *testing.T) {
	for a := range 256 {
		if got := mul(byte(a), inverse(byte(a))); a != 0 && got != 1 {
			t.Fatalf("%d times its inverse is %d", a, got)
		}
		for b := range 256 {
			want := 0 // the school's way
			for x, y := a, b; y > 0; y >>= 1 {
				if y&1 == 1 {
					want ^= x
				}
				if x <<= 1; x&0x100 != 0 {
					x ^= 0x11b
				}
			}
			if got := mul(byte(a), byte(b)); int(got) != want {
				t.Fatalf("%d times %d is %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestEveryPairOfThreeSharesGivesTheSecretBack(t *testing.T) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	shares, err := Split(secret, 3, 2, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for i := range shares {
		for j := range shares {
			got, err := Combine([]Share{shares[i], shares[j]})
			if i == j {
				if err == nil {
					t.Errorf("share %d is enough alone", i)
				}
			} else if err != nil || !bytes.Equal(got, secret) {
				t.Errorf("shares %d and %d: %v", i, j, err)
			}
		}
	}
}

func TestEnoughSharesGiveTheSecretBackAndFewerDoNot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 8, 64).Draw(t, "secret")
		k := rapid.IntRange(2, 6).Draw(t, "k")
		n := rapid.IntRange(k, 12).Draw(t, "n")
		shares, err := Split(secret, n, k, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		some := rapid.Permutation(shares).Draw(t, "order")
		if got, err := Combine(some[:k]); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%v: %x of %x", err, got, secret)
		}
		if k > 2 {
			if got, err := Combine(some[:k-1]); err == nil && bytes.Equal(got, secret) {
				t.Fatal("one share fewer is enough")
			}
		}
		if got, err := Combine(some); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("all shares: %v", err)
		}
	})
}

// One share says nothing: whatever it is, every secret byte is as likely.
func TestOneShareSaysNothing(t *testing.T) {
	const rounds = 256 * 256
	var count [256]int
	for range rounds {
		shares, err := Split([]byte{42}, 2, 2, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		count[shares[0].Y[0]]++
	}
	for v, n := range count {
		if n < 128 || n > 384 { // 256 expected, sixteen to the deviation
			t.Errorf("a share of 42 is %d in %d of %d splits", v, n, rounds)
		}
	}
}

func FuzzCombine(f *testing.F) {
	f.Add(byte(1), []byte{1, 2}, byte(2), []byte{3, 4})
	f.Add(byte(0), []byte{1}, byte(0), []byte{})
	f.Fuzz(func(t *testing.T, x1 byte, y1 []byte, x2 byte, y2 []byte) {
		got, err := Combine([]Share{{x1, y1}, {x2, y2}})
		if err == nil && len(got) != len(y1) {
			t.Errorf("%d bytes of %d", len(got), len(y1))
		}
	})
}
