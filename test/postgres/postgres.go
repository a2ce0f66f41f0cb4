// Package postgres runs a real PostgreSQL of Debian's for tests, private to them,
// on a unix socket.
package postgres

import (
	"context"
	"database/sql"
	"errors"
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

// Cluster is one PostgreSQL server.
type Cluster struct {
	dir, bin string
	missing  string // why there is none
	attr     *syscall.SysProcAttr
	process  *os.Process
	ended    chan struct{}
	next     atomic.Int64

	place  func() error // puts the thread that starts the server where it shall be
	listen string       // an address, beside the unix socket; "" is none
}

// Start starts a cluster; where it cannot, tests that ask for a database skip.
func Start() *Cluster {
	c := &Cluster{bin: binaries()}
	if c.bin == "" {
		c.missing = "no PostgreSQL server binaries (Debian: apt-get install postgresql)"
		return c
	}
	if err := c.start(); err != nil {
		c.missing = fmt.Sprintf("PostgreSQL does not start here: %v", err)
	}
	return c
}

// Elsewhere makes a server that listens on an address in another network
// namespace, which place puts the calling thread into.
func (c *Cluster) Elsewhere(t testing.TB, address string, place func() error) *Cluster {
	t.Helper()
	c.need(t)
	e := &Cluster{bin: c.bin, place: place, listen: address}
	t.Cleanup(e.Stop)
	if err := e.start(); err != nil {
		t.Fatal(err)
	}
	return e
}

// binaries finds the folder of Debian's (or anybody's) PostgreSQL server.
func binaries() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	return ""
}

func (c *Cluster) start() error {
	if err := c.folder(); err != nil {
		return err
	}
	if err := c.run("initdb", "-D", filepath.Join(c.dir, "data"), "-U", "handrail", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		return err
	}
	if c.listen != "" {
		rules, err := os.OpenFile(filepath.Join(c.dir, "data", "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = rules.WriteString("host all all 10.77.0.0/16 trust\n")
		if err := errors.Join(err, rules.Close()); err != nil {
			return err
		}
	}
	return c.Again()
}

// folder makes the server's folder, and finds the account to run it as.
func (c *Cluster) folder() (err error) {
	if c.dir, err = os.MkdirTemp("", "pg"); err != nil {
		return err
	}
	c.attr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() == 0 { // initdb refuses root
		uid, gid, err := otherUser()
		if err != nil {
			return err
		}
		if err := os.Chown(c.dir, int(uid), int(gid)); err != nil {
			return err
		}
		c.attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	return os.Chmod(c.dir, 0o755) // other accounts use the socket
}

func (c *Cluster) run(tool string, args ...string) error {
	cmd := exec.Command(filepath.Join(c.bin, tool), args...)
	cmd.SysProcAttr, cmd.Dir = c.attr, c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w", lines[len(lines)-1], err)
	}
	return nil
}

// Standby makes a copy of the server that follows it by streaming replication.
// It is ready when it has replayed what the server holds now.
func (c *Cluster) Standby(t testing.TB) *Cluster {
	t.Helper()
	c.need(t)
	s := &Cluster{bin: c.bin}
	t.Cleanup(s.Stop)
	err := s.folder()
	if err == nil {
		err = s.run("pg_basebackup", "-h", c.dir, "-U", "handrail", "-D", filepath.Join(s.dir, "data"), "-R", "-X", "stream", "-c", "fast")
	}
	if err == nil {
		err = s.Again()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Promote makes a standby a server of its own.
func (c *Cluster) Promote(t testing.TB) {
	t.Helper()
	if err := c.run("pg_ctl", "promote", "-w", "-t", "60", "-D", filepath.Join(c.dir, "data")); err != nil {
		t.Fatal(err)
	}
}

// Replayed says whether a standby holds all that its primary has written.
func (c *Cluster) Replayed(t testing.TB, primary *Cluster) bool {
	t.Helper()
	var at string
	primary.ask(t, &at, "SELECT pg_current_wal_lsn()::text")
	var done bool
	c.ask(t, &done, "SELECT pg_last_wal_replay_lsn() >= '"+at+"'::pg_lsn")
	return done
}

// Processor is the processor time that the server's processes have used which
// still live, for benchmarks.
func (c *Cluster) Processor() (all time.Duration) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest) // from the state on: parent is 1, times are 11 and 12
		if c.process == nil || len(f) < 13 || f[1] != strconv.Itoa(c.process.Pid) {
			continue
		}
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		all += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ
	}
	return all
}

func (c *Cluster) ask(t testing.TB, into any, q string) {
	t.Helper()
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow(q).Scan(into); err != nil {
		t.Fatal(err)
	}
}

// Or is the URL of the same database on whichever of two servers takes writes.
func (c *Cluster) Or(other *Cluster, url string) string {
	return c.At(url) + "," + other.dir + "&target_session_attrs=read-write"
}

// At is the URL of the same database on this server.
func (c *Cluster) At(url string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres://handrail@/"), "?")
	return c.url(name)
}

// Again starts the server that Kill has ended, on the same data.
func (c *Cluster) Again() error {
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", filepath.Join(c.dir, "data"), "-k", c.dir,
		"-c", "listen_addresses="+c.listen, "-c", "max_connections=200", "-c", "shared_buffers=64MB")
	cmd.SysProcAttr, cmd.Dir, cmd.Stdout, cmd.Stderr = c.attr, c.dir, log, log
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the server dies with the thread that started it; this one stays
		var err error
		if c.place != nil {
			err = c.place()
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		return err
	}
	c.process, c.ended = cmd.Process, ended
	return c.ready()
}

func (c *Cluster) ready() error {
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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

func (c *Cluster) url(db string) string { return "postgres://handrail@/" + db + "?host=" + c.dir }

// Kill ends the server at once, as a crash does; the data stays.
func (c *Cluster) Kill() { c.end(syscall.SIGQUIT) }

func (c *Cluster) end(signal syscall.Signal) {
	if c.process != nil {
		_ = c.process.Signal(signal)
		<-c.ended
		c.process = nil
	}
}

// Stop ends the server and removes its data.
func (c *Cluster) Stop() {
	c.end(syscall.SIGINT) // fast shutdown
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

// Over is the URL of a database of this server by its address.
func (c *Cluster) Over(url string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres://handrail@/"), "?")
	return "postgres://handrail@" + c.listen + "/" + name
}

// required says that a missing PostgreSQL is a failure here.
func required() bool {
	return slices.Contains(strings.FieldsFunc(os.Getenv("HANDRAIL_TEST_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' }), "postgres")
}

// Database makes a fresh database and returns its URL.
func (c *Cluster) Database(t testing.TB) string {
	t.Helper()
	c.need(t)
	url, err := c.New()
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// New makes a fresh database for who is no test.
func (c *Cluster) New() (string, error) {
	if c.missing != "" {
		return "", errors.New(c.missing)
	}
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		return "", err
	}
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("test_%d", c.next.Add(1))
	_, err = db.Exec("CREATE DATABASE " + name)
	return c.url(name), err
}

func (c *Cluster) need(t testing.TB) {
	t.Helper()
	if c.missing != "" {
		if required() {
			t.Fatal(c.missing)
		}
		t.Skip("skipped: " + c.missing)
	}
}
