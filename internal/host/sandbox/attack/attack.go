// Package attack tries to break out of a read session, and from one write
// session into another of the same account. It sets up real victims on the host
// (a process, sockets, pipes, shared memory, world-writable files, secrets under
// several names, somebody's write session), runs every probe inside a sandbox
// against them and says which were blocked. The same probes run once as a plain
// unprivileged account without a sandbox: a probe that does not succeed there
// either proves nothing, and the result says so.
//
// A probe is one small function in a process of its own. It returns nil when
// it did harm, and the error when it could not.
package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// Arg0 is argv[0] of the processes that this package starts.
const Arg0 = "handrail-attack"

// Outcome is what became of one probe.
type Outcome string

// The outcomes. CannotRun means that this kernel or host lacks what the probe
// is aimed at.
const (
	Blocked   Outcome = "blocked"
	Succeeded Outcome = "succeeded"
	CannotRun Outcome = "cannot-run"
)

// Row is one probe's result.
type Row struct {
	Group    string  `json:"group"`
	Name     string  `json:"name"`
	What     string  `json:"what"` // a sentence
	Plain    Outcome `json:"plain,omitempty"`
	Sandbox  Outcome `json:"sandbox"`
	Detail   string  `json:"detail,omitempty"`   // the error, or what was reached
	PlainWhy string  `json:"plainwhy,omitempty"` // the plain run's error
}

// Result is one run of the suite.
type Result struct {
	Mode  sandbox.Mode  `json:"mode"`
	Ready sandbox.Ready `json:"ready"`
	Rows  []Row         `json:"rows"`

	// OwnCount: the kernel counts the processes of a user namespace apart.
	OwnCount bool `json:"own_count"`
}

// Count returns how many probes succeeded in the plain run, and which
// succeeded in the sandbox.
func (r Result) Count() (plain int, unintended []Row) {
	for _, row := range r.Rows {
		if row.Plain == Succeeded {
			plain++
		}
		if row.Sandbox == Succeeded {
			unintended = append(unintended, row)
		}
	}
	return plain, unintended
}

// Run runs the suite in the given mode. It needs root for RootMode.
func Run(ctx context.Context, mode sandbox.Mode) (Result, error) {
	return RunWithout(ctx, mode)
}

// RunWithout is Run with layers of the sandbox left out, to show what each one
// stops. The plain run is left out too.
func RunWithout(ctx context.Context, mode sandbox.Mode, layers ...string) (Result, error) {
	if mode == sandbox.RootMode && os.Getuid() != 0 {
		return Result{}, fault.New(fault.Denied, "cannot attack a sandbox of root's: this is an ordinary account").
			WithHint("sudo handrail doctor --attack")
	}
	set, err := setUp(ctx, mode)
	if err != nil {
		return Result{}, fault.Wrap(fault.Unavailable, err, "cannot set up the victims")
	}
	defer set.tearDown()
	var plain map[string]answer
	if len(layers) == 0 {
		if plain, err = set.plain(ctx); err != nil {
			return Result{}, err
		}
	}
	if err := set.renew(); err != nil {
		return Result{}, fault.Wrap(fault.Unavailable, err, "cannot set up the victims again")
	}
	before := set.snapshot()
	inside, ready, err := set.sandboxed(ctx, layers)
	if err != nil {
		return Result{}, err
	}
	after := set.snapshot()
	if mode == sandbox.RootMode { // else a write session has a process list of its own, and the account to itself
		if err := set.betweenSessions(ctx, plain, inside, layers); err != nil {
			return Result{}, err
		}
	}
	result := Result{Mode: mode, Ready: ready, OwnCount: sandbox.CountsApart()}
	for _, p := range probes() {
		if p.group == sessionGroup && mode != sandbox.RootMode {
			continue
		}
		was, is := plain[p.name], inside[p.name]
		row := Row{Group: p.group, Name: p.name, What: p.what, Plain: was.Outcome, PlainWhy: was.Detail, Sandbox: is.Outcome, Detail: is.Detail}
		if row.Sandbox == "" {
			row.Sandbox, row.Detail = CannotRun, "no answer"
		}
		result.Rows = append(result.Rows, row)
	}
	harm := Row{Group: "files", Name: "harm-seen-from-outside", What: "Change a victim's file in a way that no probe reported.",
		Plain: Succeeded, Sandbox: Blocked}
	if !maps.Equal(before, after) {
		harm.Sandbox = Succeeded
	}
	result.Rows = append([]Row{harm}, result.Rows...)
	return result, nil
}

