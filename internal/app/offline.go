package app

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/host/role"
)

// Commands that work on the data folder itself while no server runs. What lies
// in server/ is the server's: whatever root did there by name would be done to
// whatever the server had put in that place, so the work is done by a process
// of the server's account.

// offlineEnv tells that process that its parent holds the folder.
const offlineEnv = "HANDRAIL_OFFLINE_DATA"

// offline runs work on a data folder that no server uses, under the account
// that owns the server's half of it.
func offline(cmd *cobra.Command, data, database string, work func(ctx context.Context, p place) error) error {
	if dir := os.Getenv(offlineEnv); dir != "" && os.Geteuid() != 0 {
		return work(cmd.Context(), place(dir))
	}
	dir, err := dataFolder(data)
	if err != nil {
		return err
	}
	if _, err := os.Stat(place(dir).keysMade()); err != nil {
		return fault.New(fault.NotFound, "cannot use %s: it holds no server's data", dir).WithHint("name the folder: --data DIR")
	}
	at, err := role.Prepare(dir, true)
	if err != nil {
		return err
	}
	lock, err := at.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if !at.Root {
		return work(cmd.Context(), place(dir))
	}
	return exitAs(asServer(cmd, at, database))
}

// asServer runs this command again as the server's account, with files from
// descriptor 3 on.
func asServer(cmd *cobra.Command, at role.Place, database string, files ...*os.File) error {
	again := at.Command(role.Role{
		Args: os.Args[1:], Account: at.Server, Files: files,
		Env: []string{offlineEnv + "=" + at.Seen(at.Server), databaseEnv + "=" + database},
	})
	again.Stdin, again.Stdout, again.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	runtime.LockOSThread() // the other ends with this thread
	defer runtime.UnlockOSThread()
	if err := again.Start(); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot start as account %d", at.Server)
	}
	stop := context.AfterFunc(cmd.Context(), func() { _ = again.Process.Signal(syscall.SIGTERM) })
	defer stop()
	return again.Wait()
}

// exitAs ends this process as the other did, which has said why.
func exitAs(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	return err
}

// storeOf is how the server of a data folder opens its store.
func storeOf(p place, database string) (store.Config, *keyring.Ring, error) {
	ring, err := keyring.Open(p.keys())
	if err != nil {
		return store.Config{}, nil, err
	}
	if database == "" {
		database = "sqlite:" + p.server()
	}
	bundle, signed := ring.Bundle()
	return store.Config{
		DSN: database, Origin: ring.Origin(), Signer: ring.Log(), Verifier: ring.LogVerifier(), Seals: ring.Subjects(),
		Epoch: bundle.Epoch, Bundle: func() []byte { return signed }, Migrations: migrations(), Observations: observations(),
	}, ring, nil
}
