package agentless

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A visit is a node that the server carries to a host without one, for as long
// as sessions run there. It speaks the node's own wire: its connections to the
// server are streams of a tunnel through the SSH channel, and lead to the port
// that every node dials.
//
//	need ─▶ program, checked ─▶ ready ◀─ token ─▶ tunnel … last session ends ─▶ gone

// VisitDeps is what visits need.
type VisitDeps struct {
	// Program is the node's program for a kind of machine ("amd64").
	Program func(arch string) (path string, err error)
	// Token is the word that names this server, its root key and a secret.
	Token func(secret string) string
	// Back makes a host whose node did not come one without a node again.
	Back func(ctx context.Context, host string) error
	// Call makes the token with which the carried node joins.
	Call func(ctx context.Context, by, host string) (token string, err error)
	// Port reaches the port that nodes dial.
	Port func(ctx context.Context) (net.Conn, error)
	// Online waits until the host's node is connected and may be ordered.
	Online func(ctx context.Context, host string) error
}

// visit is one host's.
type visit struct {
	mu     sync.Mutex // one arrives at a time
	users  int
	conn   *conn
	tunnel *mux.Session
	leave  *time.Timer

	turn context.CancelCauseFunc // ends an arrival; under the Reach's mutex
}

const (
	// visitLinger is how long a node waits for a next session, so that a copy
	// of many files is one visit.
	visitLinger  = 10 * time.Second
	arriveTime   = 40 * time.Second
	maxVisitLine = 512
	maxTunnels   = 64 // connections of one node; an honest one has two
)

// Visiting says whether a node visits the host now, or is on its way.
func (r *Reach) Visiting(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.visits[host] != nil
}

// Visit brings a node to the host, or finds the one that is there. leave ends
// the caller's use of it.
func (r *Reach) Visit(ctx context.Context, h target.Host, session, person string) (leave func(), err error) {
	if r.d.Visits.Call == nil || !h.Agentless() || !h.SSHNode {
		return nil, fault.New(fault.Internal, "cannot bring a node to %s: it is not to have one", h.Name)
	}
	v := r.visitOf(h.ID)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.leave != nil {
		v.leave.Stop()
		v.leave = nil
	}
	if v.tunnel == nil || v.tunnel.Err() != nil {
		ctx, cancel := context.WithTimeout(ctx, arriveTime)
		defer cancel()
		if err := r.arrive(ctx, v, h, session, person); err != nil {
			r.drop(h.ID, v)
			return nil, err
		}
	}
	v.users++
	var once sync.Once
	return func() { once.Do(func() { r.left(h.ID, v) }) }, nil
}

func (r *Reach) visitOf(host string) *visit {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.visits[host]
	if v == nil {
		v = &visit{}
		r.visits[host] = v
	}
	return v
}

func (r *Reach) left(host string, v *visit) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.users--; v.users > 0 {
		return
	}
	v.leave = time.AfterFunc(visitLinger, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.users == 0 {
			r.drop(host, v)
		}
	})
}

// drop ends a visit; whoever calls it holds it.
func (r *Reach) drop(host string, v *visit) {
	if v.tunnel != nil {
		v.tunnel.Close()
	}
	if v.conn != nil {
		v.conn.Close()
	}
	v.tunnel, v.conn = nil, nil
	if v.users > 0 {
		return
	}
	r.mu.Lock()
	if r.visits[host] == v {
		delete(r.visits, host)
	}
	r.mu.Unlock()
}

// TurnAway ends the arrival of a node that is not let in. Who waits for it hears
// why: the node itself would try again.
func (r *Reach) TurnAway(host string, why *fault.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.visits[host]; v != nil && v.turn != nil {
		v.turn(why)
	}
}

// arrive brings the node, unless it is turned away.
func (r *Reach) arrive(ctx context.Context, v *visit, h target.Host, session, person string) error {
	ctx, turn := context.WithCancelCause(ctx)
	defer turn(nil)
	r.mu.Lock()
	v.turn = turn
	r.mu.Unlock()
	err := r.bring(ctx, v, h, session, person)
	if why := (*fault.Error)(nil); err != nil && errors.As(context.Cause(ctx), &why) {
		return why
	}
	return err
}

