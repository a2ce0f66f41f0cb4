package warden

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/inspect"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/socket"
)

// Config is what a warden needs to know.
type Config struct {
	Dir     string         // its own folder, 0700: pin, trust bundle, last checkpoint, host policy, spools
	Socket  string         // unix socket that it makes for the link
	LinkUID int            // the only uid that may connect
	LinkGID int            // group of the socket
	Hide    []string       // folders of handrail on this machine that no session may see (Dir is always hidden)
	Kin     []inspect.File // programs of handrail beside this one, whose processes nobody looks at
	Trial   bool           // this installation can never be production
	Visit   bool           // it is there for an order that was issued before it came
	Confine bool           // give up all Capabilities but those listed; not where other code runs in this process
	Version string
	Ready   func()               // called once it listens; nil: nobody asks
	Boot    func() time.Duration // nil: CLOCK_BOOTTIME
	Silence time.Duration        // after which a keeper that says nothing is ended; 0: 1 min
	Lost    time.Duration        // without a lease, until vouchers count; 0: wire.LeaseLost. No flag, file or variable sets it: tests do
	Log     *slog.Logger         // nil: discard
	// Upgrades is the descriptor of a socket on which the supervisor may hand in
	// a newer program; 0: there is none. See handover.go.
	Upgrades int
	// Resume is the descriptor of what an earlier program of this process left;
	// 0: this is the first.
	Resume int
}

// keepAlive makes the kernel, when memory is short, end others before the
// warden and its keepers, which are small and hold everybody's sessions.
const keepAlive = "-500"

// warden is the running role.
type warden struct {
	c      Config
	lock   *os.File
	judge  *judge
	pin    *pinKeeper
	events *events
	alarms alarms
	run    *sessions
	looks  looks
	door   *entrances
	life   context.Context // of the role
	gate   sync.RWMutex    // held for reading while something is done, for writing while a newer program takes over
	status Status
	log    *slog.Logger
}

