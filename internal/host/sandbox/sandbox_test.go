package sandbox

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Stage2()
	os.Exit(m.Run())
}

// readSpec is a read session as the keeper would ask for it.
func readSpec(command ...string) Spec {
	return Spec{Level: Read, Mode: RootMode, UID: 4_200_001, GID: 4_200_001, User: "alice", Command: command, Hints: true}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// output runs a session without a terminal to its end.
func output(t testing.TB, spec Spec, o Options) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := Start(ctx, spec, o)
	w.Close()
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	var b bytes.Buffer
	_, _ = io.Copy(&b, r)
	status, err := c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), status.ExitStatus()
}

func TestAReadSessionIsThePersonAndSeesTheHost(t *testing.T) {
	needRoot(t)
	out, code := output(t, readSpec("bash", "-c", "whoami; id; pwd; ls /etc/hostname; ps -p 1 -o pid=; cat <(echo through); echo $HOME"), Options{})
	if code != 0 || !strings.HasPrefix(out, "alice\n") || !strings.Contains(out, "through") {
		t.Fatalf("exit %d:\n%s", code, out)
	}
	t.Log(out)
}

func TestProbeSaysWhatThisKernelOffers(t *testing.T) {
	r := Probe(context.Background(), nil)
	t.Logf("%+v", r)
	if r.Kernel == "" || r.Mode == "" || r.Floor == "" {
		t.Fatalf("an empty answer: %+v", r)
	}
	if os.Getuid() == 0 && r.Landlock > 0 && r.Cgroup != "" && (r.Mode != RootMode || r.Floor != Full) {
		t.Fatalf("root on a kernel with Landlock and cgroups reaches %s, %s: %v", r.Mode, r.Floor, r.Missing)
	}
}

func TestTheUsualToolsWorkInAReadSession(t *testing.T) {
	needRoot(t)
	for _, tool := range []struct{ run, want string }{
		{"ps aux | head -3", "PID"},
		{"top -b -n 1 | head -3", "load average"},
		{"ss -tln | head -2", "Local Address"},
		{"less /etc/hostname", ""},
		{"find /etc -maxdepth 1 -name hostname", "/etc/hostname"},
		{"python3 -c 'print(6*7)'", "42"},
		{"df / | tail -1", "/"},
		{"git --version", "git version"},
		{"journalctl --version | head -1", "systemd"},
		{"sleep 5 & jobs; kill %1; wait; echo killed", "killed"},
		{"echo x > /tmp/f && cat /tmp/f && echo y > /dev/null && tty", "x"},
		{"cat <(echo through) > >(cat)", "through"},
		{"ip -br link | head -1", "lo"},
	} {
		name := strings.Fields(tool.run)[0]
		if out, _ := output(t, readSpec("sh", "-c", "command -v "+name), Options{}); out == "" {
			continue // this host does not have it
		}
		out, _ := output(t, readSpec("bash", "-c", tool.run+" 2>&1"), Options{})
		if !strings.Contains(out, tool.want) || strings.Contains(out, "not permitted") {
			t.Errorf("%s:\n%s", tool.run, out)
		}
	}
}
