package approval

import (
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestARequestHasOneForm(t *testing.T) {
	type request struct {
		V    int    `json:"v"`
		Name string `json:"name"`
		Note string `json:"note,omitempty"`
	}
	var q request
	if err := Read("thing.add", []byte(`{"v":1,"name":"a"}`), &q); err != nil || q.Name != "a" {
		t.Fatalf("%+v, %v", q, err)
	}
	for what, text := range map[string]string{
		"nothing":         ``,
		"an unknown name": `{"v":1,"name":"a","root":true}`,
		"a name twice":    `{"v":1,"name":"b","name":"a"}`,
		"another case":    `{"v":1,"Name":"a"}`,
		"another order":   `{"name":"a","v":1}`,
		"space":           `{"v":1, "name":"a"}`,
		"an escape":       `{"v":1,"name":"\u0061"}`,
		"an empty one":    `{"v":1,"name":"a","note":""}`,
		"something after": `{"v":1,"name":"a"}}`,
		"a second value":  `{"v":1,"name":"a"}{"v":1,"name":"b"}`,
		"a line's end":    "{\"v\":1,\"name\":\"a\"}\n",
	} {
		var q request
		if err := Read("thing.add", []byte(text), &q); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"v":1,"name":"a"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q, again struct {
			V    int    `json:"v"`
			Name string `json:"name"`
		}
		if Read("thing.add", b, &q) != nil {
			return
		}
		if err := Read("thing.add", b, &again); err != nil || q != again {
			t.Errorf("%q is read in two ways: %+v, %+v, %v", b, q, again, err)
		}
	})
}
