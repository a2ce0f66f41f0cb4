package sshd

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Account makes an account for the test and returns its name; it is removed
// with the test, whatever runs as it too.
func Account(t testing.TB, prefix string) string {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<20))
	must(t, err)
	uid := 1<<20 + int(n.Int64()) // where nobody's accounts are
	name := newAccount(t, prefix, uid)
	t.Cleanup(func() { endAll(strconv.Itoa(uid)) })
	return name
}

// RootAccount makes another name of root for the test, as whom a host's own
// administrator may let us in. What runs as it is not ended: it is root's.
func RootAccount(t testing.TB, prefix string) string {
	t.Helper()
	return newAccount(t, prefix, 0)
}

// The files that say which accounts there are, and the lock of whoever changes them
// (lckpwdf(3)).
const (
	passwd   = "/etc/passwd"
	shadow   = "/etc/shadow"
	lockFile = "/etc/.pwd.lock"
)

// newAccount makes an account under a new name, whatever a killed test left on this
// machine. It does as useradd(8), but in place: that replaces its files, and a
// session that another test has open at that moment would lose what covers them.
func newAccount(t testing.TB, prefix string, uid int) string {
	t.Helper()
	name := prefix + "-" + strings.ToLower(rand.Text()[:8])
	home := filepath.Join(t.TempDir(), "home")
	for dir := filepath.Dir(home); dir != "/" && dir != "/tmp"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Mkdir(home, 0o755))
	must(t, os.Chown(home, uid, uid))
	must(t, locked(func() error {
		if err := add(passwd, fmt.Sprintf("%s:x:%d:%d::%s:/bin/bash\n", name, uid, uid, home)); err != nil {
			return err
		}
		return add(shadow, name+":*:19000:0:99999:7:::\n")
	}))
	t.Cleanup(func() {
		err := locked(func() error {
			for _, file := range []string{passwd, shadow} {
				if err := drop(file, name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	return name
}

func locked(change func() error) error {
	f, err := os.OpenFile(lockFile, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return err
	}
	return change()
}

func add(file, line string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.WriteString(f, line)
	return err
}

// drop takes out an account's line. Who reads meanwhile sees a later line twice, and
// none cut.
func drop(file, name string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	was, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	var left []byte
	for line := range bytes.Lines(was) {
		if !bytes.HasPrefix(line, []byte(name+":")) {
			left = append(left, line...)
		}
	}
	if _, err := f.WriteAt(left, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(left)))
}

// endAll kills what an account that a test made still runs.
func endAll(uid string) {
	for range 100 {
		found, _ := filepath.Glob("/proc/[0-9]*")
		left := 0
		for _, dir := range found {
			st, err := os.Stat(dir)
			if err != nil {
				continue
			}
			if strconv.Itoa(int(st.Sys().(*syscall.Stat_t).Uid)) == uid {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				_ = syscall.Kill(pid, syscall.SIGKILL)
				left++
			}
		}
		if left == 0 {
			return
		}
		_, _ = exec.Command("sleep", "0.05").Output()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
