package spine_test

import (
	"context"
	"database/sql"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"handrail.dev/handrail/test/postgres"
)

// smallDisk is a folder on a disk of its own.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("small", dir, "tmpfs", 0, "size=160m,mode=0755"); err != nil {
		t.Skipf("no small disk can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill takes what is free on a disk but for leave bytes. The server writes to it
// meanwhile, so what was free may not be any more.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tries := 0; ; tries++ {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		left := int64(st.Bavail)*int64(st.Bsize) - leave
		if left <= 0 {
			break
		}
		err := syscall.Fallocate(int(f.Fd()), 0, 0, left)
		if err == nil {
			break
		}
		if err != syscall.ENOSPC || tries == 100 {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

func TestAFullDiskStartsNothingAndBrakesWork(t *testing.T) {
	needRoot(t)
	disk := smallDisk(t)
	i := up(t, filepath.Join(disk, "data"))
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	marks := []string{marker(t), marker(t)}
	long := ben.start("ssh", host, "--", "echo up; sleep "+marks[0])
	long.waitFor("up")
	id := i.liveSession(ada)
	second := cleo.start("ssh", host, "--", "echo up; sleep "+marks[1])
	second.waitFor("up")

	nearly := fill(t, disk, 8<<20)
	if r := cleo.refused(255, "ssh", host, "--", "true"); !strings.Contains(r.err, "full") || !strings.Contains(r.err, "make room") {
		t.Errorf("the refusal does not say why and what to do: %s", r.err)
	}
	if out := ada.ok("status"); !strings.Contains(out, "disk is full") {
		t.Errorf("status says nothing of the disk:\n%s", out)
	}
	if status, body := i.follow(i.link); status != http.StatusOK && !strings.Contains(body, "full") {
		t.Errorf("the page answers %d", status)
	}
	ada.ok("stop", id, "--reason", "enough")
	i.until("the end of the stopped session", func() bool { return len(running(marks[0])) == 0 })

	wholly := fill(t, disk, 0)
	r := ada.run("lock", "cleo", "--reason", "lost laptop")
	i.until("the end of the locked person's session", func() bool { return len(running(marks[1])) == 0 })
	second.wait()
	if r.code != 0 {
		t.Errorf("lock: exit %d:\n%s%s", r.code, r.out, r.err)
	}
	if r := cleo.run("ssh", host, "--", "true"); r.code == 0 {
		t.Error("a locked person opened a session")
	}

	wholly()
	nearly()
	i.until("sessions to open again", func() bool { return ada.run("ssh", host, "--", "echo in").out == "in\n" })
	i.until("the lock to be in the ledger", func() bool {
		return strings.Contains(ada.ok("ledger", "list", "--limit", "500", "-o", "json"), "person.locked")
	})
	if r := cleo.run("hosts"); r.code != 3 {
		t.Errorf("a locked person's command exits with %d: %s", r.code, r.err)
	}
	ada.ok("ledger", "verify")
}

func TestALockedDatabaseStopsNoBrake(t *testing.T) {
	t.Parallel()
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	cleo := ada.add("cleo", "developer")
	mark := marker(t)
	long := cleo.start("ssh", host, "--", "echo up; sleep "+mark)
	long.waitFor("up")

	release := holdDatabase(t, i.data)
	tried := ada.start("ssh", host, "--", "true")
	lock := ada.start("lock", "cleo", "--reason", "lost laptop")
	i.until("the end of the locked person's session", func() bool { return len(running(mark)) == 0 })
	long.wait()
	tried.wait()
	if tried.cmd.ProcessState.ExitCode() != 255 || !strings.Contains(tried.out.String(), "cannot ") {
		t.Errorf("no session opens unrecorded (exit %d):\n%s", tried.cmd.ProcessState.ExitCode(), tried.out)
	}
	lock.wait() // it answers while somebody still holds the database
	if lock.cmd.ProcessState.ExitCode() != 0 || !strings.Contains(lock.out.String(), "the ledger entry follows") {
		t.Errorf("lock: exit %d:\n%s", lock.cmd.ProcessState.ExitCode(), lock.out)
	}
	release()

	i.until("sessions to open again", func() bool { return ada.run("ssh", host, "--", "echo in").out == "in\n" })
	i.until("the lock to be in the ledger", func() bool {
		return strings.Contains(ada.ok("ledger", "list", "--limit", "500", "-o", "json"), "person.locked")
	})
	if r := cleo.run("hosts"); r.code != 3 {
		t.Errorf("a locked person's command exits with %d: %s", r.code, r.err)
	}
	ada.ok("ledger", "verify")
}

// With the database gone nothing can be read either, not even who is logged in:
// brakes go by who was when it last answered.
func TestADatabaseThatIsGoneStopsNoBrake(t *testing.T) {
	t.Parallel()
	needRoot(t)
	db := postgres.Start()
	t.Cleanup(db.Stop)
	i := up(t, t.TempDir(), "--database", db.Database(t))
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	cleo := ada.add("cleo", "developer")
	ben := ada.add("ben", "developer")
	dora := ada.add("dora", "developer")
	eve := ada.add("eve", "operator")
	var grant asked
	dora.json(&grant, "elevate", host, "--reason", "it burns", "-o", "json")
	eve.ok("approve", grant.ID, "--yes")
	marks := []string{marker(t), marker(t), marker(t)}
	locked := cleo.start("ssh", host, "--", "echo up; sleep "+marks[0])
	locked.waitFor("up")
	id := i.liveSession(ada)
	stopped := ben.start("ssh", host, "--", "echo up; sleep "+marks[1])
	stopped.waitFor("up")
	for _, s := range i.live(ada) {
		if s != id {
			id = s
		}
	}

	revoked := dora.start("ssh", "--write", host, "--", "echo up; sleep "+marks[2])
	revoked.waitFor("up")

	db.Kill()
	if r := ada.run("ssh", host, "--", "true"); r.code != 255 {
		t.Errorf("a session opened with no database: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if out := ada.ok("lock", "cleo", "--reason", "lost laptop"); !strings.Contains(out, "cleo") {
		t.Errorf("lock said:\n%s", out)
	}
	i.until("the end of the locked person's session", func() bool { return len(running(marks[0])) == 0 })
	locked.wait()
	ada.ok("stop", id, "--reason", "enough")
	i.until("the end of the stopped session", func() bool { return len(running(marks[1])) == 0 })
	stopped.wait()
	eve.ok("revoke", grant.ID, "--reason", "enough")
	i.until("the end of the revoked session", func() bool { return len(running(marks[2])) == 0 })
	revoked.wait()
	if r := cleo.run("lock", "ada", "--reason", "revenge"); r.code == 0 {
		t.Error("who was locked while the database was gone could still brake others")
	}

	if err := db.Again(); err != nil {
		t.Fatal(err)
	}
	i.until("sessions to open again", func() bool { return ada.run("ssh", host, "--", "echo in").out == "in\n" })
	i.until("the brakes to be in the ledger", func() bool {
		out := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
		return strings.Contains(out, "person.locked") && strings.Contains(out, "session.stopped") && strings.Contains(out, "grant.ended")
	})
	if r := cleo.run("hosts"); r.code != 3 {
		t.Errorf("a locked person's command exits with %d: %s", r.code, r.err)
	}
	ada.ok("ledger", "verify")
}

// holdDatabase keeps everybody else from writing.
func holdDatabase(t *testing.T, data string) (release func()) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(data, "server", "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := db.Conn(t.Context())
	if err == nil {
		_, err = c.ExecContext(t.Context(), "PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE")
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := c.ExecContext(context.Background(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
		c.Close()
		db.Close()
	}
}
