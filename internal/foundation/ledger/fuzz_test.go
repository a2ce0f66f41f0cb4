package ledger

import (
	"bytes"
	"testing"
)

func FuzzParseLeaf(f *testing.F) {
	f.Add(testLeaf(3, make([]byte, 32), []byte("{}")).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLeaf(b)
		if err == nil && !bytes.Equal(l.Marshal(), b) {
			t.Fatalf("%q was accepted but is written %q", b, l.Marshal())
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	s, v, _ := testKey(f, "log.example", 1)
	b, err := SignCheckpoint("log.example", (&Frontier{}).Tree(), s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	text, _, _ := bytes.Cut(b, []byte("\n\n"))
	f.Add(append(text, '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = OpenCheckpoint(b, "log.example", v)
		_, _, _ = parseCheckpoint(string(b))
	})
}

func FuzzParseProof(f *testing.F) {
	s, v, _ := testKey(f, "log.example", 1)
	f.Add(makeProof(f, s).Text())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err != nil {
			return
		}
		_ = p.Verify(v, "log.example")
		again, err := ParseProof(p.Text())
		if err != nil || !bytes.Equal(again.Text(), p.Text()) {
			t.Fatalf("the proof changes when it is written again: %v", err)
		}
	})
}

func FuzzOpenBundle(f *testing.F) {
	b, root := testBundle(f)
	signed, err := SignBundle(b, root)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	text, _ := b.text()
	f.Add([]byte(text))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = OpenBundle(in, RootHash(b.RootKey))
		if got, err := parseBundle(string(in)); err == nil {
			if again, err := got.text(); err != nil || again != string(in) {
				t.Fatal("one bundle has two forms")
			}
		}
	})
}

func FuzzParseToken(f *testing.F) {
	b, _ := testBundle(f)
	f.Add(Token{"h:1", RootHash(b.RootKey), "0123456789abcdefghij"}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil && tok.String() != s {
			t.Fatalf("%q is written %q", s, tok)
		}
	})
}
