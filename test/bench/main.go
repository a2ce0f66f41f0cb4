// Command bench prints handrail's numbers beside OpenSSH's, measured in one run
// on one machine: two real sshd (the second behind the first, for ProxyJump)
// and a real `handrail up` with proofs, recording and privilege separation on.
//
//	go run ./test/bench             everything, some eight minutes on a quiet machine
//	go run ./test/bench -quick      a rougher picture, in a third of that
//	go run ./test/bench -only setup one of: start idle setup keystroke bulk memory lock ledger policy orders
//
// Ratios count: absolute times depend on the machine and on what else it does.
// On a busy one a control group with a large share of the processors (cpu.weight)
// for the bench comes near a quiet one: what it starts stays inside.
// The three ways of one row are measured in turns, so that a busy moment falls
// on all of them; what is printed is the median over the turns.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// plan says how much of everything.
type plan struct {
	quick         bool
	turns         int // of each row; medians are printed
	sequential    int // session set-ups in one turn, of handrail; the slow peers do a quarter
	parallelFor   time.Duration
	keystrokes    int // in one turn
	bulk          int64
	idle          int // idle sessions
	lockSessions  int
	starts, locks int
	calm          time.Duration // until memory is read
}

func full() plan {
	return plan{turns: 3, sequential: 60, parallelFor: 2 * time.Second, keystrokes: 500, bulk: 160 << 20,
		idle: 100, lockSessions: 50, starts: 4, locks: 4, calm: 3 * time.Second}
}

func quick() plan {
	return plan{quick: true, turns: 1, sequential: 24, parallelFor: time.Second, keystrokes: 500, bulk: 32 << 20,
		idle: 20, lockSessions: 50, starts: 1, locks: 1, calm: time.Second}
}

// bench is one run.
type bench struct {
	plan
	dir      string // everything that the run writes
	binary   string
	peers    *peers
	handrail *installation
	t        table
	reached  [][]string // the lines with a goal, of all tables
}

func main() {
	short := flag.Bool("quick", false, "a rougher picture, in a minute")
	only := flag.String("only", "", "one part: "+strings.Join(partNames(), " "))
	binary := flag.String("binary", "bin/handrail", "the program to measure; built when it is missing")
	flag.Parse()
	// A machine that does something else, too, still gets the whole table.
	limit := 20 * time.Minute
	p := full()
	if *short {
		p, limit = quick(), 6*time.Minute
	}
	if *only != "" && !slices.Contains(partNames(), *only) {
		fmt.Fprintf(os.Stderr, "cannot measure %q: it is one of %s\n", *only, strings.Join(partNames(), " "))
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	if err := run(ctx, p, *binary, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts are what is measured, in this order: what must be idle comes first.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"start", (*bench).start},
	{"idle", (*bench).idleRoles},
	{"memory", (*bench).idleSessions},
	{"setup", (*bench).setup},
	{"keystroke", (*bench).keystroke},
	{"bulk", (*bench).throughput},
	{"lock", (*bench).lock},
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	for _, p := range lone {
		names = append(names, p.name)
	}
	return names
}

type lonePart struct {
	name  string
	peers [2]string
	about string
	run   func(*bench, context.Context) error
}

// lone parts need no installation, and each has a table of its own.
var lone = []lonePart{
	{"ledger", [2]string{"database", "-"}, "peer: the same database without a ledger; for verifying, the bare SHA-256", (*bench).ledgers},
	{"policy", [2]string{"-", "-"}, "peer: none", (*bench).policies},
	{"orders", [2]string{"clush", "-"}, "peer: clush over ssh to this machine's own sshd, many times", (*bench).orders},
}

// alone runs the lone parts and prints their tables.
func (b *bench) alone(ctx context.Context, only string) {
	for _, part := range lone {
		if only != "" && only != part.name {
			continue
		}
		fmt.Fprintln(os.Stderr, "      "+part.name)
		b.t = table{peers: part.peers}
		if err := part.run(b, ctx); err != nil {
			b.t.note("%s: %v", part.name, err)
		}
		b.close(part.about)
	}
}

// close prints a table, and keeps what the design has a number for.
func (b *bench) close(about string) {
	b.t.print(os.Stdout, machine(), about)
	b.reached = append(b.reached, b.t.goals()...)
	b.t = table{}
}

// summary prints the design's numbers alone.
func (b *bench) summary() {
	fmt.Println("\nthe design's numbers")
	align(os.Stdout, append([][]string{{"what", "handrail", "peers", "load", "goal"}}, b.reached...))
}

func run(ctx context.Context, p plan, binary, only string) (err error) {
	dir, err := os.MkdirTemp("", "handrail-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The accounts of the roles and of the peers' user must get through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	b := &bench{plan: p, dir: dir}
	if only == "" {
		defer b.summary()
	}
	b.alone(ctx, only)
	if slices.ContainsFunc(lone, func(p lonePart) bool { return p.name == only }) {
		return nil
	}
	if b.binary, err = program(ctx, dir, binary); err != nil {
		return err
	}
	if b.peers, err = startPeers(ctx, dir); err != nil {
		return fmt.Errorf("cannot start OpenSSH: %w", err)
	}
	defer b.peers.stop()
	if b.handrail, err = b.up(ctx, filepath.Join(dir, "data")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.handrail.stop()) }()
	if err := b.handrail.enrol(ctx); err != nil {
		return err
	}
	began := time.Now()
	for _, part := range parts {
		if only != "" && only != part.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "%4.0fs  %s\n", time.Since(began).Seconds(), part.name)
		if err := part.run(b, ctx); err != nil {
			if ctx.Err() != nil {
				b.t.note("stopped: %v", context.Cause(ctx))
				break
			}
			b.t.note("%s: %v", part.name, err)
		}
	}
	b.close(b.peers.version)
	return nil
}

// program finds the binary, or builds it.
func program(ctx context.Context, dir, binary string) (string, error) {
	if abs, err := filepath.Abs(binary); err == nil {
		if _, err := os.Stat(abs); err == nil {
			return abs, nil
		}
	}
	out := filepath.Join(dir, "handrail")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "handrail.dev/handrail/cmd/handrail")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build handrail: %w\n%s", err, text)
	}
	return out, nil
}
