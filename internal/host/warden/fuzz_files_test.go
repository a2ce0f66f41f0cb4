package warden

import (
	"strings"
	"testing"
)

// FuzzFiles reads what stands in files of the host: lines of /etc/passwd, keys
// of approvers in the host's own policy.
func FuzzFiles(f *testing.F) {
	f.Add("ops:x:1000:1000:Ops,,,:/home/ops:/bin/bash", "ops")
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUOKXvMhFVQVHCCAJAVSvvXtFWJjCWKJzcdtaQ0GvPP x", "x")
	f.Fuzz(func(t *testing.T, line, name string) {
		if a, ok := parsePasswd(line, name); ok && !strings.HasPrefix(line, name+":") {
			t.Fatalf("%q is the account %+v", line, a)
		}
		if key, err := parseApprover(line); err == nil && len(key) == 0 {
			t.Fatal("an approver without a key")
		}
	})
}
