package sandbox

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// folderVariable names a folder outside /tmp that the inner run of a test owns.
const folderVariable = "SANDBOX_TEST_FOLDER"

// asNobody runs the same test again as an ordinary account where we are root,
// and reports whether the caller is that inner run.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	folder, err := os.MkdirTemp("/var/lib", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if err := os.Chown(folder, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), folderVariable+"="+folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("as uid 65534:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// trialSpec is a read session without root.
func trialSpec(t *testing.T, command ...string) Spec {
	t.Helper()
	spec := readSpec(command...)
	spec.Mode, spec.LeastFloor = UserNamespaceMode, Reduced
	if _, err := dryRun(context.Background(), spec, Options{}); err != nil {
		if strings.Contains(err.Error(), "stage 2") || strings.Contains(err.Error(), "sandbox") {
			t.Fatal(err)
		}
		t.Skipf("no user namespaces here: %v", err)
	}
	return spec
}

func TestWithoutRootASessionIsReadOnlyInItsOwnNamespaces(t *testing.T) {
	if !asNobody(t) {
		return
	}
	data, why := os.Getenv(folderVariable), "Permission denied"
	if data == "" {
		data, why = t.TempDir(), "No such file" // below /tmp, which the session has its own of
	}
	if err := os.WriteFile(data+"/key", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := trialSpec(t, "bash", "-c", `whoami; echo pids $(ps -e -o pid= | wc -l); cat `+data+`/key; ls -A /dev/.handrail;
		touch /tmp/mine && echo tmp-ok; touch /var/lib/x; echo x > /proc/self/oom_score_adj; exit 9`)
	spec.Hide = []string{data}
	out, code := output(t, spec, Options{})
	if code != 9 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{"alice\n", "tmp-ok", "key: " + why, "Read-only file system"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "secret") {
		t.Errorf("the data folder is visible:\n%s", out)
	}
	t.Log(out)
}

func TestWithoutRootATerminalWorks(t *testing.T) {
	if !asNobody(t) {
		return
	}
	spec := trialSpec(t, "true")
	spec.Command, spec.Prompt = nil, "[trial]$ "
	s := openTerminal(t, spec, Options{})
	s.until("[trial]$ ")
	s.say("tty; sleep 100 & kill $!; wait $!; echo code-$?; bash -c 'echo up-$((1+1)); exec sleep 100'")
	s.until("code-143")
	s.until("up-2")
	s.say("\x03")
	s.until("[trial]$ ")
	s.say("exit 5")
	if status, err := s.Wait(); err != nil || status.ExitStatus() != 5 {
		t.Fatalf("%v, %v", status, err)
	}
}

func TestWithoutRootTheFirstRefusalIsToldToo(t *testing.T) {
	if !asNobody(t) {
		return
	}
	told := make(chan Refusal, 1)
	output(t, trialSpec(t, "bash", "-c", "echo x > /tmp/mine; mkdir /var/lib/new"), Options{Refused: func(r Refusal) { told <- r }})
	if r := waitFor(t, told); r.Path != "/var/lib/new" || r.Command != "mkdir" {
		t.Errorf("%+v", r)
	}
}

func TestWithoutRootTheLeastFloorHolds(t *testing.T) {
	if !asNobody(t) {
		return
	}
	spec := trialSpec(t, "true")
	spec.LeastFloor = Full
	_, err := Start(context.Background(), spec, Options{})
	if err == nil || !strings.Contains(err.Error(), "policy wants the floor") {
		t.Fatal(err)
	}
}

func TestProbeWithoutRootSaysWhatIsMissing(t *testing.T) {
	if !asNobody(t) {
		return
	}
	r := Probe(context.Background(), nil)
	t.Logf("%+v", r)
	if r.Floor == Full || len(r.Missing) == 0 {
		t.Fatalf("%+v", r)
	}
}

func TestWithoutRootAWriteSessionIsTheAccountWithoutHandrailsFolder(t *testing.T) {
	if !asNobody(t) {
		return
	}
	trialSpec(t, "true")
	base := os.Getenv(folderVariable)
	if base == "" {
		base = t.TempDir()
	}
	data := base + "/data"
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data+"/key", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Level: Write, Mode: UserNamespaceMode, User: "app", Home: base, Hide: []string{data},
		Command: []string{"sh", "-c", "echo kept > " + base + "/file; cat " + data + "/key; rm -rf " + data + "/key; umount " + data + "; ps -e -o pid= | wc -l"}}
	out, _ := output(t, spec, Options{})
	if b, err := os.ReadFile(base + "/file"); err != nil || string(b) != "kept\n" {
		t.Errorf("not written: %v; %s", err, out)
	}
	if b, err := os.ReadFile(data + "/key"); err != nil || string(b) != "secret" || strings.Contains(out, "secret") {
		t.Errorf("reached handrail's folder: %v; %s", err, out)
	}
	spec.Sudo = true
	if _, err := Start(context.Background(), spec, Options{}); err == nil || !strings.Contains(err.Error(), "cannot give sudo or root") {
		t.Errorf("sudo: %v", err)
	}
}
