package spine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestICanLook(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()

	if out := ada.ok("ssh", host, "--", "whoami"); strings.TrimSpace(out) != "admin" {
		t.Errorf("whoami in a read session is %q", out)
	}
	t.Run("looking works", func(t *testing.T) {
		for _, command := range []string{"ps aux", "ls /var/log", "cat /etc/os-release", "find /etc -maxdepth 1 -name hostname"} {
			if r := ada.run("ssh", host, "--", command); r.code != 0 || r.out == "" {
				t.Errorf("%s: exit %d\n%s%s", command, r.code, r.out, r.err)
			}
		}
	})
	t.Run("writing is refused by the kernel and the refusal says what to do", func(t *testing.T) {
		probe := filepath.Join("/var/tmp", "handrail-spine-probe")
		r := ada.run("ssh", host, "--", "touch /etc/handrail-probe; touch "+probe+"; kill -9 1; echo > /dev/tcp/127.0.0.1/22; cat /etc/shadow; true")
		for _, file := range []string{"/etc/handrail-probe", probe} {
			if _, err := os.Stat(file); err == nil {
				t.Errorf("%s was written", file)
				os.Remove(file)
			}
		}
		if !strings.Contains(r.out+r.err, "handrail elevate") {
			t.Errorf("the refusal does not say what to do instead:\n%s%s", r.out, r.err)
		}
		if strings.Contains(r.out, "root:") {
			t.Errorf("a declared secret was read:\n%s", r.out)
		}
	})
	t.Run("words are completed from what runs here", func(t *testing.T) {
		for _, args := range [][]string{{"ssh", ""}, {"host", "show", host[:1]}, {"ledger", "list", "--host", ""}} {
			if r := ada.run(append([]string{"__complete"}, args...)...); !strings.Contains(r.out, host+"\t") || strings.Contains(r.err, "rror") {
				t.Errorf("%q is offered %s%s", args, r.out, r.err)
			}
		}
		if out := ada.ok("__complete", "replay", "s-"); !strings.HasPrefix(out, "s-") {
			t.Errorf("of sessions is offered: %s", out)
		}
	})
	t.Run("it says that every payload is kept", func(t *testing.T) {
		if r := ada.run("ledger", "retain"); r.code != 0 || r.out != "" || !strings.Contains(r.err, "[retention]") || !strings.Contains(r.err, "handrail.toml") {
			t.Errorf("exit %d\n%s%s", r.code, r.out, r.err)
		}
	})
	t.Run("exit status and signals come through", func(t *testing.T) {
		for range 20 { // fast commands end before their input does
			if r := ada.run("ssh", host, "--", "echo out; exit 7"); r.code != 7 || r.out != "out\n" {
				t.Errorf("exit 7 became %d, out %q: %s", r.code, r.out, r.err)
			}
		}
		if r := ada.runIn("abc", "ssh", host, "--", "tr a-z A-Z"); r.out != "ABC" {
			t.Errorf("input became %q: %s", r.out, r.err)
		}
	})
	t.Run("every act is in a ledger that verifies", func(t *testing.T) {
		list := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
		for _, action := range []string{"session.opened", "session.closed", "person.added", "host.joined", "node.connected"} {
			if !strings.Contains(list, action) {
				t.Errorf("no entry %s", action)
			}
		}
		ada.ok("ledger", "verify")
		export := filepath.Join(t.TempDir(), "all.zip")
		ada.ok("ledger", "export", export)
		stranger := person{i, t.TempDir()}
		stranger.ok("ledger", "verify", "--file", export)
	})
	t.Run("a second start on the same folder says who has it", func(t *testing.T) {
		r := ada.refused(1, "up", "--data", i.data)
		if !strings.Contains(r.err, "another handrail") {
			t.Errorf("unhelpful: %s", r.err)
		}
	})
	t.Run("a port that is taken is named with what to do", func(t *testing.T) {
		r := ada.refused(1, "up", "--data", t.TempDir(), "--listen", i.page)
		if !strings.Contains(r.err, i.page) || !strings.Contains(r.err, "--listen") {
			t.Errorf("unhelpful: %s", r.err)
		}
	})
}
