package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
	door "handrail.dev/handrail/internal/host/entrance"
	"handrail.dev/handrail/internal/host/warden"
)

// alone is a host that no server answers: a real warden, the link's entrance
// before it, and a person with a voucher.
type alone struct {
	t       *testing.T
	at      string // of the entrance
	ca      *keyring.Ring
	dir     string // of the person: key, voucher, known hosts
	flooded context.Context
	done    func()       // ends the flood
	turned  atomic.Int64 // strangers who were sent away, or refused
	crowd   sync.WaitGroup
}

func leftAlone(t *testing.T) *alone {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "hre")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "handrail.test/ledger"); err != nil {
		t.Fatal(err)
	}
	a := &alone{t: t, dir: t.TempDir()}
	if a.ca, err = keyring.Open(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	_, bundle := a.ca.Bundle()
	if err := warden.SetPin(filepath.Join(dir, "warden"), warden.Pin{Node: host, RootHash: a.ca.RootHash(), Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		c := warden.Config{Dir: filepath.Join(dir, "warden"), Socket: filepath.Join(dir, "s"), Version: "test", Lost: time.Nanosecond}
		if err := warden.Run(ctx, c); err != nil {
			t.Error(err)
		}
	})
	open := make(chan string, 1)
	l := &link{warden: warden.NewClient(filepath.Join(dir, "s")), log: slog.New(slog.DiscardHandler),
		c: Config{Entrance: "127.0.0.1:0", EntranceOpen: func(at string) { open <- at }}}
	wg.Go(func() { l.keepEntrance(ctx) })
	a.flooded, a.done = context.WithCancel(ctx)
	t.Cleanup(func() {
		a.calm()
		cancel()
		wg.Wait()
		l.warden.Close()
	})
	select {
	case a.at = <-open:
	case <-time.After(time.Minute):
		t.Fatal("the entrance does not open")
	}
	e, err := l.warden.Entrance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.voucher(e.HostKey)
	return a
}

// voucher gives the person a key and a voucher for this host.
func (a *alone) voucher(hostKey string) {
	a.t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		a.t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := a.ca.SignVoucher(s.PublicKey(), 1, wire.VoucherTerms{V: 1, Person: "p-ada00001", PersonName: "ada", Minutes: 60,
		Hosts: []wire.VoucherHost{{ID: host, Account: "root"}}}, time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(a.at)
	for name, text := range map[string]string{
		"id": string(pem.EncodeToMemory(block)), "cert": string(ssh.MarshalAuthorizedKey(cert)),
		"hosts": fmt.Sprintf("[127.0.0.1]:%s %s", port, hostKey),
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// enters has the person come in with the stock client, once.
func (a *alone) enters(args ...string) (string, error) {
	a.t.Helper()
	_, port, _ := net.SplitHostPort(a.at)
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", append([]string{"-F", "none", "-i", filepath.Join(a.dir, "id"), "-o", "CertificateFile=" + filepath.Join(a.dir, "cert"),
		"-o", "UserKnownHostsFile=" + filepath.Join(a.dir, "hosts"), "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "BatchMode=yes", "-p", port, "bg@127.0.0.1"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stranger does the same thing from one address until the flood is over, some
// times at once.
func (a *alone) stranger(from string, atOnce int, do func(net.Conn)) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	for range atOnce {
		a.crowd.Go(func() {
			pace := time.NewTicker(100 * time.Millisecond) // the flood shares its processors with the door
			defer pace.Stop()
			for a.flooded.Err() == nil {
				if c, err := dialer.DialContext(a.flooded, "tcp", a.at); err == nil {
					stop := context.AfterFunc(a.flooded, func() { c.Close() })
					do(c)
					stop()
					c.Close()
				}
				a.turned.Add(1)
				select {
				case <-a.flooded.Done():
				case <-pace.C:
				}
			}
		})
	}
}

// calm ends the flood.
func (a *alone) calm() {
	a.done()
	a.crowd.Wait()
}

func garbage(c net.Conn) {
	b := make([]byte, 900)
	_, _ = rand.Read(b)
	_, _ = c.Write(b)
}

// silent says nothing until it is sent away.
func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// slow says who it is and no more.
func slow(c net.Conn) {
	_, _ = c.Write([]byte("SSH-2.0-slow\r\n"))
	silent(c)
}

// foreign makes the whole handshake, with a key of its own.
func (a *alone) foreign(key ssh.Signer) func(net.Conn) {
	return func(c net.Conn) {
		_, _, _, _ = ssh.NewClientConn(c, a.at, &ssh.ClientConfig{User: wire.VoucherPrincipal, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	}
}

// undecided exchanges keys and then never says who it is.
func (a *alone) undecided(c net.Conn) {
	l := &lasting{c, make(chan struct{})}
	wait := ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
		<-l.over
		return nil, net.ErrClosed
	})
	_, _, _, _ = ssh.NewClientConn(l, a.at, &ssh.ClientConfig{User: wire.VoucherPrincipal, Auth: []ssh.AuthMethod{wait}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
}

// lasting is a connection that says when it is over; one goroutine reads it.
type lasting struct {
	net.Conn
	over chan struct{}
}

func (l *lasting) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if err != nil {
		close(l.over)
	}
	return n, err
}

func TestAFloodFromManyAddressesKeepsNobodyWithAVoucherOut(t *testing.T) {
	a := leftAlone(t)
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	key, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	const sources = 24
	for n := range sources {
		from := fmt.Sprintf("127.0.8.%d", n+1)
		a.stranger(from, 1, garbage)
		a.stranger(from, 4, silent)
		a.stranger(from, 4, slow)
		a.stranger(from, 2, a.foreign(key))
		a.stranger(from, 2, a.undecided)
	}
	for end := time.Now().Add(time.Minute); a.turned.Load() < 1000; {
		if time.Now().After(end) {
			t.Fatalf("after a minute only %d strangers were turned away", a.turned.Load())
		}
		<-time.After(10 * time.Millisecond)
	}
	for range 2 {
		began := time.Now()
		if out, err := a.enters("id -un; echo in-the-flood"); err != nil || !strings.Contains(out, "root\nin-the-flood\n") {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("in after %s, with %d strangers turned away so far", time.Since(began).Round(time.Millisecond), a.turned.Load())
	}
	a.calm()
	nobodyIsLeft(t)
}

// nobodyIsLeft waits until no process stands at the entrance any more.
func nobodyIsLeft(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
		left, _ := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid()), "-f", door.Arg0).Output()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after a minute these still stand at the entrance: %s", left)
		}
	}
}
