package spine_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/port"
)

// echo is a server on loopback that says back what it hears.
func echo(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// TestPortsAreForwardedWhereAGrantNamesThem uses stock ssh, its shared
// connection, and the way in which editors come: one connection with a SOCKS
// proxy, a program that stays, and copies beside it.
func TestPortsAreForwardedWhereAGrantNamesThem(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("ssh is missing")
	}
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	named, other := echo(t), echo(t)

	var ask asked
	cleo.json(&ask, "elevate", host, "--reason", "look at the database", "--for", "30m", "--forward", named, "-o", "json")
	if out := ben.ok("request", "show", ask.ID); !strings.Contains(out, named) {
		t.Errorf("the approver does not see the port:\n%s", out)
	}
	ben.ok("approve", ask.ID, "--yes")

	at := host + "+write@handrail"
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	ssh := func(args ...string) []string {
		return append([]string{"ssh", "-F", cleo.config(), "-S", socket, "-o", "ControlPersist=yes"}, args...)
	}
	if r := cleo.client(t, dir, ssh("-M", "-f", at, "true")...); r.code != 0 {
		t.Fatalf("no shared connection: exit %d\n%s", r.code, r.err)
	}
	defer cleo.client(t, dir, ssh("-O", "exit", at)...)
	local := func(destination string) string {
		here, release, err := port.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if r := cleo.client(t, dir, ssh("-O", "forward", "-L", here+":"+destination, at)...); r.code != 0 {
			t.Fatalf("ssh -L: exit %d\n%s%s", r.code, r.out, r.err)
		}
		return here
	}

	t.Run("what is named is reached", func(t *testing.T) {
		c := dial(t, local(named))
		want := make([]byte, 3<<20)
		_, _ = rand.Read(want)
		go func() {
			_, _ = c.Write(want)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes came back: %v", len(got), len(want), err)
		}
	})
	t.Run("what is not named is not", func(t *testing.T) {
		c := dial(t, local(other))
		_, _ = c.Write([]byte("x"))
		if b, err := io.ReadAll(c); len(b) > 0 {
			t.Errorf("a port that no grant names answered %q, %v", b, err)
		}
		r := cleo.client(t, dir, "ssh", "-F", cleo.config(), "-W", other, at)
		if r.code == 0 || !strings.Contains(r.err, "--forward "+other) {
			t.Errorf("the refusal does not name the next command: exit %d\n%s", r.code, r.err)
		}
		if r := cleo.client(t, dir, "ssh", "-F", cleo.config(), "-W", named, host+"@handrail"); r.code == 0 || !strings.Contains(r.err, "+write@handrail") {
			t.Errorf("a read session forwards: exit %d\n%s", r.code, r.err)
		}
		if r := cleo.client(t, dir, "ssh", "-F", cleo.config(), "-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:0:"+named, at, "true"); r.code == 0 {
			t.Error("a port of the host was forwarded to a person")
		}
	})
	t.Run("what does not answer is refused, as by sshd", func(t *testing.T) { closedPort(t, cleo, ben, host) })
	t.Run("as editors come", func(t *testing.T) {
		var wide asked
		cleo.json(&wide, "elevate", host, "--reason", "edit there", "--for", "30m", "--forward", "localhost:*", "-o", "json")
		ben.ok("approve", wide.ID, "--yes")
		proxy, release, err := port.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		// A connection of its own: who shares one asks its master for the proxy.
		editor := exec.CommandContext(t.Context(), "ssh", "-F", cleo.config(), "-T", "-D", proxy, at, "echo up; cat")
		stdin, err := editor.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		out, err := editor.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := editor.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = editor.Process.Kill(); _ = editor.Wait() }()
		if b := make([]byte, 3); func() bool { _, err := io.ReadFull(out, b); return err != nil || string(b) != "up\n" }() {
			t.Fatalf("the editor's program says %q", b)
		}
		c := dial(t, proxy)
		socks(t, c, other)
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			t.Fatalf("through the proxy came %q, %v", got, err)
		}
		if r := cleo.client(t, dir, ssh(at, "id -un")...); strings.TrimSpace(r.out) != "handrail-write" {
			t.Errorf("a command beside the proxy: exit %d, %q %s", r.code, r.out, r.err)
		}
		ben.ok("revoke", wide.ID, "--reason", "enough")
		if n, err := c.Read(got); err == nil {
			t.Errorf("a forwarded port outlives its grant: %q", got[:n])
		}
	})
	if out := ada.ok("ledger", "list", "--limit", "200"); !strings.Contains(out, "reached "+named+" by a forwarded port") {
		t.Errorf("the ledger does not say what was reached:\n%s", out)
	}
	ada.ok("ledger", "verify")
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// socks asks a SOCKS 5 proxy (RFC 1928) for a connection to an IPv4 address.
func socks(t *testing.T, c net.Conn, destination string) {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp4", destination)
	if err != nil {
		t.Fatal(err)
	}
	ask := append([]byte{5, 1, 0, 1}, a.IP.To4()...)
	for _, step := range []struct{ say, hear []byte }{
		{[]byte{5, 1, 0}, []byte{5, 0}},
		{append(ask, byte(a.Port>>8), byte(a.Port)), []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}},
	} {
		if _, err := c.Write(step.say); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(step.hear))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[:2], step.hear[:2]) {
			t.Fatal(fmt.Errorf("the proxy says %x: %w", got, err))
		}
	}
}

// closedPort asks for a port behind which nobody listens.
func closedPort(t *testing.T, cleo, ben person, host string) {
	t.Helper()
	closed, release, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	release()
	var to asked
	cleo.json(&to, "elevate", host, "--reason", "look at another", "--for", "30m", "--forward", closed, "-o", "json")
	ben.ok("approve", to.ID, "--yes")
	r := cleo.client(t, t.TempDir(), "ssh", "-F", cleo.config(), "-W", closed, host+"+write@handrail")
	if r.code == 0 || !strings.Contains(r.err, "connect failed") || !strings.Contains(r.err, "connection refused") {
		t.Errorf("exit %d\n%s", r.code, r.err)
	}
}
