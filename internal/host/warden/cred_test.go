package warden

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// connectAs connects a socket from a thread that has another uid: the kernel
// keeps the credentials of whoever called connect. The thread is thrown away.
func connectAs(t *testing.T, fd int, path string, uid int) {
	t.Helper()
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			errs <- e
			return
		}
		errs <- unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// asUser is a client whose connection was made under another uid.
func (b *bench) asUser(uid int) *Client {
	b.t.Helper()
	c := NewClient(filepath.Join(b.dir, "s"))
	b.t.Cleanup(c.Close)
	b.eventually("the socket is there", func() bool { _, err := os.Stat(c.path); return err == nil })
	c.dial = func(_ context.Context, path string) (*net.UnixConn, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		connectAs(b.t, fd, path, uid)
		f := os.NewFile(uintptr(fd), "warden")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	}
	return c
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// running reports whether a process has this command line.
func running(cmdline string) bool {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		b, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.HasPrefix(string(b), cmdline) {
			return true
		}
	}
	return false
}
