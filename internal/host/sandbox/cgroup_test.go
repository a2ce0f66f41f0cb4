package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// inGroup starts a session whose processes flee: they fork, leave their
// session and fork again.
func inGroup(t testing.TB, l Limits, script string) (*Cgroup, *Child) {
	t.Helper()
	cg, err := NewCgroup(fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()), l)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(context.Background(), readSpec("bash", "-c", script+"; echo ready; exec sleep 1000"), Options{Cgroup: cg, Stdout: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = cg.Kill(ctx)
		_, _ = c.Wait()
		if err := cg.Remove(); err != nil {
			t.Error(err)
		}
	})
	buf := make([]byte, 64)
	if n, err := io.ReadAtLeast(r, buf, len("ready\n")); err != nil || !strings.Contains(string(buf[:n]), "ready") {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	return cg, c
}

// fled starts 120 processes that left their session, and waits until the group
// has them all: asking ps for the account would count the dead of other tests.
func fled(t *testing.T) *Cgroup {
	t.Helper()
	cg, _ := inGroup(t, Limits{Pids: 400}, `for i in $(seq 60); do setsid bash -c 'sleep 1000 & sleep 1000' >/dev/null & done`)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); ; {
		pids, err := cg.Procs()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) >= 120 {
			return cg
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%d processes after a minute", len(pids))
		}
	}
}

func TestKillEndsEveryProcessThatFled(t *testing.T) {
	needRoot(t)
	cg := fled(t)
	start := time.Now()
	n, err := cg.Kill(context.Background())
	if err != nil || n < 120 {
		t.Fatalf("%d, %v", n, err)
	}
	t.Logf("%s: %d processes dead after %v", cg.Layout(), n, time.Since(start))
	if pids, err := cg.Procs(); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
}

func TestKillWithoutTheWholeKillLeavesNobodyEither(t *testing.T) {
	needRoot(t)
	cg := fled(t)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := cg.kill(ctx, true)
	if err != nil || n < 120 {
		t.Fatalf("%d, %v", n, err)
	}
	t.Logf("one by one: %d processes dead after %v", n, time.Since(start))
}

func TestAFrozenSessionStandsStillAndCanBeKilled(t *testing.T) {
	needRoot(t)
	cg, _ := inGroup(t, Limits{}, "while :; do :; done & sleep 0.01")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := cg.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cg.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cg.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := cg.Kill(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestAForkBombStopsAtTheLimit(t *testing.T) {
	needRoot(t)
	cg, _ := inGroup(t, Limits{Pids: 40}, `sh -c 'while :; do sleep 1000 & done' 2>/dev/null`)
	pids, err := cg.Procs()
	if err != nil || len(pids) > 40 {
		t.Fatalf("%d processes, %v", len(pids), err)
	}
}

func TestACgroupNameIsOneElement(t *testing.T) {
	for _, name := range []string{"", "a/b", "..", ".x"} {
		if _, err := NewCgroup(name, Limits{}); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

// Some machines count no memory, or no processes, unless they are told to at boot.
func TestALimitThatTheHostCannotKeepIsNamed(t *testing.T) {
	needRoot(t)
	m, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	delete(m.controllers, "memory")
	delete(m.legacy, "memory")
	cg := &Cgroup{legacy: map[string]string{}}
	t.Cleanup(func() {
		if err := cg.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := cg.make(m, fmt.Sprintf("test-unbound-%d", os.Getpid()), Limits{Pids: 64, MemoryBytes: 1 << 30, CPUPercent: 100}); err != nil {
		t.Fatal(err)
	}
	if lacks := cg.lacks(); len(lacks) != 1 || !strings.Contains(lacks[0], "no memory controller") {
		t.Errorf("it says %q", lacks)
	}
	spec := readSpec("true")
	if _, err := Start(t.Context(), spec, Options{Cgroup: cg}); err == nil || !strings.Contains(err.Error(), "no memory controller") {
		t.Errorf("as the full floor: %v", err)
	}
	spec.LeastFloor = Reduced
	c, err := Start(t.Context(), spec, Options{Cgroup: cg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err != nil || c.Ready.Floor != Reduced || len(c.Ready.Missing) != 1 {
		t.Errorf("%+v, %v", c.Ready, err)
	}
}
