package spine_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// outsider runs `handrail witness` in a folder and says its key and address.
func (i *installation) outsider(dir string, args ...string) (key, url string, kill func()) {
	i.t.Helper()
	cmd := exec.Command(binary, append([]string{"witness", "--data", dir}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		i.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	ended := false
	kill = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	i.t.Cleanup(kill)
	for lines := bufio.NewScanner(out); url == "" && lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimSpace(value); name {
		case "key":
			key = value
		case "address":
			url = value
		}
	}
	if key == "" || url == "" {
		i.t.Fatal("the witness did not say who it is")
	}
	return key, url, kill
}

func TestAnOutsiderVouchesForTheLedgerAndAHostDemandsIt(t *testing.T) {
	needRoot(t)
	data := t.TempDir()
	args := upArgs(t, data)
	i := upBy(t, exec.Command(binary, args...), data)
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	var list struct {
		LogKey, Policy string
		Tail           string
		Witnesses      []struct{ Name, Size string }
	}
	ada.json(&list, "ledger", "witness", "list", "-o", "json")
	dir := t.TempDir()
	key, url, kill := i.outsider(dir, "--listen", "127.0.0.1:0", "--log", list.LogKey)
	ada.ok("ledger", "witness", "add", "audit", key, url)
	i.until("audit to have cosigned", func() bool {
		ada.json(&list, "ledger", "witness", "list", "-o", "json")
		return len(list.Witnesses) == 1 && list.Witnesses[0].Size != ""
	})
	zip := filepath.Join(t.TempDir(), "ledger.zip")
	ada.ok("ledger", "export", zip)
	if out := ada.ok("ledger", "verify", "--file", zip, "--witness", key); !strings.Contains(out, "cosigned the first") {
		t.Errorf("the export does not say how far audit vouches:\n%s", out)
	}
	stranger, _, _ := i.outsider(t.TempDir(), "--listen", "127.0.0.1:0")
	ada.refused(1, "ledger", "verify", "--file", zip, "--witness", stranger)

	// From now on this host takes orders only that audit has seen.
	i.stop()
	if err := os.WriteFile(filepath.Join(data, "warden", "witnesses"), []byte(list.Policy), 0o600); err != nil {
		t.Fatal(err)
	}
	i = upBy(t, exec.Command(binary, args...), data)
	ada.i = i
	i.until("the host to be online", func() bool { return ada.stateOf(host) == "online" })
	if out := ada.ok("ssh", host, "--", "echo witnessed"); out != "witnessed\n" {
		t.Errorf("the session says %q", out)
	}
	kill()
	r := ada.refused(255, "ssh", host, "--", "true")
	if !strings.Contains(r.err, "witness") || !strings.Contains(r.err, "handrail ledger witness list") {
		t.Errorf("why nothing starts is not said: %s", r.err)
	}
	_, back, _ := i.outsider(dir, "--listen", strings.TrimPrefix(url, "http://"))
	if back != url {
		t.Fatalf("it came back at %s, not at %s", back, url)
	}
	ada.ok("ssh", host, "--", "true")
	ada.ok("ledger", "verify")
}
