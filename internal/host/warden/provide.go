package warden

import (
	"bytes"
	"context"
	"os/exec"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// WriteAccount is the account that the default policy names for write
// sessions: an ordinary one, with nothing of its own but a home.
const WriteAccount = "handrail-write"

// provideTime bounds useradd(8).
const provideTime = 20 * time.Second

// ProvideWriteAccount makes WriteAccount on this host if it is missing, so
// that the first jump needs no preparation. It says whether it made it. A
// policy that names other accounts never uses this one.
func ProvideWriteAccount(ctx context.Context) (made bool, err error) {
	if _, err := sandbox.LookupAccount(WriteAccount); err == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, provideTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "useradd", "--system", "--user-group", "--create-home",
		"--home-dir", "/var/lib/"+WriteAccount, "--shell", "/bin/bash", "--comment", "handrail write sessions", WriteAccount)
	if out, err := cmd.CombinedOutput(); err != nil {
		return false, fault.Wrap(fault.Unavailable, err, "cannot make the account %s (%s)", WriteAccount, bytes.TrimSpace(out)).
			WithHint("make it by hand, or name another write_account in the policy")
	}
	return true, nil
}
