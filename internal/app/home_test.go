package app

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/protobuf/proto"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
)

func call(kind string, body []byte) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/handrail.v1.Sessions/Stop", bytes.NewReader(body))
	r.Header.Set("Content-Type", kind)
	return r
}

func TestASessionsIdIsReadFromACallWhoseBodyStays(t *testing.T) {
	raw, err := proto.Marshal(&handrailv1.StopSessionRequest{Id: "s-4f9k2m7x", Reason: "enough"})
	if err != nil {
		t.Fatal(err)
	}
	framed := append([]byte{0, 0, 0, 0, byte(len(raw))}, raw...)
	for kind, body := range map[string][]byte{
		"application/proto": raw, "application/connect+proto": framed, "application/json": []byte(`{"reason":"enough","id":"s-4f9k2m7x"}`),
	} {
		r := call(kind, body)
		if id := askedID(r); id != "s-4f9k2m7x" {
			t.Errorf("%s: the id is %q", kind, id)
		}
		if rest, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(rest, body) {
			t.Errorf("%s: what is served is not what came (%d of %d bytes, %v)", kind, len(rest), len(body), err)
		}
	}
	large := append(raw, make([]byte, 2*maxAsked)...)
	r := call("application/proto", large)
	if id := askedID(r); id != "" {
		t.Errorf("a call of %d bytes is looked into", len(large))
	}
	if rest, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(rest, large) {
		t.Errorf("a large call is cut: %d of %d bytes, %v", len(rest), len(large), err)
	}
}

func FuzzAskedID(f *testing.F) {
	f.Add("application/proto", []byte("\x0a\x0as-4f9k2m7x"))
	f.Add("application/connect+json", []byte("\x00\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := call("application/proto", body)
		r.Header.Set("Content-Type", kind)
		askedID(r)
		if rest, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(rest, body) {
			t.Error("looking into a call changed it")
		}
	})
}
