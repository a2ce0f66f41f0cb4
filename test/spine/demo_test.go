package spine_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheDemoTellsItsStory(t *testing.T) {
	needRoot(t)
	mounts := mountsNow(t)
	data := filepath.Join(t.TempDir(), "demo")
	args := append([]string{"demo"}, upArgs(t, data)[1:]...)
	i := upBy(t, exec.Command(binary, args...), data)
	i.until("the story", func() bool {
		select {
		case <-i.done:
			t.Fatalf("the demo ended:\n%s", i.errs)
		default:
		}
		return strings.Contains(i.out.String(), "The story is told")
	})
	people := filepath.Join(data, "people")
	admin, operator := person{i, filepath.Join(people, "admin")}, person{i, filepath.Join(people, "operator")}
	if names := admin.online(4); len(names) != 4 {
		t.Errorf("hosts: %v", names)
	}
	if out := operator.ok("requests"); !strings.Contains(out, "db-1") {
		t.Errorf("no request waits:\n%s", out)
	}
	if id := i.liveSession(operator); id == "" {
		t.Error("no session is live")
	}
	if out := admin.ok("status"); !strings.Contains(out, "demo") {
		t.Errorf("status does not say demo:\n%s", out)
	}
	if status, body := i.follow(i.link); status != http.StatusOK || !strings.Contains(body, "(demo)") {
		t.Errorf("the page (%d) does not say demo:\n%.400s", status, body)
	}
	admin.ok("ledger", "verify")

	i.stop()
	if left := processesOf(data); len(left) > 0 {
		t.Errorf("processes outlive the demo: %v", left)
	}
	if now := mountsNow(t); now != mounts {
		t.Errorf("mounts outlive the demo:\n%s", now)
	}
}

// mountsNow is what is mounted below the temporary folders.
func mountsNow(t *testing.T) string {
	t.Helper()
	all, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, "TestTheDemo") {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}
