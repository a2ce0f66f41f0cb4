package app

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A caller who vanishes with output on its way holds its session no longer than
// that: the server's role is handed the port as a file, and what it accepts must
// still give up.
func TestACallerWhoVanishesIsGivenUp(t *testing.T) {
	opened, err := openPort("ssh", "--ssh-listen", "127.0.0.1:0", defaultSSH)
	if err != nil {
		t.Fatal(err)
	}
	file, err := opened.File()
	opened.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	caller, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer caller.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if failed := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	if d := time.Duration(got) * time.Millisecond; d != unanswered {
		t.Errorf("the kernel gives up after %v, want %v", d, unanswered)
	}
}
