package warden

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// comes has the link say that somebody came, until the warden takes them in.
func (g *guest) comes(source string) net.Conn {
	t := g.b.t
	t.Helper()
	var line net.Conn
	g.b.eventually(source+" is taken in", func() bool {
		f, err := g.b.c.Enter(t.Context(), source)
		if err != nil {
			if fault.KindOf(err) != fault.Exhausted {
				t.Fatal(err)
			}
			return false
		}
		defer f.Close()
		if line, err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		return true
	})
	t.Cleanup(func() { line.Close() })
	return line
}

// slowHand is a key that waits to be touched.
type slowHand struct {
	ssh.Signer
	asked chan<- struct{}
	touch <-chan struct{}
}

func (s slowHand) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	s.asked <- struct{}{}
	<-s.touch
	return s.Signer.Sign(rand, data)
}

// A host with few uids has few places for strangers: four.
func fewPlaces(t *testing.T, jump *atomic.Int64) func(*Config) {
	return func(c *Config) {
		if err := os.WriteFile(filepath.Join(c.Dir, policyName), []byte(`{"uid_first": 700000, "uid_count": 16}`), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Boot = func() time.Duration { return bootTime() + time.Duration(jump.Load()) }
	}
}

func TestWhoHasShownAVoucherHasTimeToTouchTheKeyWhateverCrowdComes(t *testing.T) {
	var jump atomic.Int64
	g := leftAlone(t, fewPlaces(t, &jump))
	key := signer(t)
	g.pub = key.PublicKey()
	cert := g.signed(g.ca, nil)
	g.lost()
	asked, touch := make(chan struct{}, 1), make(chan struct{})
	with, err := ssh.NewCertSigner(cert, slowHand{key, asked, touch})
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	line := g.comes("192.0.2.7:1")
	go func() {
		conn, channels, requests, err := ssh.NewClientConn(line, "entrance", &ssh.ClientConfig{User: wire.VoucherPrincipal,
			Auth: []ssh.AuthMethod{ssh.PublicKeys(with)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
		if err != nil {
			asked <- struct{}{}
			said <- err.Error()
			return
		}
		out, err := runOn(ssh.NewClient(conn, channels, requests), "echo in")
		said <- fmt.Sprint(out, err)
	}()
	<-asked
	for n := range 16 { // four crowds
		if n%4 == 0 {
			jump.Add(int64(strangerStay))
		}
		g.comes(fmt.Sprintf("192.0.2.%d:1", 100+n))
	}
	close(touch)
	if out := <-said; out != "in\n<nil>" {
		t.Errorf("%s", out)
	}
}

func runOn(c *ssh.Client, command string) (string, error) {
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		return "", err
	}
	out, err := s.Output(command)
	return string(out), err
}

func TestOneSourceShutsNobodyElseOutOfTheEntrance(t *testing.T) {
	var jump atomic.Int64
	g := leftAlone(t, fewPlaces(t, &jump))
	g.lost()
	for n := range 4 {
		g.comes(fmt.Sprintf("192.0.2.66:%d", 1000+n))
	}
	if f, err := g.b.c.Enter(t.Context(), "192.0.2.7:1"); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("somebody has to go who has just come: %v, %v", f, err)
	}
	jump.Add(int64(strangerStay))
	g.comes("192.0.2.7:1")
}

// A link that was taken over lets in whom it likes, as fast as it likes.
func TestTheWardenSetsThePaceAtItsEntrance(t *testing.T) {
	var p pace
	now := time.Hour
	take := func() (n int) {
		for p.take(now) {
			n++
		}
		return n
	}
	if n := take(); n != enterBurst {
		t.Errorf("%d came in one moment", n)
	}
	now += 3 * enterEvery
	if n := take(); n != 3 {
		t.Errorf("%d came in the time of three", n)
	}
	now += time.Hour
	if n := take(); n != enterBurst {
		t.Errorf("%d came in one moment, after an hour", n)
	}
}

func TestWhoComesOftenMakesRoomForWhoCameOnce(t *testing.T) {
	d := &entrances{}
	const now = time.Hour
	for _, source := range []string{"192.0.2.7:1", "192.0.2.66:1", "192.0.2.66:2", "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1"} {
		d.at = append(d.at, &child{source: source, came: now - strangerStay})
	}
	want := func(source string) {
		t.Helper()
		got := ""
		if i := d.goes(now); i >= 0 {
			got = d.at[i].source
		}
		if got != source {
			t.Errorf("%q goes, not %q", got, source)
		}
	}
	want("[2001:db8::1]:1")
	d.at[3].came++
	want("[2001:db8::2]:1")
	d.at = d.at[:3]
	want("192.0.2.66:1")
	d.at = d.at[:1]
	want("192.0.2.7:1")
	d.at[0].came++
	want("")
}

// Others may have seen a voucher, its hosts above all; without its key they take
// two places of those who have shown one.
func TestAVoucherThatOthersHaveSeenTakesFewPlaces(t *testing.T) {
	d := &entrances{shown: map[*child]uint64{}}
	show := func(serial uint64) bool {
		c := &child{}
		d.at = append(d.at, c)
		d.show(c, serial)
		if len(d.at) > 0 {
			return false
		}
		d.show(c, serial+1000) // another one on the same line takes no place
		return true
	}
	for n := range 4 {
		if ok := show(7); ok != (n < shownOfOne) {
			t.Errorf("the same voucher a %d. time: %v", n+1, ok)
		}
		d.at = nil
	}
	for serial := range uint64(2 * maxShown) {
		if ok := show(100 + serial); ok != (serial < maxShown-shownOfOne) {
			t.Errorf("voucher %d: %v", serial, ok)
		}
		d.at = nil
	}
}

func TestAStrangerExchangesKeysAFewTimesAndASessionAsItLikes(t *testing.T) {
	d := &entrances{host: signer(t)}
	c := &child{}
	for n := range 3 * strangerSign {
		if _, err := d.signFor(c, make([]byte, 32)); (err == nil) != (n < strangerSign) {
			t.Errorf("exchange %d: %v", n+1, err)
		}
	}
	c.began = true
	if _, err := d.signFor(c, make([]byte, 32)); err != nil {
		t.Error(err)
	}
}

func TestWhoIsHereByVoucherIsToldThatTheWardenEnds(t *testing.T) {
	g := leftAlone(t, nil)
	cert := g.signed(g.ca, nil)
	g.lost()
	cmd := g.ssh(cert, "echo in; exec cat")
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("in\n"))); err != nil {
		t.Fatal(err)
	}
	g.b.stop()
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "this session has ended: "+keeper.WhyLost) {
		t.Errorf("%v: %s", err, said.String())
	}
}
