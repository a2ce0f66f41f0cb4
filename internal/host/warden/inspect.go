package warden

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/inspect"
	"handrail.dev/handrail/internal/host/sandbox"
)

// A brokered read is a process of its own, which finds out what was asked and
// says it on the session's socket. The warden starts it, ends it, and reads
// nothing of it: what a process on this host says of itself may be hostile.

const (
	maxLooks  = 8               // at once on this host
	lookGrace = 2 * time.Second // beyond its own deadline, until it is killed
)

// oneLook is a brokered read that runs.
type oneLook struct {
	person string
	epoch  int64
	cmd    *exec.Cmd
}

// looks are those that run.
type looks struct {
	mu  sync.Mutex
	all map[string]*oneLook
}

// enter takes the look's place.
func (k *looks) enter(id string, l *oneLook) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) >= maxLooks {
		return fault.New(fault.Exhausted, "cannot look: %d people look at this host at this moment", len(k.all)).WithHint("try again in a few seconds")
	}
	if _, there := k.all[id]; there {
		return refuse(RuleReplay, "cannot look: inspection %s runs here already", id)
	}
	if k.all == nil {
		k.all = map[string]*oneLook{}
	}
	k.all[id] = l
	return nil
}

func (k *looks) leave(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, id)
}

// stop ends those of whom match says so, and counts them.
func (k *looks) stop(match func(person string) bool) int {
	return k.stopWhere(func(l *oneLook) bool { return match(l.person) })
}

func (k *looks) stopWhere(match func(*oneLook) bool) (ended int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.all {
		if l.cmd != nil && l.cmd.Process != nil && match(l) {
			_ = l.cmd.Process.Kill()
			ended++
		}
	}
	return ended
}

func everybody(string) bool { return true }

// inspect starts the brokered read of an accepted order.
func (w *warden) inspect(_ context.Context, a accepted) (wire.SessionAnswer, *os.File, error) {
	o := inspect.Order{Spec: *a.Inspect, Hide: w.run.hide, Kin: w.c.Kin}
	o.Spec.TimeMS = min(o.Spec.TimeMS, a.left.Milliseconds())
	if o.Spec.TimeMS <= 0 {
		return wire.SessionAnswer{}, nil, refuse(RuleAge, "cannot look: the order's time is over")
	}
	var uid uint32
	if w.run.mode == sandbox.RootMode {
		var err error
		if uid, err = w.run.uids.take(); err != nil {
			return wire.SessionAnswer{}, nil, err
		}
		o.UID, o.Cgroup = uid, w.run.prefix+o.Spec.ID
	}
	l := &oneLook{person: o.Spec.Person, epoch: a.Epochs.Person[o.Spec.Person]}
	err := w.looks.enter(o.Spec.ID, l)
	var far *os.File
	var ctl net.Conn
	if err == nil {
		if far, ctl, err = w.startLook(o, l); err != nil {
			w.looks.leave(o.Spec.ID)
		}
	}
	if err != nil {
		w.run.uids.release(uid)
		return wire.SessionAnswer{}, nil, err
	}
	if w.judge.overtaken(l.person, l.epoch) { // a lock came in between
		_ = l.cmd.Process.Kill()
	}
	go w.awaitLook(o, l, ctl, uid)
	return wire.SessionAnswer{OK: true, Floor: string(sandbox.Brokered), BootID: w.status.BootID}, far, nil
}

// startLook starts the process and tells it what to look at. It returns the
// far end of the session's socket.
func (w *warden) startLook(o inspect.Order, l *oneLook) (far *os.File, ctl net.Conn, err error) {
	order, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs, err := pairOf()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	far, near, err := pairOf()
	if err != nil {
		mine.Close()
		return nil, nil, err
	}
	defer near.Close()
	ctl, err = net.FileConn(mine)
	mine.Close()
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{inspect.Arg0}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, Dir: "/",
		ExtraFiles: []*os.File{theirs, near}, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	w.looks.mu.Lock()
	if err = w.run.spawn.Run(cmd); err == nil {
		l.cmd = cmd
	}
	w.looks.mu.Unlock()
	if err == nil {
		_ = ctl.SetWriteDeadline(time.Now().Add(frameTime))
		if err = wire.WriteBlock(ctl, order); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	if err != nil {
		ctl.Close()
		far.Close()
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot look")
	}
	return far, ctl, nil
}

// awaitLook clears up after a brokered read, whatever way it ended. Whoever it
// held was let go by the kernel.
func (w *warden) awaitLook(o inspect.Order, l *oneLook, ctl net.Conn, uid uint32) {
	late := time.AfterFunc(time.Duration(o.Spec.TimeMS)*time.Millisecond+lookGrace, func() { _ = l.cmd.Process.Kill() })
	_ = l.cmd.Wait()
	late.Stop()
	ctl.Close()
	killResidue(o.Cgroup)
	w.looks.leave(o.Spec.ID)
	w.run.uids.release(uid)
}

func pairOf() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "look"), os.NewFile(uintptr(fds[1]), "look"), nil
}
