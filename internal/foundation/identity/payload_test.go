package identity_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/identity"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of a new version")

// What was written stays readable for ever: a golden file of each version is
// kept, and reading it gives what was written.
func TestPayloadsAreReadableForEver(t *testing.T) {
	for name, p := range map[string]any{
		"person-v1": &identity.PersonPayload{V: 1, Person: "p-00000001", Name: "ada", Kind: "person", Owner: "p-00000002",
			Groups: []string{"admin", "operator"}, Before: []string{"admin"}, Reason: "because", Epoch: 3},
		"token-v1": &identity.TokenPayload{V: 1, Person: "p-00000001", By: "p-00000002", Expires: 1770000000000000, Source: "192.0.2.1"},
		"login-v1": &identity.LoginPayload{V: 1, Person: "p-00000001", Device: "d-00000001", Via: "device", Born: "token", Source: "192.0.2.1", Expires: 1770000000000000},
		"credential-v1": &identity.CredentialPayload{V: 1, Person: "p-00000001", Name: "laptop", Fingerprint: "SHA256:abc", PublicKey: []byte{1, 2, 3},
			MayApproveFrom: 1770000000000000, Reason: "lost"},
		"failures-v1": &identity.FailuresPayload{V: 1, Minute: 1770000000000000, Others: 4,
			Sources: []identity.SourceFailure{{Source: "192.0.2.1", Counts: map[string]int64{"malformed token": 3}}}},
		"code-v1":      &identity.CodePayload{V: 1, Source: "192.0.2.1", Target: "host/h-00000001", Level: "read", Fingerprint: "SHA256:abc"},
		"binding-v1":   &identity.BindingPayload{V: 1, Person: "p-00000001", Issuer: "https://id.example.com", Subject: "1815", Claim: "email"},
		"bootstrap-v1": &identity.BootstrapPayload{V: 1, Ends: 1770000000000000, Reason: "asked for"},
	} {
		path := filepath.Join("testdata", name+".json")
		written, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if *rewrite {
			if err := os.WriteFile(path, append(written, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(bytes.NewReader(golden))
		d.DisallowUnknownFields()
		read := map[string]func() any{
			"person-v1": func() any { return &identity.PersonPayload{} }, "token-v1": func() any { return &identity.TokenPayload{} },
			"login-v1": func() any { return &identity.LoginPayload{} }, "credential-v1": func() any { return &identity.CredentialPayload{} },
			"failures-v1": func() any { return &identity.FailuresPayload{} }, "code-v1": func() any { return &identity.CodePayload{} },
			"bootstrap-v1": func() any { return &identity.BootstrapPayload{} },
			"binding-v1":   func() any { return &identity.BindingPayload{} },
		}[name]()
		if err := d.Decode(read); err != nil {
			t.Fatalf("%s cannot be read any more: %v", name, err)
		}
		again, err := json.MarshalIndent(read, "", "  ")
		if err != nil || string(again)+"\n" != string(golden) || !strings.Contains(string(golden), `"v": 1`) {
			t.Fatalf("%s means something else now:\n%s", name, again)
		}
	}
}
