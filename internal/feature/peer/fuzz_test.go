package peer

import (
	"encoding/json"
	"testing"
)

func FuzzParseJoin(f *testing.F) {
	one, _ := json.Marshal(joinRequest{V: 1})
	f.Add(one)
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := parseJoin(raw)
		if again, _ := json.Marshal(q); err == nil && string(again) != string(raw) {
			t.Fatalf("%q is signed and means %q", raw, again)
		}
	})
}
