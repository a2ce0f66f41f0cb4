package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("lab hosts need root")
	}
}

// run runs a script as a lab host and returns what it printed.
func run(t *testing.T, c Config) string {
	t.Helper()
	var out bytes.Buffer
	c.Dir, c.Stdout, c.Stderr = t.TempDir(), &out, &out
	h, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	<-h.Done()
	return out.String()
}

func TestALabHostHasItsOwnNameProcessesAndFiles(t *testing.T) {
	needRoot(t)
	hidden, err := os.MkdirTemp("/var/tmp", "lab") // /tmp is the host's own anyway
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(hidden) })
	if err := os.WriteFile(filepath.Join(hidden, "secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `hostname; cat /etc/hostname; cat /srv/motd; ls /proc | grep -c '^[0-9]'; touch /etc/lab-was-here && echo wrote; ls ` + hidden
	out := run(t, Config{
		Name: "web-1", Run: []string{"/bin/sh", "-c", script}, Hide: []string{hidden},
		Files: map[string]string{"/srv/motd": "welcome\n"},
	})
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 5 || lines[0] != "web-1" || lines[1] != "web-1" || lines[2] != "welcome" || lines[4] != "wrote" {
		t.Fatalf("unexpected host:\n%s", out)
	}
	if len(lines[3]) > 1 {
		t.Errorf("the host sees %s processes; it should see its own few", lines[3])
	}
	if strings.Contains(out, "secret") {
		t.Error("the hidden folder is in the host's view")
	}
	if _, err := os.Stat("/etc/lab-was-here"); err == nil {
		t.Error("the host wrote to this machine")
	}
}

func TestKillingALabHostKillsWhatRunsInIt(t *testing.T) {
	needRoot(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	h, err := Start(t.Context(), Config{
		Name: "web-2", Dir: t.TempDir(), Stdout: out,
		Run: []string{"/bin/sh", "-c", `setsid sh -c 'echo up; exec sleep 600' & wait`},
	})
	if err != nil {
		t.Fatal(err)
	}
	out.Close()
	line := make([]byte, 3)
	if _, err := in.Read(line); err != nil || string(line) != "up\n" {
		t.Fatalf("the host did not start: %q %v", line, err)
	}
	h.Kill()
	// The sleeper held the pipe's other end; it is gone when the pipe ends.
	if n, err := in.Read(line); n != 0 || err == nil {
		t.Fatalf("something of the host lives on: %q", line[:n])
	}
}
