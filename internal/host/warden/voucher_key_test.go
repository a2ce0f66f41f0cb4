package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/wire"
)

// token signs as a FIDO key does, with or without a touch.
type token struct {
	key   ed25519.PrivateKey
	touch byte
}

const application = "ssh:"

func (k token) PublicKey() ssh.PublicKey {
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Name, Key, Application string
	}{ssh.KeyAlgoSKED25519, string(k.key.Public().(ed25519.PublicKey)), application}))
	if err != nil {
		panic(err)
	}
	return pub
}

func (k token) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, body := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{k.touch}, 7)
	signed := append(append(app[:], rest...), body[:]...)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.key, signed), Rest: rest}, nil
}

func TestAFIDOKeyOpensTheEntranceOnlyWithATouch(t *testing.T) {
	g := leftAlone(t, nil)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	g.pub = token{key, 1}.PublicKey()
	cert := g.signed(g.ca, func(c *ssh.Certificate, v *wire.VoucherTerms) {
		v.Key = wire.KeyHardware
		c.CriticalOptions["verify-required"] = ""
	})
	g.lost()
	for touch, ok := range map[byte]bool{1: true, 5: true, 0: false} {
		with, err := ssh.NewCertSigner(cert, token{key, touch})
		if err != nil {
			t.Fatal(err)
		}
		c, err := ssh.Dial("tcp", g.port.Addr().String(), &ssh.ClientConfig{User: "bg", Auth: []ssh.AuthMethod{ssh.PublicKeys(with)},
			HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute})
		if (err == nil) != ok {
			t.Errorf("with flags %d: %v", touch, err)
		}
		if err != nil {
			continue
		}
		if s, err := c.NewSession(); err != nil {
			t.Error(err)
		} else if out, err := s.Output("echo in"); err != nil || string(out) != "in\n" {
			t.Errorf("%v: %q", err, out)
		}
		if _, err := c.NewSession(); err == nil {
			t.Error("a second session on one connection")
		}
		if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil {
			t.Error("a port is forwarded")
		}
		c.Close()
	}
}

// The warden is killed in the middle: nothing of the session goes on, what was
// synced is there and says that it was cut off, and the next number follows.
func TestAKilledWardenLeavesAJournalThatSaysSo(t *testing.T) {
	b := newBench(t)
	g := &guest{b: b, ca: signer(t), offline: signer(t)}
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), wardenEnv+"="+b.dir, lostEnv+"=1s")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	first := start()
	b.up()
	g.bundled()
	g.newKey()
	g.listen()
	cert := g.signed(g.ca, nil)
	g.lost()
	mark := fmt.Sprint("4", time.Now().UnixNano()%1_000_000_000)
	cmd := g.ssh(cert, "echo before; sleep "+mark)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.eventually("the first words are on disk", func() bool {
		_, said := g.journals()
		return len(said) == 1 && strings.Contains(said[0], "before")
	})
	_ = first.Process.Kill()
	_ = first.Wait()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("the person is not told: %v", err)
	}
	b.c.Close()
	start()
	b.eventually("the next warden answers", func() bool { _, err := b.c.Status(t.Context()); return err == nil })
	if running("sleep\x00" + mark) {
		t.Error("the session goes on")
	}
	g.lost() // without any lease: two minutes from its start, here a second
	out, err := g.ssh(cert, "echo after").CombinedOutput()
	if err != nil || string(out) != "after\n" {
		t.Fatalf("%v: %s", err, out)
	}
	b.eventually("the second one has ended", func() bool {
		heads, _ := g.journals()
		return len(heads) == 2 && heads[1].Ended
	})
	heads, _ := g.journals()
	if heads[0].Head.Number != 1 || heads[1].Head.Number != 2 || string(heads[1].Head.Before) != string(heads[0].HeadHash) {
		t.Errorf("%+v then %+v", heads[0].Head, heads[1].Head)
	}
	if _, err := os.Stat(filepath.Join(b.dir, memoryName)); err != nil {
		t.Error(err)
	}
}
