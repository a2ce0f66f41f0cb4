package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// cluster is a private PostgreSQL on a unix socket, for as long as the tests of
// this package run.
type cluster struct {
	dir     string
	missing string // why there is none
	cmd     *exec.Cmd
	next    atomic.Int64
}

// shared is set once, before any test runs.
var shared *cluster

func TestMain(m *testing.M) {
	// The cluster dies with the thread that started it; this one stays.
	runtime.LockOSThread()
	shared = startCluster()
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

// postgresBin finds the folder of Debian's (or anybody's) PostgreSQL server.
func postgresBin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	return ""
}

func startCluster() *cluster {
	c := &cluster{}
	bin := postgresBin()
	if bin == "" {
		c.missing = "no PostgreSQL server binaries (Debian: apt-get install postgresql)"
		return c
	}
	fail := func(what string, err error) *cluster {
		c.missing = fmt.Sprintf("PostgreSQL does not start here: %s: %v", what, err)
		return c
	}
	var err error
	if c.dir, err = os.MkdirTemp("", "pg"); err != nil {
		return fail("temporary folder", err)
	}
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() == 0 { // initdb refuses root
		uid, gid, err := otherUser()
		if err != nil {
			return fail("another user", err)
		}
		if err := os.Chown(c.dir, int(uid), int(gid)); err != nil {
			return fail("chown", err)
		}
		attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	data := filepath.Join(c.dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "handrail", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attr, c.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return fail(lastLine(out), err)
	}
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return fail("log", err)
	}
	c.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", c.dir, "-c", "listen_addresses=", "-c", "max_connections=200", "-c", "shared_buffers=64MB")
	c.cmd.SysProcAttr, c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = attr, c.dir, log, log
	if err := c.cmd.Start(); err != nil {
		return fail("start", err)
	}
	if err := c.ready(); err != nil {
		return fail("answer", err)
	}
	return c
}

func (c *cluster) ready() error {
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func otherUser() (uid, gid uint32, err error) {
	for _, name := range []string{"postgres", "nobody"} {
		var u *user.User
		if u, err = user.Lookup(name); err == nil {
			ui, err1 := strconv.ParseUint(u.Uid, 10, 32)
			gi, err2 := strconv.ParseUint(u.Gid, 10, 32)
			if err1 == nil && err2 == nil {
				return uint32(ui), uint32(gi), nil
			}
		}
	}
	return 0, 0, err
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func (c *cluster) url(db string) string { return "postgres://handrail@/" + db + "?host=" + c.dir }

func (c *cluster) stop() {
	if c.cmd != nil && c.cmd.Process != nil {
		_ = c.cmd.Process.Signal(syscall.SIGINT) // fast shutdown
		_ = c.cmd.Wait()
	}
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

// required says that a missing PostgreSQL is a failure here.
func required() bool {
	return slices.Contains(strings.FieldsFunc(os.Getenv("HANDRAIL_TEST_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' }), "postgres")
}

// database makes a fresh database in the cluster and returns its URL.
func (c *cluster) database(t testing.TB) string {
	t.Helper()
	if c.missing != "" {
		if required() {
			t.Fatal(c.missing)
		}
		t.Skip(c.missing)
	}
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("test_%d", c.next.Add(1))
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	return c.url(name)
}

// onBoth runs the test on SQLite and on PostgreSQL.
func onBoth(t *testing.T, test func(t *testing.T, c Config)) {
	t.Run("sqlite", func(t *testing.T) { test(t, testConfig(t)) })
	t.Run("postgres", func(t *testing.T) {
		c := testConfig(t)
		c.DSN = shared.database(t)
		test(t, c)
	})
}
