package warden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	// handoverPatience is how long a newer program waits for a moment in which
	// nothing starts or is looked at.
	handoverPatience = 30 * time.Second
	handoverPause    = 5 * time.Millisecond
	maxUpgrade       = 64 << 10
)

// upgradeAsk comes from the supervisor, with the program as a descriptor.
type upgradeAsk struct {
	Args []string `json:"args"` // argv of the newer program
}

// upgradeAnswer comes from the program that refused, or from the newer one.
type upgradeAnswer struct {
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Upgrade hands a newer program to the warden at the other end of a socket made
// by UpgradeSocket, and waits until it serves.
func Upgrade(ctx context.Context, conn *os.File, program *os.File, args []string) (version string, err error) {
	b, err := json.Marshal(upgradeAsk{args})
	if err != nil {
		return "", err
	}
	c, err := messages(conn)
	if err != nil {
		return "", err
	}
	defer c.Close()
	buf := make([]byte, maxUpgrade)
	_ = c.SetReadDeadline(time.Unix(1, 0)) // what somebody gave up to hear
	for err = nil; err == nil; _, err = c.Read(buf) {
	}
	_ = c.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(program.Fd())), nil); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot ask the warden to become a newer program")
	}
	n, err := c.Read(buf)
	var a upgradeAnswer
	if err == nil {
		err = json.Unmarshal(buf[:n], &a)
	}
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot hear whether the warden became a newer program")
	}
	if a.Error != "" {
		f := fault.New(fault.Unavailable, "%s", a.Error)
		f.Hint = a.Hint
		return "", f
	}
	return a.Version, nil
}

// UpgradeSocket makes the two ends.
func UpgradeSocket() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "upgrades"), os.NewFile(uintptr(fds[1]), "upgrades"), nil
}

func messages(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, os.ErrInvalid
	}
	return u, nil
}

// serveUpgrades answers the supervisor; resumed says that it waits for an answer.
func (w *warden) serveUpgrades(ctx context.Context, l *net.UnixListener, resumed bool) {
	if w.c.Upgrades == 0 {
		return
	}
	f := os.NewFile(uintptr(w.c.Upgrades), "upgrades")
	c, err := messages(f)
	closeFile(f)
	if err != nil {
		w.log.Error("no newer program can take over", "error", err)
		return
	}
	context.AfterFunc(ctx, func() { c.Close() })
	say := func(a upgradeAnswer) {
		if b, err := json.Marshal(a); err == nil {
			_, _ = c.Write(b)
		}
	}
	if resumed {
		say(upgradeAnswer{Version: w.c.Version})
	}
	go func() {
		for {
			ask, program, err := readUpgrade(c)
			if errors.Is(err, errNobody) {
				return
			}
			if err == nil {
				err = w.become(ctx, l, c, program, ask.Args) // returns only if it failed
				program.Close()
			}
			f := fault.From(err)
			say(upgradeAnswer{Error: f.Text, Hint: f.Hint})
		}
	}()
}

var errNobody = errors.New("the supervisor is gone")

func readUpgrade(c *net.UnixConn) (ask upgradeAsk, program *os.File, err error) {
	buf, oob := make([]byte, maxUpgrade), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil || n == 0 {
		return ask, nil, errNobody
	}
	program = fileFrom(oob[:oobn])
	if err = json.Unmarshal(buf[:n], &ask); err == nil && (program == nil || len(ask.Args) == 0) {
		err = errors.New("no program came with it")
	}
	if err != nil {
		closeFile(program)
		return ask, nil, fault.Wrap(fault.Invalid, err, "cannot become a newer program")
	}
	return ask, program, nil
}

// become replaces this program. It returns only when it did not happen; then
// everything goes on as before.
func (w *warden) become(ctx context.Context, l *net.UnixListener, c *net.UnixConn, program *os.File, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, handoverPatience)
	defer cancel()
	if err := w.quiet(ctx); err != nil {
		return err
	}
	defer w.gate.Unlock()
	held, err := w.run.holdAll(ctx)
	defer func() {
		for _, l := range held {
			l.handle.Release()
		}
	}()
	if err != nil {
		return err
	}
	p := passed{V: HandoverVersion, BootID: w.status.BootID, Lock: int(w.lock.Fd()), Judge: w.judge.pass()}
	if p.Listener, err = descriptorOf(l); err == nil {
		p.Upgrades, err = descriptorOf(c)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot hand over")
	}
	p.Events, p.Dropped = w.events.pass()
	w.run.uids.mu.Lock()
	p.NextUID = w.run.uids.next
	w.run.uids.mu.Unlock()
	for _, l := range held {
		s := passedLive{ID: l.id, Person: l.person, Epochs: l.epochs, UID: l.uid, Cgroup: l.cgroup, Deadline: l.deadline, Power: l.power}
		if l.power != nil {
			s.Before = l.power.before
		}
		if s.Keeper, err = l.handle.Pass(); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot hand session %s over", l.id)
		}
		p.Sessions = append(p.Sessions, s)
	}
	file, err := p.sealed()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot hand over")
	}
	defer file.Close()
	keep := append(p.descriptors(), int(file.Fd()))
	args = append(args, "--resume-fd", fmt.Sprint(file.Fd()))
	err = w.run.spawn.Become(ctx, fmt.Sprintf("/proc/self/fd/%d", program.Fd()), args, os.Environ(), keep)
	return fault.Wrap(fault.Unavailable, err, "cannot become the newer program").WithHint("check that it is one for this machine: FILE version")
}

// descriptorOf is a socket's own, as it is: os.File would change its mode.
func descriptorOf(s syscall.Conn) (fd int, err error) {
	conn, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = conn.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// quiet waits for a moment in which nothing starts, ends or is looked at, and
// holds on to it: the caller unlocks the gate. It never makes a brake wait.
func (w *warden) quiet(ctx context.Context) error {
	tick := time.NewTicker(handoverPause)
	defer tick.Stop()
	why := "something starts all the time"
	for {
		if w.gate.TryLock() {
			if why = w.busy(); why == "" {
				return nil
			}
			w.gate.Unlock()
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "cannot become a newer program now: %s", why).WithHint("try again in a minute; sessions are as they were")
		case <-tick.C:
		}
	}
}

// busy says what cannot be handed over.
func (w *warden) busy() string {
	w.looks.mu.Lock()
	looking := len(w.looks.all)
	w.looks.mu.Unlock()
	if looking > 0 {
		return "somebody looks at a process of this host"
	}
	w.door.mu.Lock()
	defer w.door.mu.Unlock()
	if w.door.guests+len(w.door.at)+len(w.door.shown) > 0 || len(w.run.where(func(l *live) bool { return l.alone })) > 0 {
		return "somebody is here by voucher"
	}
	return ""
}

// holdAll holds every session's keeper between two of its words. One that has
// just ended is waited for: its end is said by this program, once.
func (s *sessions) holdAll(ctx context.Context) (held []*live, err error) {
	tick := time.NewTicker(handoverPause)
	defer tick.Stop()
	on := map[*live]bool{}
	for {
		waits := 0
		for _, l := range s.where(func(*live) bool { return true }) {
			switch {
			case on[l]:
			case l.handle != nil && !l.given && l.handle.Hold():
				on[l] = true
				held = append(held, l)
			default:
				waits++
			}
		}
		if waits == 0 {
			return held, nil
		}
		select {
		case <-ctx.Done():
			return held, fault.New(fault.Unavailable, "cannot become a newer program now: %d sessions are ending", waits)
		case <-tick.C:
		}
	}
}