// bring logs in, hands over the program and the token, and waits for the node.
func (r *Reach) bring(ctx context.Context, v *visit, h target.Host, session, person string) error {
	p, err := r.programs.of(r.d.Visits.Program)
	if err != nil {
		return err
	}
	c, err := r.connect(ctx, h, h.SSHUser, keyring.Hop{Session: session, Person: person,
		Principals: []string{h.SSHUser, h.Principal(wire.LevelRead)}, ForceCommand: carrier(p, "visit")})
	if err != nil {
		return err
	}
	v.conn = c
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ch, said, err := c.carry(h, p)
	if err != nil {
		return err
	}
	token, err := r.d.Visits.Call(ctx, person, h.ID)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(ch, token); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot bring a node to %s", h.Name)
	}
	if line, err := said.line(); err != nil || line != visitReady {
		return said.failed(h, line, err)
	}
	v.tunnel = mux.Server(tunnelEnd{said, ch})
	go r.tunnels(v.tunnel)
	if err := r.d.Visits.Online(ctx, h.ID); err != nil {
		return said.failed(h, "", err)
	}
	return nil
}

// visitReady is visit.Hello, which this ring may not import.
const visitReady = "handrail-visit ready"

// tunnels leads the node's connections to the port that nodes dial.
func (r *Reach) tunnels(m *mux.Session) {
	slots := make(chan struct{}, maxTunnels)
	for {
		s, err := m.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = s.Reset()
			continue
		}
		go func() {
			defer func() { <-slots }()
			defer s.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			port, err := r.d.Visits.Port(ctx)
			cancel()
			if err != nil {
				return
			}
			defer port.Close()
			go func() { _, _ = io.Copy(port, s); port.Close(); s.Close() }()
			_, _ = io.Copy(s, port)
		}()
	}
}

// answer is what the far end says, lines first; bounded.
type answer struct {
	r    *bufio.Reader
	errs *tail
}

func (a answer) Read(p []byte) (int, error) { return a.r.Read(p) }

func (a answer) line() (string, error) {
	var line []byte
	for len(line) < maxVisitLine {
		b, err := a.r.ReadByte()
		if err != nil {
			return string(line), err
		}
		if b == '\n' {
			return strings.TrimSpace(string(line)), nil
		}
		line = append(line, b)
	}
	return string(line), io.ErrShortBuffer
}

func (a answer) failed(h target.Host, line string, err error) error {
	why := strings.TrimSpace(line + " " + a.errs.String())
	if why == "" && err != nil {
		why = err.Error()
	}
	return fault.New(fault.Unavailable, "cannot bring a node to %s: %s", h.Name, wire.Plain(why, 400)).
		WithHint("handrail host show %s; sessions without one: handrail host set %s --ssh-node=false", h.Name, h.Name)
}

// tail keeps the first bytes of what a host says on its standard error.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 2<<10 - t.b.Len(); room > 0 {
		t.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.b.String())
}

type tunnelEnd struct {
	io.Reader
	ssh.Channel
}

func (t tunnelEnd) Read(p []byte) (int, error) { return t.Reader.Read(p) }

// carry starts the carrier and hands over the program, where it is not there.
func (c *conn) carry(h target.Host, p *program) (ssh.Channel, answer, error) {
	var a answer
	failed := func(err error) (ssh.Channel, answer, error) {
		return nil, a, fault.Wrap(fault.Unavailable, err, "cannot bring a node to %s", h.Name)
	}
	ch, asked, err := c.OpenChannel("session", nil)
	if err != nil {
		return failed(err)
	}
	go ssh.DiscardRequests(asked)
	a = answer{r: bufio.NewReaderSize(ch, 4<<10), errs: &tail{}}
	go func() { _, _ = io.Copy(a.errs, ch.Stderr()) }()
	if ok, err := ch.SendRequest("shell", true, nil); err != nil || !ok {
		return failed(fmt.Errorf("the host runs no command"))
	}
	for range 64 { // an account's own shell may say something first
		line, err := a.line()
		if err != nil {
			return nil, a, a.failed(h, line, err)
		}
		word, rest, _ := strings.Cut(strings.TrimPrefix(line, "handrail-carry "), " ")
		if !strings.HasPrefix(line, "handrail-carry ") {
			continue
		}
		switch word {
		case "have":
			return ch, a, nil
		case "need":
			packed, ok := p.packed[rest]
			if !ok {
				return nil, a, fault.New(fault.Unavailable, "cannot bring a node to %s: it is a machine of kind %s, and there is no program for it here", h.Name, wire.Plain(rest, 32)).
					WithHint("put handrail-node-linux-ARCH beside the server's program; sessions without one: handrail host set %s --ssh-node=false", h.Name)
			}
			if _, err := ch.Write(packed); err != nil {
				return nil, a, a.failed(h, "", err)
			}
		case "got":
			return ch, a, nil
		default:
			return nil, a, a.failed(h, line, nil)
		}
	}
	return failed(fmt.Errorf("it does not come to the point"))
}

