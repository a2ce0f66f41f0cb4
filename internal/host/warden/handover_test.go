package warden

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// upgradesOf reads the two descriptors from argv of a warden of a test.
func upgradesOf(args []string) (upgrades, resume int) {
	for i, a := range args {
		switch a {
		case "--upgrades-fd":
			_, _ = fmt.Sscan(args[i+1], &upgrades)
		case "--resume-fd":
			_, _ = fmt.Sscan(args[i+1], &resume)
		}
	}
	return upgrades, resume
}

// supervised is a warden in a process of its own that can become a newer
// program.
type supervised struct {
	*bench
	cmd  *exec.Cmd
	mine *os.File
}

func (b *bench) supervised() *supervised {
	b.t.Helper()
	mine, theirs, err := UpgradeSocket()
	if err != nil {
		b.t.Fatal(err)
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", "--upgrades-fd", "3")
	cmd.Env = append(os.Environ(), wardenEnv+"="+b.dir)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		mine.Close()
	})
	b.up()
	return &supervised{b, cmd, mine}
}

// newer is this test's program as another file, longer by some bytes.
func (s *supervised) newer() *os.File {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "newer")
	copyFile(s.t, "/proc/self/exe", path)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("a newer one")
		f.Close()
	}
	if err == nil {
		err = os.Chmod(path, 0o755)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return s.file(path)
}

func (s *supervised) file(path string) *os.File {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	return f
}

func (s *supervised) upgrade(program *os.File) error {
	_, err := Upgrade(timeout(s.t, time.Minute), s.mine, program, []string{"newer"})
	return err
}

func (s *supervised) upgraded() {
	s.t.Helper()
	newer := s.newer()
	if err := s.upgrade(newer); err != nil {
		s.t.Fatal(err)
	}
	var want, got unix.Stat_t
	if err := unix.Fstat(int(newer.Fd()), &want); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", s.cmd.Process.Pid), &got); err != nil || got.Ino != want.Ino {
		s.t.Fatalf("the process runs file %d, want %d (%v)", got.Ino, want.Ino, err)
	}
}

const echoes = "while read x; do echo got $x; done"

func TestSessionsGoOnInANewerProgram(t *testing.T) {
	b := newBench(t).supervised()
	session, a := b.open(execSpec("setsid nohup sleep 98765 >/dev/null 2>&1 & " + echoes))
	session.enter("one\n")
	session.sees("got one")
	b.upgraded()
	session.enter("two\n")
	session.sees("got two")
	b.upgraded() // and once more, by the one that took over
	session.enter("three\n")
	session.sees("got three")
	if n, err := b.c.Status(t.Context()); err != nil || n.Live != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	other, _ := b.open(execSpec("echo a new one")) // under the lease of before
	other.sees("a new one")
	if e := other.ends(); e.Status != 0 {
		t.Errorf("%+v", e)
	}
	b.eventually("one session is left", func() bool { n, err := b.c.Status(t.Context()); return err == nil && n.Live == 1 })
	k := b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 9})
	if k.Sessions != 1 || k.Killed == 0 || k.Error != "" {
		t.Errorf("%+v", k)
	}
	if n := alive(t, a.UID); n != 0 {
		t.Errorf("%d processes outlived the lock", n)
	}
	if e := session.ends(); e.Why != "locked" {
		t.Errorf("%+v", e)
	}
	started, ended := 0, 0
	for e := b.event(wire.EventSessionEnded); ; e = b.event(wire.EventSessionEnded) {
		if e.Session == session.id {
			break
		}
	}
	for _, e := range b.seen {
		if e.Session != session.id {
			continue
		}
		switch e.Kind {
		case wire.EventSessionStarted: // of before: nobody had fetched it
			started++
		case wire.EventSessionEnded:
			ended++
		default:
			t.Errorf("unexpected: %+v", e)
		}
	}
	if started != 1 || ended != 1 {
		t.Errorf("it began %d times and ended %d times", started, ended)
	}
}

func TestANewerProgramHoldsTheDeadlineAndNoMorePower(t *testing.T) {
	b := newBench(t).supervised()
	s, a := b.open(func(s *wire.SessionSpec) { execSpec(daemonise)(s); s.RemainingMS = 2500 })
	s.sees("ready")
	b.upgraded()
	if e := s.ends(); e.Why != "deadline" {
		t.Errorf("%+v", e)
	}
	if n := alive(t, a.UID); n != 0 {
		t.Errorf("%d processes outlived the deadline", n)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "CapPrm:\t0000000000000020\n") && !cgo {
		t.Errorf("it keeps more power than the one before:\n%s", status)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range open {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", b.cmd.Process.Pid, d.Name())); err == nil && strings.Contains(to, "handover") {
			t.Errorf("it still holds %s", to)
		}
	}
}