// answer is what the runner prints for one probe.
type answer struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
}

// sceneVariable carries the scene to the processes of this package. Nothing in
// it is secret.
const sceneVariable = "HANDRAIL_ATTACK_SCENE"

// Main returns at once, unless this process was started by this package. It is
// called in main right after sandbox.Stage2.
func Main() {
	if len(os.Args) == 0 || os.Args[0] != Arg0 {
		return
	}
	if os.Geteuid() == 0 && len(os.Args) > 1 && os.Args[1] == "euid" {
		fmt.Println("root")
		os.Exit(0)
	}
	var s scene
	if err := json.Unmarshal([]byte(os.Getenv(sceneVariable)), &s); err != nil {
		fmt.Fprintln(os.Stderr, "cannot read the scene:", err)
		os.Exit(2)
	}
	switch {
	case len(os.Args) == 1:
		runAll(func(p probe) bool { return p.group != sessionGroup })
	case os.Args[1] == "session":
		runAll(func(p probe) bool { return p.group == sessionGroup })
	case os.Args[1] == "victim":
		beVictim(s)
	case os.Args[1] == "peer":
		bePeer(s)
	default:
		runOne(&s, os.Args[1])
	}
	os.Exit(0)
}

// probeBound ends a probe that hangs, for instance in a connect nobody answers.
const probeBound = 5 * time.Second

// runAll runs every wanted probe in a process of its own and prints an answer
// each.
func runAll(wanted func(probe) bool) {
	enc := json.NewEncoder(os.Stdout)
	for _, p := range probes() {
		if !wanted(p) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeBound)
		cmd := exec.CommandContext(ctx, "/proc/self/exe", p.name)
		cmd.Args[0] = Arg0
		// The race detector would sleep a second at the end of each.
		cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GORACE=atexit_sleep_ms=0")
		out, err := cmd.Output()
		a := answer{Name: p.name, Outcome: CannotRun}
		var exit *exec.ExitError
		switch {
		case json.Unmarshal(out, &a) == nil && a.Outcome != "":
		case ctx.Err() != nil:
			a.Outcome, a.Detail = Blocked, "waited for ever"
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
			a.Outcome, a.Detail = Blocked, "killed: "+exit.Sys().(syscall.WaitStatus).Signal().String()
		case err != nil:
			a.Detail = err.Error()
		}
		a.Name = p.name
		cancel()
		_ = enc.Encode(a)
	}
}

// runOne runs one probe and prints its answer.
func runOne(s *scene, name string) {
	for _, p := range probes() {
		if p.name != name {
			continue
		}
		a := answer{Name: name, Outcome: Succeeded}
		if err := p.run(s); err != nil {
			a.Outcome, a.Detail = Blocked, err.Error()
			var cannot cannotRun
			if errors.As(err, &cannot) {
				a.Outcome = CannotRun
			}
		}
		_ = json.NewEncoder(os.Stdout).Encode(a)
		return
	}
}

// cannotRun is the error of a probe that has nothing to aim at.
type cannotRun struct{ why string }

func (c cannotRun) Error() string { return c.why }

// collect reads the answers of a runner.
func collect(text string) (map[string]answer, error) {
	answers := map[string]answer{}
	in := bufio.NewScanner(strings.NewReader(text))
	for in.Scan() {
		var a answer
		if json.Unmarshal(in.Bytes(), &a) == nil {
			answers[a.Name] = a
		}
	}
	if len(answers) == 0 {
		return nil, fault.New(fault.Unavailable, "cannot attack: the runner gave no answer: %s", strings.TrimSpace(text))
	}
	return answers, nil
}
