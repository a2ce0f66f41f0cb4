package spine_test

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// asks runs what waits for a second person, and says what they would agree to.
func (p person) asks(args ...string) (id, approval string) {
	p.i.t.Helper()
	var a struct{ ID, Approval string }
	r := p.run(append(args, "-o", "json")...)
	if json.Unmarshal([]byte(r.out), &a) != nil || a.ID == "" || a.Approval == "" || r.code == 0 {
		p.i.t.Fatalf("%v: exit %d\n%s%s", args, r.code, r.out, r.err)
	}
	return a.ID, a.Approval
}

// parts are the files that core dumps lie in.
func (i *installation) parts() (all []string) {
	i.t.Helper()
	_ = filepath.WalkDir(i.data, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, "/cores/") {
			all = append(all, path)
		}
		return nil
	})
	return all
}

func TestMemoryLeavesADrainedHostSealedWhenTwoAgreed(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ben := ada.add("ben", "operator")
	eve := ada.add("eve", "admin")
	host := ada.hostname()
	victim := exec.Command("sleep", "10000")
	victim.Env = []string{"DB_PASSWORD=hunter2-in-memory", "LANG=C"}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = victim.Process.Kill(); _ = victim.Wait() })
	pid := strconv.Itoa(victim.Process.Pid)
	core := []string{"inspect", host, "core", pid, "--why", "it leaks"}

	if r := ada.run(core...); r.code == 0 || !strings.Contains(r.err, "host drain "+host) {
		t.Fatalf("a host that is not drained: exit %d\n%s", r.code, r.err)
	}
	ada.ok("host", "drain", host, "--for", "1h", "--why", "core dump of sleep")
	if r := ben.run("ssh", host, "--", "true"); r.code == 0 || !strings.Contains(r.err, "core dump of sleep") {
		t.Errorf("somebody else gets onto a drained host: exit %d\n%s", r.code, r.err)
	}
	if list := ben.ok("hosts"); !strings.Contains(list, "drained") {
		t.Errorf("the list does not say it:\n%s", list)
	}
	id, approval := ada.asks(core...)
	if r := ada.run("inspect", "core", "take", id); r.code == 0 || !strings.Contains(r.err, "approve") {
		t.Errorf("taken without anybody: exit %d\n%s", r.code, r.err)
	}
	if r := ada.run("approve", approval, "--yes"); r.code == 0 {
		t.Error("who asks agrees to it themselves")
	}
	ben.ok("approve", approval, "--yes")
	if r := ben.run("inspect", "core", "take", id); r.code == 0 {
		t.Error("somebody else takes it")
	}
	if r := ada.run("inspect", "core", "take", id); r.code != 0 || !strings.Contains(r.out, "pause") {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	if r := ada.run("inspect", "core", "take", id); r.code == 0 {
		t.Error("an approval is used twice")
	}

	files := i.parts()
	if len(files) == 0 {
		t.Fatal("nothing is kept")
	}
	kept, err := os.ReadFile(files[0])
	must(t, err)
	if bytes.Contains(kept, []byte("hunter2")) || bytes.Contains(kept, []byte("ELF")) {
		t.Error("it lies open on the disk")
	}
	dir := t.TempDir()
	for n, p := range []person{ada, ben} {
		file := filepath.Join(dir, "core"+strconv.Itoa(n))
		p.ok("inspect", "core", "get", id, file)
		b, err := os.ReadFile(file)
		must(t, err)
		if _, err := elf.NewFile(bytes.NewReader(b)); err != nil || !bytes.Contains(b, []byte("hunter2-in-memory")) {
			t.Errorf("%v", err)
		}
	}
	if gdb, err := exec.LookPath("gdb"); err == nil {
		out, err := exec.Command(gdb, "-nx", "-batch", "-ex", "bt", victim.Path, filepath.Join(dir, "core0")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "nanosleep") {
			t.Errorf("gdb: %v\n%s", err, out)
		}
	}
	if r := eve.run("inspect", "core", "get", id, filepath.Join(dir, "eves")); r.code == 0 || !strings.Contains(r.err, "only who asked") {
		t.Errorf("an admin who had no part in it reads it: exit %d\n%s", r.code, r.err)
	}
	if _, err := os.Stat(filepath.Join(dir, "eves")); err == nil {
		t.Error("a file is left of what was refused")
	}
	swapped := bytes.Clone(kept)
	swapped[len(swapped)/2] ^= 1
	must(t, os.WriteFile(files[0], swapped, 0o600))
	if r := ada.run("inspect", "core", "get", id, filepath.Join(dir, "swapped")); r.code == 0 || !strings.Contains(r.err, "not what was put there") {
		t.Errorf("what was swapped is believed: exit %d\n%s", r.code, r.err)
	}
	must(t, os.WriteFile(files[0], kept, 0o600))
	ada.ok("inspect", "core", "remove", id, "--yes")
	i.until("its parts to be gone", func() bool { return len(i.parts()) == 0 })
	if r := ada.run("inspect", "core", "get", id, filepath.Join(dir, "late")); r.code == 0 {
		t.Error("what was destroyed is fetched")
	}

	list := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
	for _, action := range []string{"host.drained", "core.kept", "core.read", "core.removed", "core.destroyed"} {
		if !strings.Contains(list, `"`+action+`"`) {
			t.Errorf("%s is not in the ledger", action)
		}
	}
	if strings.Contains(list, "hunter2") {
		t.Error("the ledger keeps what was in the memory")
	}
	ben.ok("host", "undrain", host)
	ada.ok("ledger", "verify")
}

