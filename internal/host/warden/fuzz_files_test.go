package warden

import "testing"

// FuzzFiles reads what stands in the host's own policy: keys of approvers.
func FuzzFiles(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUOKXvMhFVQVHCCAJAVSvvXtFWJjCWKJzcdtaQ0GvPP x")
	f.Fuzz(func(t *testing.T, line string) {
		if key, err := parseApprover(line); err == nil && len(key) == 0 {
			t.Fatal("an approver without a key")
		}
	})
}
