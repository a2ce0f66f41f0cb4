package spine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// odd starts an installation on a machine made odd by a line of shell, in
// mounts of its own.
func odd(t *testing.T, line string) *installation {
	t.Helper()
	needRoot(t)
	if !wholeRoot() {
		t.Skip("needs to mount")
	}
	data := filepath.Join(t.TempDir(), "data")
	words := []string{"-m", "sh", "-c", line + ` && exec "$@"`, t.TempDir(), binary}
	return upBy(t, exec.Command("unshare", append(words, upArgs(t, data)...)...), data)
}

// A session begins, writes under a grant, stands still, and ends with everything
// that fled, whatever the host's control groups and process list are like.
func TestSessionsOnOddHosts(t *testing.T) {
	for _, m := range []struct{ name, line, says string }{
		{"version 1 of control groups alone, and memory not counted", "umount /sys/fs/cgroup/unified /sys/fs/cgroup/memory", "no memory controller"},
		{"a process list that hides others", "mount -t proc -o hidepid=2 proc /proc", "full"},
	} {
		t.Run(m.name, func(t *testing.T) {
			if strings.HasPrefix(m.line, "umount") {
				for _, dir := range []string{"pids", "freezer", "memory", "unified"} {
					if _, err := os.Stat("/sys/fs/cgroup/" + dir + "/cgroup.procs"); err != nil {
						t.Skip("version 1 is not mounted here: make test-kernels")
					}
				}
			}
			i := odd(t, m.line)
			ada := i.first()
			host := ada.hostname()
			cleo := ada.add("cleo", "developer")
			if out := ada.ok("host", "show", host); !strings.Contains(out, m.says) {
				t.Errorf("the host does not say %q:\n%s", m.says, out)
			}
			ada.ok("inspect", host, "top")
			ada.ok("break-glass", host, "--reason", "it burns")
			if out := ada.ok("ssh", "--write", host, "--", "id -un"); strings.TrimSpace(out) != "handrail-write" {
				t.Errorf("a write session is %q", out)
			}
			for _, end := range [][]string{{"stop", "-", "--reason", "enough"}, {"lock", "cleo", "--reason", "lost laptop"}} {
				who, mark := ada, marker(t)
				if end[0] == "lock" {
					who = cleo
				}
				s := who.start("ssh", host, "--", "setsid sh -c 'trap \"\" HUP TERM; sleep "+mark+" & sleep "+mark+"' & sleep "+mark)
				i.until("the processes to flee", func() bool { return len(running(mark)) == 3 })
				who.ok("pause", "-", "--reason", "talk first")
				if end[0] == "stop" {
					who.ok("resume", "-")
				} // a lock ends who stands still, too
				ada.ok(end...)
				s.wait()
				if left := running(mark); len(left) > 0 {
					t.Errorf("%s leaves %v", end[0], left)
				}
			}
			ada.ok("ledger", "verify")
		})
	}
}

// What cannot be killed as a whole is not begun, and the refusal says what to do.
func TestAHostWithoutControlGroupsSaysWhatToMount(t *testing.T) {
	i := odd(t, "umount -l /sys/fs/cgroup")
	ada := i.first()
	host := ada.hostname()
	const next = "mount -t cgroup2 none /sys/fs/cgroup"
	if r := ada.refused(255, "ssh", host, "--", "true"); !strings.Contains(r.err, next) {
		t.Errorf("a session: %s", r.err)
	}
	if out := ada.ok("host", "show", host); !strings.Contains(out, next) {
		t.Errorf("the host says:\n%s", out)
	}
	ada.ok("ledger", "verify")
}

// A machine on which the account of write sessions cannot be made works for
// reading, and says how to make it.
func TestAHostWithoutAnAccountForWritingSaysHowToMakeIt(t *testing.T) {
	i := odd(t, strings.TrimSuffix(noAccount, ` && exec "$@"`)+` && mount --bind /bin/false "$(command -v useradd || echo /bin/false)"`)
	ada := i.first()
	host := ada.hostname()
	const next = "adduser -S"
	ada.ok("ssh", host, "--", "true")
	ada.ok("break-glass", host, "--reason", "it burns")
	if r := ada.refused(255, "ssh", "--write", host, "--", "true"); !strings.Contains(r.err, next) {
		t.Errorf("a write session: %s", r.err)
	}
	if out := ada.ok("host", "show", host); !strings.Contains(out, "handrail-write is missing") || !strings.Contains(out, next) {
		t.Errorf("the host says:\n%s", out)
	}
}
