package recording

import (
	"bytes"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"slices"
	"testing"
)

// tamper changes one of two recordings; it may leave both as they were.
func tamper(rng *mrand.Rand, a, b []byte) (name string, x, y []byte) {
	x, y = bytes.Clone(a), bytes.Clone(b)
	at := rng.IntN(len(x))
	length := 1 + rng.IntN(len(x)-at)
	noise := make([]byte, 1+rng.IntN(64))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	switch rng.IntN(8) {
	case 0:
		x[at] ^= 1 << rng.IntN(8)
		return "flip", x, y
	case 1:
		return "delete", slices.Delete(x, at, at+length), y
	case 2:
		return "insert", slices.Insert(x, at, noise...), y
	case 3:
		piece := bytes.Clone(x[at : at+length])
		x = slices.Delete(x, at, at+length)
		return "reorder", slices.Insert(x, rng.IntN(len(x)+1), piece...), y
	case 4:
		return "truncate", x[:at], y
	case 5:
		return "append", append(x, noise...), y
	case 6:
		return "exchange", y, x
	}
	return "double", append(x, x[at:at+length]...), y
}

func TestSeededTamperingsOfRecordingsAreAllFound(t *testing.T) {
	s := newStudio(t, Bounds{ChunkBytes: 200})
	ids := []string{id, "s-00000002"}
	var paths []string
	var raw [2][]byte
	for i, session := range ids {
		rec := s.begin(session, true)
		for line := range 12 {
			fatal(t, rec.Write(Output, fmt.Appendf(nil, "line %d of session %s\n", line, session)))
		}
		s.end(rec)
		path, err := s.path(session)
		fatal(t, err)
		paths = append(paths, path)
		raw[i], err = os.ReadFile(path)
		fatal(t, err)
	}
	put := func(x, y []byte) {
		t.Helper()
		fatal(t, os.WriteFile(paths[0], x, 0o600))
		fatal(t, os.WriteFile(paths[1], y, 0o600))
	}
	const seed, runs = 20261121, 2000
	changed := map[string]int{}
	for i := range runs {
		rng := mrand.New(mrand.NewPCG(seed, uint64(i)))
		name, x, y := tamper(rng, raw[0], raw[1])
		same := bytes.Equal(x, raw[0]) && bytes.Equal(y, raw[1])
		put(x, y)
		switch found := s.findings(); {
		case same && len(found) > 0:
			t.Fatalf("seed %d, run %d: a false alarm: %v", seed, i, found)
		case !same && len(found) == 0:
			t.Fatalf("seed %d, run %d: %s was not found", seed, i, name)
		case !same:
			changed[name]++
		}
		if put(raw[0], raw[1]); i%20 == 0 {
			if found := s.findings(); len(found) > 0 {
				t.Fatalf("after run %d: a false alarm: %v", i, found)
			}
		}
	}
	if len(changed) != 8 {
		t.Errorf("not every kind was tried: %v", changed)
	}
	t.Log(changed)
}