func TestAJudgeKnowsWhatTheOneBeforeKnew(t *testing.T) {
	l := newLiar(t)
	fresh := func() *judge {
		j, err := newJudge(pinFile{V: 1, Node: testNode, RootHash: ledger.RootHash(l.rootV), Bundle: l.signedBundle()}, hostPolicy{}, bootTime)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := fresh()
	j.lease = lease{have: true, asked: 7 * time.Second, server: 12, off: true}
	j.started, j.frozen, j.thaw, j.brakes = 5, true, 9*time.Second, []string{"b-1"}
	j.epochs = wire.Epochs{Person: map[string]int64{"p-1": 3}, Lock: 4, Policy: 5}
	j.seen["o-1"] = time.Minute
	j.known = []tlog.Tree{{N: 4, Hash: tlog.Hash{1}}}
	j.asks = []pendingAsk{{wire.LeaseAsk{V: 1, Node: testNode, Nonce: []byte("nonce")}, time.Second}}
	j.alone.drill, j.alone.revoked, j.alone.time, j.alone.began = drill{"o", "p", time.Hour}, map[uint64]bool{9: true}, 77, 3*time.Second
	b, err := json.Marshal(j.pass())
	if err != nil {
		t.Fatal(err)
	}
	var p passedJudge
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	next := fresh()
	if err := next.take(p); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(next.pass())
	if err != nil || string(again) != string(b) || strings.Contains(string(b), "null") {
		t.Errorf("passed on:\n%s\nand again:\n%s\n%v", b, again, err)
	}
	p.Brakes = make([]string, maxBrakeIDs+1)
	if err := next.take(p); err == nil {
		t.Error("more was taken than a judge remembers")
	}
}

func TestANewerProgramForgetsNoOrderAndNoFreeze(t *testing.T) {
	b := newBench(t).supervised()
	p := b.payload(b.serverNow())
	p.Session.Kind, p.Session.Command = wire.SessionExec, "true"
	order := b.sign(b.entry(p, nil))
	env := wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, int64(len(b.leaves)))}
	_, f, err := b.c.Order(t.Context(), env.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.last = int64(len(b.leaves))
	b.upgraded()
	if _, _, err := b.c.Order(t.Context(), env.Marshal()); fault.From(err).Rule != RuleReplay {
		t.Errorf("the order was taken twice: %v", err)
	}
	if a := b.brake(wire.Brake{Kind: wire.BrakeFreeze}); a.Error != "" {
		t.Fatalf("%+v", a)
	}
	b.upgraded()
	if _, _, err := b.tryOpen(execSpec("true")); fault.From(err).Rule != RuleFrozen {
		t.Errorf("a freeze was lifted by a newer program: %v", err)
	}
}

func TestAKilledNewerProgramLeavesNothing(t *testing.T) {
	b := newBench(t).supervised()
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	b.upgraded()
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.eventually("everything is dead", func() bool { return alive(t, a.UID) == 0 })
}

func TestAProgramThatEndsAtOnceLeavesNothing(t *testing.T) {
	b := newBench(t).supervised()
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	program := "/bin/false"
	if _, err := os.Stat(program); err != nil {
		program = "/usr/bin/false"
	}
	err := make(chan error, 1)
	go func() { err <- b.upgrade(b.file(program)) }()
	if werr := b.cmd.Wait(); werr == nil {
		t.Error("it did not fail")
	}
	b.eventually("everything is dead", func() bool { return alive(t, a.UID) == 0 })
	if err := <-err; err == nil {
		t.Error("nobody was told")
	}
}

func TestWhatCannotRunTakesNothingOver(t *testing.T) {
	b := newBench(t).supervised()
	s, _ := b.open(execSpec(echoes))
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and it can be tried again
		if err := b.upgrade(b.file(path)); err == nil || fault.From(err).Hint == "" {
			t.Errorf("got %v", err)
		}
	}
	s.enter("still\n")
	s.sees("got still")
	if e := b.brake(wire.Brake{Kind: wire.BrakeStopSession, Session: s.id}); e.Sessions != 1 {
		t.Errorf("%+v", e)
	}
	other, _ := b.open(execSpec("echo again"))
	other.sees("again")
	b.upgraded()
}

// A link that never takes its answers keeps no newer program out for ever, and
// no brake from acting meanwhile.
func TestABrakeActsWhileANewerProgramWaits(t *testing.T) {
	b := newBench(t).supervised()
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "unix", filepath.Join(b.dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan error, 1)
	go func() { done <- b.upgrade(b.newer()) }()
	k := b.brake(wire.Brake{Kind: wire.BrakeStopSession, Session: s.id})
	if n := alive(t, a.UID); k.Sessions != 1 || n != 0 {
		t.Errorf("%+v, %d alive", k, n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatALaterProgramIsLeftIsChecked(t *testing.T) {
	good := passed{V: HandoverVersion, BootID: bootID(), Listener: 5, Lock: 6, Upgrades: 7}
	one := passedLive{ID: "s-00000000"}
	one.Keeper.Control = 8
	change := map[string]func(p *passed){
		"another form":            func(p *passed) { p.V++ },
		"another boot":            func(p *passed) { p.BootID = "0" },
		"a descriptor twice":      func(p *passed) { p.Lock = p.Listener },
		"a descriptor of stdio":   func(p *passed) { p.Listener = 1 },
		"no descriptor":           func(p *passed) { p.Upgrades = 0 },
		"a session's descriptor":  func(p *passed) { s := one; s.Keeper.Control = 5; p.Sessions = []passedLive{s} },
		"a session without an id": func(p *passed) { s := one; s.ID = "../../etc"; p.Sessions = []passedLive{s} },
		"a session twice":         func(p *passed) { p.Sessions = []passedLive{one, one} },
		"too many events":         func(p *passed) { p.Events = make([]wire.Event, maxEvents+1) },
	}
	try := func(p passed) error {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parsePassed(b)
		return err
	}
	good.Sessions = []passedLive{one}
	if err := try(good); err != nil {
		t.Fatal(err)
	}
	for what, do := range change {
		p := good
		p.Sessions = nil
		do(&p)
		if err := try(p); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	file, err := os.CreateTemp(t.TempDir(), "open")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := readPassed(int(file.Fd())); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a file that others could change: %v", err)
	}
}

func FuzzPassed(f *testing.F) {
	b, _ := json.Marshal(passed{V: HandoverVersion, BootID: bootID(), Listener: 5, Lock: 6, Upgrades: 7})
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePassed(b)
		if err == nil && (p.V != HandoverVersion || p.Listener < 3 || len(p.Sessions) > maxSessions) {
			t.Errorf("%+v", p)
		}
	})
}
