package link

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/warden"
)

func TestMain(m *testing.M) {
	keeper.Main()
	if dir := os.Getenv(renewEnv); dir != "" {
		renewForever(dir)
	}
	os.Exit(m.Run())
}

func TestANodeJoinsConnectsAndServesSessions(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	if f.hello.Mode != wire.ModeRoot || f.hello.Floor != wire.FloorFull || f.hello.Version != "test" {
		t.Fatalf("%+v", f.hello)
	}
	f.until("the facts are there", func() bool { return f.facts["kernel"] != "" && f.facts["memory_total_bytes"] != "" })
	for i, use := range []string{wire.UseControl, wire.UseBulk} {
		s, a := f.open(use, f.order("0000000"+string(rune('1'+i)), wire.SessionSpec{Kind: wire.SessionExec, Command: "echo over " + use}))
		if !a.OK {
			t.Fatalf("%+v", a)
		}
		if out, e := output(t, s); out != "over "+use+"\n" || e.Status != 0 {
			t.Fatalf("%q %+v", out, e)
		}
		s.Close()
	}
	if f.asked == 0 {
		t.Fatal("the node acted on a checkpoint without a consistency proof")
	}
	f.until("the end of both sessions is reported", func() bool {
		n := 0
		for _, e := range f.events {
			if e.Kind == wire.EventSessionEnded {
				n++
			}
		}
		return n == 2
	})
}

func TestARefusedOrderIsAnsweredAndAlarmed(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	order := f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "true"})
	s, a := f.open(wire.UseControl, order)
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	s.Close()
	if _, a = f.open(wire.UseControl, order); a.OK || a.Kind != "denied" || !strings.Contains(a.Text, "carried out already") {
		t.Fatalf("%+v", a)
	}
	f.until("the alarm is up", func() bool {
		for _, e := range f.events {
			if e.Kind == wire.EventAlarm && e.Rule == warden.RuleReplay {
				return true
			}
		}
		return false
	})
}

func TestABrakeComesThroughAndIsAnswered(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	s, a := f.open(wire.UseBulk, f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "setsid nohup sleep 1000 >/dev/null 2>&1 & echo ready; exec sleep 1000"}))
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	if ft, _, err := wire.NewReader(s).Next(); err != nil || ft != wire.FrameStdout {
		t.Fatal(ft, err)
	}
	signed, err := wire.SignBrake(wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeLockPerson, Node: wire.EveryNode, Person: "p-ada00001", Epoch: 2, Issued: 1}, f.ring.Order())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m, err := f.nc.Request(wire.FleetSubject(wire.DownBrake), signed, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var k wire.BrakeAnswer
	if err := json.Unmarshal(m.Data, &k); err != nil || k.Sessions != 1 || k.Killed < 2 || k.Node != host {
		t.Fatalf("%+v %v", k, err)
	}
	t.Logf("brake, sent to answered: %s", time.Since(start))
}

func TestACutConnectionEndsItsSessionsAndComesBack(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	s, a := f.open(wire.UseControl, f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "echo ready; exec sleep 1000"}))
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	if ft, _, err := wire.NewReader(s).Next(); err != nil || ft != wire.FrameStdout {
		t.Fatal(ft, err)
	}
	f.interrupt()
	f.until("both connections are there again", func() bool { return f.conns[wire.UseControl] != nil && f.conns[wire.UseBulk] != nil })
	f.until("the session's end is reported", func() bool {
		for _, e := range f.events {
			if e.Kind == wire.EventSessionEnded && e.Why == keeper.WhyGateway {
				return true
			}
		}
		return false
	})
	s, a = f.open(wire.UseControl, f.order("00000002", wire.SessionSpec{Kind: wire.SessionExec, Command: "echo again"}))
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	if out, _ := output(t, s); out != "again\n" {
		t.Fatalf("%q", out)
	}
}

func TestASessionThatCannotStartIsNotTriedTwice(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	_, a := f.open(wire.UseControl, f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "true", Groups: []string{"docker", "no-such-group"}, RemainingMS: 1}))
	if a.OK || strings.Contains(a.Text, "carried out already") {
		t.Fatalf("%+v", a)
	}
}

func TestBulkIsWholeAndFast(t *testing.T) {
	f := newFake(t)
	startNode(t, f)
	const size = 256 << 20
	s, a := f.open(wire.UseBulk, f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "head -c 268435456 /dev/zero"}))
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	start := time.Now()
	r := wire.NewReader(s)
	total := 0
	for {
		ft, p, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ft == wire.FrameExit {
			break
		}
		total += len(p)
	}
	if total != size {
		t.Fatalf("%d of %d bytes", total, size)
	}
	t.Logf("%.0f MiB/s from the program to the server", size/(1<<20)/time.Since(start).Seconds())
}

func TestAJoinTrustsNoServerButTheTokens(t *testing.T) {
	f := newFake(t)
	other := newFake(t)
	dir := filepath.Join(t.TempDir(), "link")
	_, err := Join(t.Context(), f.token(other.ring.RootHash(), "a-good-secret-word"), dir, JoinOptions{Hostname: "web-1"})
	if fault.KindOf(err) != fault.Denied || f.joins != 0 {
		t.Fatalf("%v; the token was sent %d times", err, f.joins)
	}
	if IsJoined(dir) {
		t.Fatal("it counts as joined")
	}
}

func TestAUsedOrMalformedTokenSaysSo(t *testing.T) {
	f := newFake(t)
	dir := filepath.Join(t.TempDir(), "link")
	_, err := Join(t.Context(), f.token(f.ring.RootHash(), "a-spent-secret-word"), dir, JoinOptions{Hostname: "web-1"})
	if fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), "used already") {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), "nonsense", dir, JoinOptions{}); fault.KindOf(err) != fault.Invalid {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Config{Dir: dir}); fault.KindOf(err) != fault.NotFound {
		t.Fatal(err)
	}
	var f2 *fault.Error
	if _, err := load(dir); !errors.As(err, &f2) || f2.Hint == "" {
		t.Fatal("no hint what to do")
	}
}

func TestASecondJoinIsRefused(t *testing.T) {
	f := newFake(t)
	dir := filepath.Join(t.TempDir(), "link")
	if _, err := Join(t.Context(), f.token(f.ring.RootHash(), "a-good-secret-word"), dir, JoinOptions{Hostname: "web-1", UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, pairName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	if _, err := Join(t.Context(), f.token(f.ring.RootHash(), "a-good-secret-word"), dir, JoinOptions{}); fault.KindOf(err) != fault.Conflict {
		t.Fatal(err)
	}
}
