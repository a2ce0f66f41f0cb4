package attack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"handrail.dev/handrail/internal/host/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Stage2()
	Main()
	os.Exit(m.Run())
}

func run(t *testing.T, mode sandbox.Mode, without ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := RunWithout(ctx, mode, without...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// check requires that nothing got through, and that the probes are sharp.
func check(t *testing.T, r Result) {
	t.Helper()
	plain, _ := r.Count()
	for _, s := range r.Astray() {
		t.Error(s)
	}
	if len(r.Rows) < 70 {
		t.Errorf("only %d probes", len(r.Rows))
	}
	if plain < 60 {
		t.Errorf("only %d probes succeed without a sandbox: they prove little", plain)
	}
	for _, row := range r.Rows {
		// What harms an ordinary account must have been tried here too.
		if row.Plain == Succeeded && row.Sandbox == CannotRun {
			t.Errorf("%s could not be tried in the sandbox: %s", row.Name, row.Detail)
		}
	}
	var table strings.Builder
	r.Write(&table)
	t.Log(table.String())
}

func TestNothingGetsOutOfAReadSessionOfRoots(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	check(t, run(t, sandbox.RootMode))
}

func TestNothingGetsOutOfAReadSessionWithoutRoot(t *testing.T) {
	if os.Getuid() != 0 {
		if r := sandbox.Probe(context.Background(), nil); r.Mode != sandbox.UserNamespaceMode {
			t.Skip("no user namespaces here: " + strings.Join(r.Missing, " "))
		}
		check(t, run(t, sandbox.UserNamespaceMode))
		return
	}
	folder, err := os.MkdirTemp("/var/lib", "handrail-attack-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if err := os.Chown(folder, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), folderVariable+"="+folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("as uid 65534:\n%s", out)
	if err != nil {
		t.Error(err)
	}
}

func TestTheOlderMountCallsHoldAsWell(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	r := run(t, sandbox.RootMode, "mount_setattr")
	if _, through := r.Count(); len(through) > 0 {
		t.Errorf("%+v", through)
	}
	if r.Ready.Floor != sandbox.Reduced || len(r.Ready.Missing) == 0 {
		t.Errorf("the floor is %s, missing: %v", r.Ready.Floor, r.Ready.Missing)
	}
}

// TestWhatOlderLandlocksLeave plays kernels with less of Landlock. The real ones
// are in test/kernels.
func TestWhatOlderLandlocksLeave(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, abi := range []int{0, 1, 5} {
		r := run(t, sandbox.RootMode, sandbox.OlderLandlock(abi))
		if r.Ready.Landlock > abi {
			t.Fatalf("it runs with Landlock %d", r.Ready.Landlock)
		}
		for _, s := range r.Astray() {
			t.Errorf("Landlock %d: %s", abi, s)
		}
		if names, why := r.Residue(); len(names) == 0 || len(why) == 0 {
			t.Errorf("Landlock %d is said to leave nothing", abi)
		}
	}
}

// TestEachLayerAloneIsNotEnough shows what each layer stops; with -v it prints
// the table. The suite is sharp as long as leaving a layer out lets something
// through.
func TestEachLayerAloneIsNotEnough(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if testing.Short() {
		t.Skip("six runs of the suite")
	}
	var table strings.Builder
	for _, ladder := range []struct {
		name    string
		without []string
		least   int
	}{
		{"Landlock only", []string{"mounts", "seccomp"}, 10},
		{"mounts only", []string{"landlock", "seccomp"}, 10},
		{"seccomp only", []string{"mounts", "landlock"}, 10},
		{"mounts + Landlock", []string{"seccomp"}, 5},
		{"mounts + seccomp", []string{"landlock"}, 1},
		{"Landlock + seccomp", []string{"mounts"}, 1},
	} {
		_, through := run(t, sandbox.RootMode, ladder.without...).Count()
		var names []string
		for _, row := range through {
			names = append(names, row.Name)
		}
		fmt.Fprintf(&table, "%-20s %3d  %s\n", ladder.name, len(through), strings.Join(names, " "))
		if len(through) < ladder.least {
			t.Errorf("%s: %d got through, expected at least %d", ladder.name, len(through), ladder.least)
		}
	}
	t.Logf("layers and what gets through:\n%s", table.String())
}
