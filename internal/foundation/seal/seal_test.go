package seal

import (
	"bytes"
	"io"
	"testing"
)

func sealed(t testing.TB, plain []byte) (box, private []byte) {
	t.Helper()
	public, private, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, public, "c-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), private
}

func opened(box, private []byte, info string) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(box), private, info)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestWhatIsSealedComesBackWhole(t *testing.T) {
	for _, n := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk} {
		plain := bytes.Repeat([]byte("secret "), n/7+1)[:n]
		box, private := sealed(t, plain)
		if n > 7 && bytes.Contains(box, []byte("secret")) {
			t.Error("it can be read")
		}
		got, err := opened(box, private, "c-1")
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
}

func TestWhatWasTouchedDoesNotOpen(t *testing.T) {
	plain := bytes.Repeat([]byte{7}, 2*chunk+9)
	box, private := sealed(t, plain)
	one := 4 + chunk + extra
	_, other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	swapped := bytes.Clone(box)
	copy(swapped[encSize:], box[encSize+one:encSize+2*one])
	copy(swapped[encSize+one:], box[encSize:encSize+one])
	flipped := bytes.Clone(box)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		box, key []byte
		info     string
	}{
		"cut at a chunk's end":    {box[:encSize+one], private, "c-1"},
		"cut in a chunk":          {box[:len(box)-3], private, "c-1"},
		"without its end":         {box[:encSize+2*one], private, "c-1"},
		"more after its end":      {append(bytes.Clone(box), 0), private, "c-1"},
		"chunks in another order": {swapped, private, "c-1"},
		"a bit":                   {flipped, private, "c-1"},
		"of something else":       {box, private, "c-2"},
		"another key":             {box, other, "c-1"},
		"nothing":                 {nil, private, "c-1"},
	} {
		if got, err := opened(c.box, c.key, c.info); err == nil {
			t.Errorf("%s: %d bytes opened", name, len(got))
		}
	}
}

func FuzzOpenSealed(f *testing.F) {
	box, private := sealed(f, []byte("x"))
	f.Add(box)
	f.Add(box[:encSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := opened(b, private, "c-1")
		if err == nil && !bytes.Equal(b, box) {
			t.Fatalf("something else opened: %q", got)
		}
	})
}
