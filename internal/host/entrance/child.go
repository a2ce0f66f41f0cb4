package entrance

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Arg0 is the name by which this executable knows that it is to be a child.
const Arg0 = "handrail-entrance"

// File descriptors that a child is born with.
const (
	controlFD = 3
	clientFD  = 4
)

const (
	// graceTime is how long a stranger has to show a voucher and touch the key.
	graceTime = 90 * time.Second
	version   = "SSH-2.0-handrail-entrance"
	maxTries  = 6 // keys that an agent offers before the voucher
)

// exchanges are the ways to agree on keys that cost a stranger as much as us.
// Every OpenSSH since 6.5 knows one.
var exchanges = []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256}

// Serve is the life of a child. It never returns.
func Serve() {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	control, err1 := inherited(controlFD)
	client, err2 := inherited(clientFD)
	if err1 != nil || err2 != nil {
		fmt.Fprintln(os.Stderr, "handrail-entrance: started without a warden")
		os.Exit(2)
	}
	var s Spec
	b, err := wire.ReadBlock(control, MaxControl)
	if err != nil || json.Unmarshal(b, &s) != nil {
		os.Exit(2)
	}
	if err := confine(s); err != nil {
		fmt.Fprintln(os.Stderr, "handrail-entrance: it keeps more power than it may have:", err)
		os.Exit(2)
	}
	host, err := ssh.ParsePublicKey(s.HostKey)
	if err != nil {
		os.Exit(2)
	}
	w := &child{control: control, host: host}
	if err := w.serve(client); err != nil && !errors.Is(err, io.EOF) {
		os.Exit(1)
	}
	os.Exit(0)
}

func inherited(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "socket")
	if f == nil {
		return nil, os.ErrInvalid
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, os.ErrInvalid
	}
	return u, nil
}

// confine gives up everything before the first byte of a stranger is read.
func confine(s Spec) error {
	if s.UID == 0 {
		return nil // a trial: there is one account only
	}
	// Every thread into a network of its own, in which there is nothing. A
	// binary built with cgo, as for the race detector, cannot reach all threads.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNET|unix.CLONE_NEWIPC, 0, 0); errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("network: %w", errno)
	}
	if s.Root != "" {
		if err := syscall.Chroot(s.Root); err != nil {
			return fmt.Errorf("chroot: %w", err)
		}
		if err := syscall.Chdir("/"); err != nil {
			return fmt.Errorf("chdir: %w", err)
		}
	}
	if err := syscall.Setgroups([]int{}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(int(s.UID), int(s.UID), int(s.UID)); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(int(s.UID), int(s.UID), int(s.UID)); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	_ = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{})
	_ = unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 64, Max: 64})
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 32, Max: 32})
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// child serves one connection.
type child struct {
	host    ssh.PublicKey
	mu      sync.Mutex // one question at a time
	control *net.UnixConn
}

func (w *child) ask(a Ask) (Answer, *os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := json.Marshal(a)
	if err != nil {
		return Answer{}, nil, err
	}
	if err := wire.WriteBlock(w.control, b); err != nil {
		return Answer{}, nil, err
	}
	return readAnswer(w.control)
}

// PublicKey is the host's; with Sign, the child is its signer without the key.
func (w *child) PublicKey() ssh.PublicKey { return w.host }

// Sign has the warden sign an exchange hash.
func (w *child) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	a, _, err := w.ask(Ask{Op: OpSign, Data: data})
	if err != nil {
		return nil, err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(a.Data, &sig); err != nil {
		return nil, err
	}
	return &sig, nil
}

// offered is where Permissions keep the certificate whose key was proven.
const offered = "certificate"

func (w *child) config() *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		ServerVersion: version, MaxAuthTries: maxTries,
		PublicKeyCallback: func(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			raw := key.Marshal()
			a, _, err := w.ask(Ask{Op: OpOffer, User: conn.User(), Certificate: raw})
			if err != nil {
				return nil, err
			}
			if !a.OK {
				return nil, &ssh.BannerError{Err: errors.New("refused"), Message: a.Text + "\n"}
			}
			return &ssh.Permissions{Extensions: map[string]string{offered: string(raw)}}, nil
		},
	}
	c.Rand = rand.Reader
	c.KeyExchanges = exchanges
	c.AddHostKey(w)
	return c
}

// serve takes one client from the first byte to the end of its session.
func (w *child) serve(client net.Conn) error {
	defer client.Close()
	grace := time.AfterFunc(graceTime, func() { client.Close() })
	defer grace.Stop()
	conn, channels, requests, err := ssh.NewServerConn(client, w.config())
	if err != nil {
		return err
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	first := true
	for n := range channels {
		if n.ChannelType() != "session" || !first {
			_ = n.Reject(ssh.Prohibited, "the entrance gives one session for each connection, and no forwarding")
			continue
		}
		first = false
		ch, reqs, err := n.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			w.session(conn, ch, reqs, grace)
		}()
	}
	return nil
}

// session takes the requests of a channel until one starts something.
func (w *child) session(conn *ssh.ServerConn, ch ssh.Channel, reqs <-chan *ssh.Request, grace *time.Timer) {
	defer ch.Close()
	a := Ask{Op: OpStart, Certificate: []byte(conn.Permissions.Extensions[offered]), SessionID: conn.SessionID()}
	for r := range reqs {
		ok, begun := true, false
		switch r.Type {
		case "pty-req":
			ok = a.pty(r.Payload)
		case "shell":
			a.Kind, begun = wire.SessionShell, true
		case "exec":
			a.Kind, begun = wire.SessionExec, true
			a.Command, ok = text(r.Payload)
		case "subsystem":
			var name string
			name, ok = text(r.Payload)
			a.Kind, begun, ok = wire.SessionSFTP, true, ok && name == "sftp"
		default: // env, agent, X11
			ok = false
		}
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if !begun || !ok {
			continue
		}
		if err := w.run(ch, reqs, a, grace); err != nil {
			fmt.Fprintf(ch.Stderr(), "handrail: %s\r\n", fault.From(err).Text)
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{255}))
		}
		return
	}
}

// run starts the session and carries its bytes until it ends.
func (w *child) run(ch ssh.Channel, reqs <-chan *ssh.Request, a Ask, grace *time.Timer) error {
	answer, f, err := w.ask(a)
	if err != nil {
		return err
	}
	if !answer.OK || f == nil {
		return fault.New(fault.Denied, "%s", answer.Text)
	}
	grace.Stop()
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	carry(ch, reqs, c)
	return nil
}

func text(payload []byte) (string, bool) {
	var s struct{ Text string }
	err := ssh.Unmarshal(payload, &s)
	return s.Text, err == nil && len(s.Text) < wire.MaxLine
}

func (a *Ask) pty(payload []byte) bool {
	var p struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	if ssh.Unmarshal(payload, &p) != nil || len(p.Term) > 64 {
		return false
	}
	a.PTY, a.Term, a.Cols, a.Rows = true, p.Term, uint16(min(p.Cols, 1000)), uint16(min(p.Rows, 1000))
	return true
}
