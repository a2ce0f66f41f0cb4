package erasure

import (
	"bytes"
	"encoding/json"
	"testing"
)

func FuzzParse(f *testing.F) {
	one, _ := json.Marshal(request{})
	f.Add(one)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parse(raw)
		if again, _ := json.Marshal(r); err == nil && !bytes.Equal(again, raw) {
			t.Fatalf("%q is signed and means %q", raw, again)
		}
	})
}
