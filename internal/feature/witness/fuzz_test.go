package witness

import (
	"bytes"
	"encoding/json"
	"testing"
)

func FuzzParseRequest(f *testing.F) {
	one, _ := json.Marshal(request{})
	f.Add(one)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, _, err := parseRequest(raw)
		if again, _ := json.Marshal(r); err == nil && !bytes.Equal(again, raw) {
			t.Fatalf("%q is signed and means %q", raw, again)
		}
	})
}

// A slot is what a crash left of a checkpoint: it is whole or nothing.
func FuzzUnpackSlot(f *testing.F) {
	f.Add(pack([]byte("origin\n1\nhash\n")))
	f.Fuzz(func(t *testing.T, slot []byte) {
		if signed := unpack(slot); signed != nil && !bytes.HasPrefix(slot, pack(signed)[:slotHead]) {
			t.Fatal("a slot that nobody packed")
		}
	})
}
