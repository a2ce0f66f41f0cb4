package warden

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// WriteAccount is the account that the default policy names for write
// sessions: an ordinary one, with nothing of its own.
const WriteAccount = "handrail-write"

// provideTime bounds useradd(8).
const provideTime = 20 * time.Second

// ProvideWriteAccount makes WriteAccount on this host if it is missing, so
// that the first jump needs no preparation, and sees to it that the account's
// home is root's and empty: each session has one of its own in that place, and
// what lies below it would let in by the host's own sshd, or act as a start
// file. It says whether it made the account. A policy that names other accounts
// never uses this one.
func ProvideWriteAccount(ctx context.Context) (made bool, err error) {
	a, err := sandbox.LookupAccount(WriteAccount)
	if err != nil {
		ctx, cancel := context.WithTimeout(ctx, provideTime)
		defer cancel()
		if err := makeAccount(ctx); err != nil {
			return false, err
		}
		made = true
		if a, err = sandbox.LookupAccount(WriteAccount); err != nil {
			return made, err
		}
	}
	if err := emptyHome(a); err != nil {
		return made, fault.Wrap(fault.Unavailable, err, "cannot make the home of account %s root's", WriteAccount).
			WithHint("as root: mv %s %s.before && mkdir -m 755 %s", a.Home, a.Home, a.Home)
	}
	return made, nil
}

func makeAccount(ctx context.Context) error {
	shell := "/bin/bash"
	if _, err := os.Stat(shell); err != nil {
		shell = "/bin/sh"
	}
	out, err := exec.CommandContext(ctx, "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/var/lib/"+WriteAccount,
		"--shell", shell, "--comment", "handrail write sessions", WriteAccount).CombinedOutput()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make the account %s (%s)", WriteAccount, bytes.TrimSpace(out)).WithHint("%s", AccountAdvice)
	}
	return nil
}

// AccountAdvice is what to do where the account could not be made.
const AccountAdvice = "as root: useradd --system --user-group --no-create-home --home-dir /var/lib/" + WriteAccount + " " + WriteAccount +
	"  (busybox: addgroup -S " + WriteAccount + " && adduser -S -D -H -h /var/lib/" + WriteAccount + " -G " + WriteAccount + " " + WriteAccount +
	"), then start handrail again; or name another write_account in the policy"

// LacksAccount says whether WriteAccount is missing on this host.
func LacksAccount() bool {
	_, err := sandbox.LookupAccount(WriteAccount)
	return err != nil
}

// emptyHome makes the account's home a folder of root's. One that the account
// could write is put aside, where only root sees it, and not deleted: somebody
// may miss what is in it.
func emptyHome(a sandbox.Account) error {
	if !filepath.IsAbs(a.Home) || filepath.Clean(a.Home) == "/" {
		return nil // sessions will say that there is none
	}
	i, err := os.Lstat(a.Home)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case i.IsDir() && i.Sys().(*syscall.Stat_t).Uid == 0 && i.Mode().Perm()&0o022 == 0:
		return nil
	default:
		aside, err := os.MkdirTemp(filepath.Dir(a.Home), filepath.Base(a.Home)+".before-") // 0700, root's
		if err != nil {
			return err
		}
		if err := os.Rename(a.Home, filepath.Join(aside, "home")); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(a.Home, 0o755); err != nil {
		return err
	}
	return os.Chmod(a.Home, 0o755) // the umask
}
