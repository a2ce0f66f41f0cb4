package directory

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// What is read back of the copy is what was signed, or nothing; and the signed
// statement is of our key, or nothing.
func FuzzCopy(f *testing.F) {
	_, public, err := note.GenerateKey(rand.Reader, "fuzz.example")
	if err != nil {
		f.Fatal(err)
	}
	key, err := note.NewVerifier(public)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x01\x02\x00\xfd\xff{}"), "handrail directory\n\n— x\n")
	f.Fuzz(func(t *testing.T, body []byte, signed string) {
		sum := sha256.Sum256([]byte("{}"))
		if c, err := unpack(body, hex.EncodeToString(sum[:])); err == nil && len(c.People) != 0 {
			t.Fatal("people who were not signed")
		}
		if _, err := OpenStatement(signed, key); err == nil {
			t.Fatal("a statement that nobody signed")
		}
		_, _ = Held{}.Parse(signed)
	})
}
