package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/surface/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"handrail": func() { os.Exit(runMain()) }})
}

func runMain() int {
	role := &cobra.Command{Use: "up", Short: "Run it all here", Args: cobra.NoArgs, Example: "  handrail up\n  handrail up --data DIR", Run: func(*cobra.Command, []string) {}}
	root := cli.New(cli.Deps{
		Roles: []*cobra.Command{role}, Version: "v1.2.3",
		LocalToken: func(_ context.Context, dataDir string) (string, error) {
			raw, err := os.ReadFile(filepath.Join(dataDir, "token"))
			return string(raw), err
		},
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // as the program does
	defer stop()
	return cli.Execute(ctx, root)
}

// TestScripts runs every command against an installation in memory. The files
// token and token-bob hold login tokens of ada and bob.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			f := startFake(env.T().(testing.TB))
			for name, value := range map[string]string{
				"HANDRAIL_HOME": filepath.Join(env.WorkDir, "ada"),
				"ADDRESS":       f.address, "ROOT_HASH": f.rootHash, "HOME": env.WorkDir, "TERM": "xterm", "TZ": "UTC", "NO_COLOR": "1", "USER": "ada",
			} {
				env.Setenv(name, value)
			}
			env.Values["fake"], env.Values["tb"] = f, env.T()
			for name, person := range map[string]string{"token": "ada", "token-bob": "bob", "token-local": "ada", "token-more": "ada"} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(f.token(person)+"\n"), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: scriptVerbs,
	})
}

// scriptVerbs let a script act behind the back of the command line.
var scriptVerbs = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	// status N COMMAND…: the command exits with N.
	"status": func(ts *testscript.TestScript, _ bool, args []string) {
		got := 0
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				ts.Fatalf("%v", err)
			}
			got = exit.ExitCode()
		}
		if want, _ := strconv.Atoi(args[0]); got != want {
			ts.Fatalf("exit status %d, want %d", got, want)
		}
	},
	// flip FILE TEXT: one bit of the first such text.
	"flip": func(ts *testscript.TestScript, _ bool, args []string) {
		raw := []byte(ts.ReadFile(args[0]))
		at := bytes.Index(raw, []byte(args[1]))
		if at < 0 {
			ts.Fatalf("%s holds no %q", args[0], args[1])
		}
		raw[at] ^= 1
		ts.Check(os.WriteFile(ts.MkAbs(args[0]), raw, 0o600))
	},
	// await-request ID: until somebody has asked for it.
	"await-request": func(ts *testscript.TestScript, _ bool, args []string) {
		f := ts.Value("fake").(*fake)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for {
			_, changed := f.wait(ctx)
			f.mu.Lock()
			found := f.approval(args[0]) != nil
			f.mu.Unlock()
			if found {
				return
			}
			if !changed() {
				ts.Fatalf("nobody asked for %s", args[0])
			}
		}
	},
	// fake WHAT: something happens to the server.
	"fake": func(ts *testscript.TestScript, _ bool, args []string) {
		f := ts.Value("fake").(*fake)
		switch args[0] {
		case "end-bootstrap":
			f.mu.Lock()
			f.bootstrap = false
			f.mu.Unlock()
		case "bundle": // fake bundle VERSION
			fmt.Sscan(args[1], &f.bundle.Version)
			signed, err := ledger.SignBundle(f.bundle, f.root)
			ts.Check(err)
			f.mu.Lock()
			f.signed = signed
			f.mu.Unlock()
		case "other-root": // the bundle is signed by somebody else
			other := startFake(ts.Value("tb").(testing.TB))
			f.mu.Lock()
			f.signed = other.signed
			f.mu.Unlock()
		case "rotate": // to a new CA, with the bundle that says so
			f.recertify(ts.Value("tb").(testing.TB), true)
		case "impostor": // a certificate of a CA that no bundle names
			f.recertify(ts.Value("tb").(testing.TB), false)
		case "expired-logins":
			f.mu.Lock()
			f.lasting = -time.Minute
			f.mu.Unlock()
		case "forget-logins":
			f.mu.Lock()
			clear(f.logins)
			f.mu.Unlock()
		case "tamper":
			f.mu.Lock()
			f.touched = true
			f.mu.Unlock()
		case "lie":
			f.mu.Lock()
			f.lies = true
			f.mu.Unlock()
		case "truncate": // the ledger loses its last entry
			f.mu.Lock()
			f.leaves = f.leaves[:len(f.leaves)-1]
			f.mu.Unlock()
		case "rewrite": // the ledger keeps its length, not its content
			f.mu.Lock()
			f.leaves = f.leaves[:len(f.leaves)-1]
			f.append("grant.requested", "p-00000bob")
			f.mu.Unlock()
		case "grow":
			f.mu.Lock()
			f.append("session.opened", "p-00000bob")
			f.mu.Unlock()
		case "owe":
			f.mu.Lock()
			f.person(args[1]).OwesReview = true
			f.mu.Unlock()
		case "review":
			f.mu.Lock()
			f.grants[0].State = "in-review"
			f.mu.Unlock()
		case "reason": // a request with a reason that wants to fool a terminal
			f.mu.Lock()
			f.approvals[0].Details[0].Value = "harmless\x1b[2K\rroot \u202eevil"
			f.mu.Unlock()
		case "mute": // connections are taken, and nothing is answered
			f.mu.Lock()
			f.mute = make(chan struct{})
			f.mu.Unlock()
		case "logins": // fake logins N: so many people are logged in
			f.mu.Lock()
			n := len(f.logins)
			f.mu.Unlock()
			if fmt.Sprint(n) != args[1] {
				ts.Fatalf("%d logins, want %s", n, args[1])
			}
		case "retain":
			f.mu.Lock()
			f.retain()
			f.mu.Unlock()
		case "gone":
			f.server.CloseClientConnections()
			f.server.Close()
		default:
			ts.Fatalf("fake knows no %q", args[0])
		}
	},
}