// program is what is carried, for each kind of machine that there is one for.
type program struct {
	sums   map[string]string // by `uname -m`
	packed map[string][]byte
}

// programs packs them once.
type programs struct {
	mu   sync.Mutex
	made *program
}

var machines = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// maxProgram bounds what is read into memory.
const maxProgram = 256 << 20

func (s *programs) of(find func(arch string) (string, error)) (*program, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made != nil {
		return s.made, nil
	}
	p := &program{sums: map[string]string{}, packed: map[string][]byte{}}
	var last error
	for machine, arch := range machines {
		path, err := find(arch)
		if err != nil {
			last = err
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read the node's program")
		}
		var packed bytes.Buffer
		sum := sha256.New()
		z, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed) // a known level
		_, err = io.Copy(io.MultiWriter(z, sum), io.LimitReader(f, maxProgram))
		f.Close()
		if cerr := z.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read the node's program")
		}
		p.sums[machine], p.packed[machine] = hex.EncodeToString(sum.Sum(nil)), packed.Bytes()
	}
	if len(p.sums) == 0 {
		return nil, fault.Wrap(fault.Unavailable, last, "cannot find the node's program")
	}
	s.made = p
	return p, nil
}

// carrier is the forced command that receives the program, checks its sum,
// and becomes it: as root where sudo asks for no password. One that lies where
// packages put it, with that very sum, is not sent again.
func carrier(p *program, what string) string {
	var cases strings.Builder
	for machine, sum := range p.sums {
		fmt.Fprintf(&cases, "%s) s=%s; z=%d ;; ", machine, sum, len(p.packed[machine]))
	}
	return `exec /bin/sh -c 'umask 077; m=$(uname -m); case $m in ` + cases.String() + `*) echo "handrail-carry need $m"; exit 9 ;; esac; ` +
		`S=; [ "$(id -u)" = 0 ] || { sudo -n true >/dev/null 2>&1 && S="sudo -n"; }; ` +
		`ok() { [ "$(sha256sum < "$1" 2>/dev/null | cut -c1-64)" = $s ]; }; ` +
		`for f in /usr/bin/handrail-node /usr/local/bin/handrail-node; do if [ -x $f ] && ok $f; then echo "handrail-carry have"; exec $S $f ` + what + `; fi; done; ` +
		`for t in "${XDG_RUNTIME_DIR:-/nonexistent}" /dev/shm /tmp /var/tmp "$HOME"; do d=$(mktemp -d "$t/handrail-XXXXXXXXXX" 2>/dev/null) || continue; ` +
		`if cp /bin/true "$d/x" 2>/dev/null && "$d/x" 2>/dev/null; then rm -f "$d/x"; break; fi; rm -rf "$d"; d=; done; ` +
		`[ -n "$d" ] || { echo "handrail-carry stuck: no folder here may hold a program"; exit 9; }; ` +
		`echo "handrail-carry need $m"; head -c $z | gzip -dc > "$d/n" 2>/dev/null; ` +
		`if ok "$d/n"; then chmod 700 "$d/n"; echo "handrail-carry got"; exec $S "$d/n" ` + what + ` --unlink "$d"; fi; ` +
		`rm -rf "$d"; echo "handrail-carry stuck: the program arrived damaged"; exit 9'`
}