// Run serves until ctx ends; then every session is dead.
func Run(ctx context.Context, c Config) error {
	var from *passed
	if c.Resume != 0 {
		var err error
		if from, err = readPassed(c.Resume); err != nil {
			return err
		}
		c.Upgrades = from.Upgrades
	}
	w, unlock, err := open(ctx, c, from)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := listen(c, from)
	if err != nil {
		return err
	}
	defer w.run.spawn.Close()
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(keepAlive), 0) // refused to an ordinary account
	if c.Confine && os.Geteuid() == 0 {
		if err := confine(); err != nil { // it serves all the same: this is a second wall
			w.log.Warn("the warden keeps more power than it needs", "error", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		w.watch(ctx)
	}()
	context.AfterFunc(ctx, func() { l.Close() })
	w.serveUpgrades(ctx, l, from != nil)
	if c.Ready != nil {
		c.Ready()
	}
	err = w.accept(ctx, l, &wg)
	cancel()
	w.door.close()
	w.run.stopWhere(keeper.WhyLost, func(*live) bool { return true })
	w.looks.stop(everybody)
	wg.Wait()
	return err
}

// open reads what the warden remembers and clears up after an earlier one.
func open(ctx context.Context, c Config, from *passed) (*warden, func(), error) {
	if c.Boot == nil {
		c.Boot = bootTime
	}
	if c.Silence == 0 {
		c.Silence = keeperSilence
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	pin, err := readPin(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fault.New(fault.NotFound, "cannot start the warden: this host has not joined an installation").
			WithHint("handrail host invite (on the server), then handrail join here")
	}
	if err != nil {
		return nil, nil, err
	}
	policy, err := readPolicy(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	j, err := newJudge(pin, policy, c.Boot)
	if err != nil {
		return nil, nil, err
	}
	j.visit = c.Visit
	locked, err := lockOf(c.Dir, from)
	if err != nil {
		return nil, nil, err
	}
	unlock := func() { locked.Close() }
	spools := filepath.Join(c.Dir, "spool")
	for _, dir := range []string{spools, filepath.Join(c.Dir, "live")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			unlock()
			return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
		}
	}
	held, err := hold(c.Dir)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	procs, err := sandbox.HoldProcesses()
	if err != nil {
		held.Close()
		unlock()
		return nil, nil, err
	}
	groups := sandbox.HoldGroups()
	release := func() { groups.Close(); procs.Close(); held.Close(); unlock() }
	hide := append([]string{c.Dir}, c.Hide...)
	probe := sandbox.Probe(ctx, hide)
	if probe.Mode == sandbox.RootMode && !c.Visit && LacksAccount() { // a visit has an account of its own
		probe.Missing = append(probe.Missing, "Write sessions have no account here, "+WriteAccount+" is missing. What to do: "+AccountAdvice+".")
	}
	w := &warden{
		c: c, lock: locked, judge: j, life: ctx, pin: &pinKeeper{dir: within(held), j: j, saved: j.size(), vers: j.bundleVersion()}, events: newEvents(), log: c.Log,
		status: Status{Node: pin.Node, Mode: string(probe.Mode), Floor: string(probe.Floor), Missing: probe.Missing,
			Trial: c.Trial || probe.Mode != sandbox.RootMode, Version: c.Version, BootID: bootID(), Cosigned: policy.witnesses.Wants()},
	}
	w.run = &sessions{dir: spools, heldDir: filepath.Join(within(held), "spool"), heldLive: filepath.Join(within(held), "live"), procs: procs, groups: groups, prefix: cgroupPrefix(c.Dir), mode: probe.Mode, spawn: keeper.NewSpawner(), policy: policy,
		hide: hide, events: w.events, live: map[string]*live{}, uids: newUIDRange(policy)}
	if from != nil {
		w.events.queue, w.events.dropped = from.Events, from.Dropped
		w.run.adopt(from)
	}
	w.run.clearEarlier()
	if w.door, err = w.openDoor(within(held)); err != nil {
		release()
		return nil, nil, err
	}
	if from != nil {
		if err := j.take(from.Judge); err != nil {
			release()
			return nil, nil, err
		}
	}
	return w, release, nil
}

// cgroupPrefix is of this warden's folder alone, so that two wardens on one
// machine (a laboratory, a demonstration) leave each other's sessions alone.
func cgroupPrefix(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	sum := sha256.Sum256([]byte(dir))
	return "handrail-" + hex.EncodeToString(sum[:4]) + "-"
}

// hold opens the folder for good: once confined, the warden may not walk to it
// through the folders above, which can be anybody's.
func hold(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
	}
	return f, nil
}

// within is the path of a held folder.
func within(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// lockPatience is how long the lock of a warden that was killed may stay with a
// child that it had just forked and that has not become a keeper yet.
const lockPatience = 3 * time.Second

func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(lockPatience); ; {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		select {
		case <-tick.C:
		case <-late:
			f.Close()
			return nil, fault.New(fault.Conflict, "cannot start the warden: another one runs on %s", dir)
		}
	}
}

func listen(c Config, from *passed) (*net.UnixListener, error) {
	if from != nil {
		f := os.NewFile(uintptr(from.Listener), "listener")
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot take over a warden")
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return nil, fault.New(fault.Invalid, "cannot take over a warden: it left another listener")
		}
		u.SetUnlinkOnClose(u.Addr().String() == c.Socket) // else it is by a way that only its maker had
		return u, nil
	}
	_ = os.Remove(c.Socket) // the lock says that nobody listens there
	l, err := socket.Listen(c.Socket)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
	}
	err = os.Chmod(c.Socket, 0o660)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(c.Socket, 0, c.LinkGID)
	}
	if err != nil {
		l.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
	}
	return l, nil
}

// clockJump is how far the wall clock may move against boot time within a
// second before it is an event: entries of that time are to be read with care.
const clockJump = 5 * time.Second

// watch ends sessions when no server was heard of for too long, and reports a
// clock that jumps. Deadlines do not care: they run on boot time.
func (w *warden) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	offset := wallMinusBoot()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.gate.RLock()
		if since, have := w.judge.staleFor(); have && since > staleKill {
			w.run.stopWhere(keeper.WhyLease, func(l *live) bool { return !l.alone })
			w.looks.stop(everybody)
		}
		w.run.overdue(w.c.Boot(), w.c.Silence)
		offset = w.clock(offset, wallMinusBoot())
		w.gate.RUnlock()
	}
}

// clock reports a jump and returns what to compare with next.
func (w *warden) clock(before, now time.Duration) time.Duration {
	if jump := now - before; jump.Abs() > clockJump {
		w.events.put(wire.Event{Kind: wire.EventClock, Count: jump.Milliseconds(),
			Text: "this host's clock jumped by " + jump.Round(time.Millisecond).String()})
	}
	return now
}

// wallMinusBoot is constant while nobody sets the clock.
func wallMinusBoot() time.Duration {
	return time.Duration(time.Now().UnixNano()) - bootTime()
}

// stopOvertaken ends the sessions of those whom a lease says were locked: the
// brake itself may have been lost.
func (w *warden) stopOvertaken() {
	w.looks.stopWhere(func(l *oneLook) bool { return w.judge.overtaken(l.person, l.epoch) })
	w.run.stopWhere(keeper.WhyLocked, func(l *live) bool { return w.judge.overtaken(l.person, l.epochs[l.person]) })
}

func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// hostName is what this machine calls itself.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "this host"
	}
	return name
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 36 {
		return ""
	}
	return string(b[:36])
}