func TestAMaskedValueIsShownOnceToWhoAskedWhenTwoAgreed(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ben := ada.add("ben", "operator")
	host := ada.hostname()
	victim := exec.Command("sleep", "10000")
	victim.Env = []string{"DB_PASSWORD=hunter2-unmasked", "LANG=C"}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = victim.Process.Kill(); _ = victim.Wait() })
	env := []string{"inspect", host, "env", strconv.Itoa(victim.Process.Pid)}
	for _, name := range []string{"LANG", "NOT_THERE"} {
		if r := ada.run(append(env, "--unmask", name, "--why", "x")...); r.code == 0 {
			t.Errorf("%s is asked for:\n%s", name, r.out)
		}
	}
	id, approval := ada.asks(append(env, "--unmask", "DB_PASSWORD", "--why", "wrong database?")...)
	if r := ada.run("inspect", "unmask", id); r.code == 0 || strings.Contains(r.out, "hunter2") {
		t.Errorf("it is shown before anybody agreed: %s", r.out)
	}
	if r := ben.run("approve", approval, "--yes"); r.code != 0 || !strings.Contains(r.out+r.err, "DB_PASSWORD") || !strings.Contains(r.out+r.err, "wrong database?") {
		t.Errorf("who agrees does not see to what: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if r := ben.run("inspect", "unmask", id); r.code == 0 {
		t.Errorf("somebody else is shown it: %s", r.out)
	}
	if out := ada.ok("inspect", "unmask", id); strings.TrimSpace(out) != "hunter2-unmasked" {
		t.Errorf("%q", out)
	}
	if r := ada.run("inspect", "unmask", id); r.code == 0 || strings.Contains(r.out, "hunter2") {
		t.Errorf("it is shown twice: %s", r.out)
	}
	list := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
	if !strings.Contains(list, `"inspection.unmasked"`) || strings.Contains(list, "hunter2") {
		t.Error("the ledger does not keep that it was shown, or keeps what")
	}
	if found := traces(t, i.data, []string{"hunter2-unmasked"}); len(found) > 0 {
		t.Errorf("the value lies in %v", found)
	}
	ada.ok("ledger", "verify")

	t.Run("an answer is shown again out of the ledger, as it was told", func(t *testing.T) {
		first := ada.run(env...)
		n := first.err[strings.LastIndex(first.err, "n-"):]
		again := ada.ok("inspect", "show", strings.TrimSpace(n))
		if again != first.out || !strings.Contains(again, "DB_PASSWORD") {
			t.Errorf("then:\n%snow:\n%s", first.out, again)
		}
		cat := ada.add("cat", "developer")
		if r := cat.run("inspect", "show", strings.TrimSpace(n)); r.code == 0 {
			t.Errorf("a developer sees what others were told: %s", r.out)
		}
		if list := ada.ok("ledger", "list", "-o", "json"); !strings.Contains(list, `"inspection.shown"`) {
			t.Error("it is not recorded")
		}
	})
}
