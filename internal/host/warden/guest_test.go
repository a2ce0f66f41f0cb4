package warden

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// guest is a person with a key and vouchers, and a port that leads to the
// warden's entrance, as the link's does.
type guest struct {
	b       *bench
	ca      ssh.Signer // the server's voucher authority
	offline ssh.Signer
	key     string // file of the private key
	pub     ssh.PublicKey
	port    net.Listener
	serial  uint64
}

func signer(t *testing.T) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func line(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

// soon is how long a warden of these tests goes without a lease.
const soon = 300 * time.Millisecond

// leftAlone starts a warden that soon counts its lease as lost, with a guest.
func leftAlone(t *testing.T, change func(*Config)) *guest {
	t.Helper()
	b := newBench(t)
	g := &guest{b: b, ca: signer(t), offline: signer(t)}
	b.start(func(c *Config) {
		c.Lost = soon
		if change != nil {
			change(c)
		}
	})
	g.bundled()
	g.newKey()
	g.listen()
	return g
}

// bundled brings the authorities in a newer trust bundle, with a lease.
func (g *guest) bundled() {
	b := g.b
	b.bundle.Version++
	b.bundle.VoucherCA, b.bundle.OfflineCA = []string{line(g.ca)}, []string{line(g.offline)}
	b.renew(func(a *wire.LeaseAnswer) { a.Bundle = b.signedBundle() })
}

func (g *guest) newKey() {
	t := g.b.t
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	g.key = filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(g.key, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	g.pub = s.PublicKey()
}

// listen is the link's port: it hands everybody in, as soon as the warden takes
// them.
func (g *guest) listen() {
	t := g.b.t
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.port = l
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f, err := g.b.c.Enter(t.Context(), c.RemoteAddr().String())
				for fault.KindOf(err) == fault.Exhausted {
					<-time.After(enterEvery)
					f, err = g.b.c.Enter(t.Context(), c.RemoteAddr().String())
				}
				if err != nil {
					return
				}
				line, err := net.FileConn(f)
				f.Close()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(line, c); line.Close() }()
				_, _ = io.Copy(c, line)
			}()
		}
	}()
}

// voucher makes one, as the server would, and changes it as told.
func (g *guest) voucher(change func(*ssh.Certificate, *wire.VoucherTerms)) *ssh.Certificate {
	g.b.t.Helper()
	g.serial++
	now := time.UnixMicro(testTime + g.b.serverNow().Microseconds())
	terms := wire.VoucherTerms{V: 1, Person: "p-ada00001", PersonName: "ada", Epoch: 1, Key: wire.KeyFile, Minutes: 60,
		Hosts: []wire.VoucherHost{{ID: testNode, Account: "root"}}}
	cert := &ssh.Certificate{
		Key: g.pub, Serial: g.serial, CertType: ssh.UserCert, KeyId: "voucher", ValidPrincipals: []string{wire.VoucherPrincipal},
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(24*time.Hour - time.Minute).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{"force-command": wire.VoucherCommand},
			Extensions: map[string]string{"permit-pty": ""}},
	}
	if change != nil {
		change(cert, &terms)
	}
	if _, ok := cert.CriticalOptions[wire.VoucherOption]; !ok {
		text, err := terms.Marshal()
		if err != nil {
			g.b.t.Fatal(err)
		}
		cert.CriticalOptions[wire.VoucherOption] = text
	}
	return cert
}

func (g *guest) signed(by ssh.Signer, change func(*ssh.Certificate, *wire.VoucherTerms)) *ssh.Certificate {
	g.b.t.Helper()
	cert := g.voucher(change)
	if err := cert.SignCert(rand.Reader, by); err != nil {
		g.b.t.Fatal(err)
	}
	return cert
}

// ssh runs the stock client with a voucher.
func (g *guest) ssh(cert *ssh.Certificate, args ...string) *exec.Cmd {
	t := g.b.t
	t.Helper()
	dir := t.TempDir()
	e, err := g.b.c.Entrance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port := g.port.Addr().(*net.TCPAddr).Port
	for name, text := range map[string]string{
		"cert":  string(ssh.MarshalAuthorizedKey(cert)),
		"hosts": fmt.Sprintf("[127.0.0.1]:%d %s", port, e.HostKey),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return exec.CommandContext(t.Context(), "ssh", append([]string{"-F", "none", "-i", g.key, "-o", "CertificateFile=" + filepath.Join(dir, "cert"),
		"-o", "UserKnownHostsFile=" + filepath.Join(dir, "hosts"), "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-p", fmt.Sprint(port), "bg@127.0.0.1"}, args...)...)
}

// lost waits until the lease is lost.
func (g *guest) lost() {
	g.b.t.Helper()
	g.b.eventually("the entrance opens", func() bool {
		e, err := g.b.c.Entrance(g.b.t.Context())
		return err == nil && e.Open
	})
}

// journals reads and checks what was recorded, whole.
func (g *guest) journals() (all []*wire.JournalReader, said []string) {
	t := g.b.t
	t.Helper()
	e, err := g.b.c.Entrance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := g.b.c.Journals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range list {
		var file bytes.Buffer
		for int64(file.Len()) < j.Size {
			b, err := g.b.c.Journal(t.Context(), j.Session, int64(file.Len()))
			if err != nil || len(b) == 0 {
				t.Fatal(err, len(b))
			}
			file.Write(b)
		}
		r, err := wire.OpenJournal(&file, e.Journal)
		if errors.Is(err, io.EOF) {
			continue // just begun
		}
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for {
			p, err := r.Next()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // it is being written
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range p.Events {
				if ev.Type == wire.FrameStdout {
					text += string(ev.Data)
				}
			}
		}
		all, said = append(all, r), append(said, text)
	}
	return all, said
}
