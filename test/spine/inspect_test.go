package spine_test

import (
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func TestABrokeredReadNeedsNoShellAndIsRecorded(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	pid := aSleeper(t, "DB_PASSWORD=hunter2", "LANG=C")

	env := ada.run("inspect", host, "env", pid)
	if env.code != 0 || !strings.Contains(env.out, "DB_PASSWORD") || strings.Contains(env.out+env.err, "hunter2") || !strings.Contains(env.err, "1 masked") {
		t.Errorf("env: exit %d\n%s%s", env.code, env.out, env.err)
	}
	stacks := ada.run("inspect", host, "stacks", pid)
	if stacks.code != 0 || !strings.Contains(stacks.out, "1 thread") || !strings.Contains(stacks.err, "paused ") {
		t.Errorf("stacks: exit %d\n%s%s", stacks.code, stacks.out, stacks.err)
	}
	var answer struct {
		Records []map[string]any
	}
	if out := ada.ok("inspect", host, "stacks", pid, "-o", "json"); json.Unmarshal([]byte(out), &answer) != nil || len(answer.Records) < 4 {
		t.Errorf("not the API's own shape:\n%s", out)
	}
	for _, one := range []struct {
		code int
		hint string
		args []string
	}{
		{1, "inspect " + host + " top", []string{"inspect", host, "env", "4194304"}},
		{2, "inspect " + host + " stacks", []string{"inspect", host, "stack"}},
		{3, "", []string{"inspect", host, "files", "/etc/shadow"}},
	} {
		if r := ada.refused(one.code, one.args...); !strings.Contains(r.err, one.hint) {
			t.Errorf("%v: unhelpful: %s", one.args, r.err)
		}
	}
	list := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
	if opened, closed := strings.Count(list, `"inspection.opened"`), strings.Count(list, `"inspection.closed"`); opened != 5 || closed != 5 {
		t.Errorf("%d were opened and %d closed, of five", opened, closed)
	}
	if strings.Contains(list, "hunter2") {
		t.Error("the ledger keeps what was masked")
	}
	ada.ok("ledger", "verify")
}

// aSleeper is the number of a process that was started with that environment.
func aSleeper(t *testing.T, env ...string) string {
	t.Helper()
	c := exec.Command("sleep", "10000")
	c.Env = env
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return strconv.Itoa(c.Process.Pid)
}
