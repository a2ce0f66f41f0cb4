package port

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestAReservedPortIsOpenedAgainAndAgain(t *testing.T) {
	address, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for range 3 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		near, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		far.Close() // what the closing side leaves behind must not hold the port
		near.Close()
		l.Close()
	}
}

// inside says that this process is the test alone in a network of four ports.
const inside = "HANDRAIL_TEST_FOUR_PORTS"

func TestAReservedPortIsGivenToNobody(t *testing.T) {
	if os.Getenv(inside) == "" {
		if os.Geteuid() != 0 {
			t.Skip("a network of its own needs root")
		}
		if _, err := exec.LookPath("ip"); err != nil {
			t.Skip("ip is missing")
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		const four = `ip link set lo up; echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range; exec "$0" -test.run='^TestAReservedPortIsGivenToNobody$'`
		cmd := exec.Command("/bin/sh", "-ec", four, self)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	address, _, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	given := []net.Addr{server.Addr()}
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, l.Addr())
	}
	for {
		c, err := net.Dial("tcp", server.Addr().String())
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, c.LocalAddr())
	}
	for _, a := range given {
		if a.String() == address {
			t.Errorf("the reserved %s was given away, among %v", address, given)
		}
	}
	if l, err := net.Listen("tcp", address); err != nil {
		t.Errorf("the reserved port cannot be opened: %v", err)
	} else {
		l.Close()
	}
}
