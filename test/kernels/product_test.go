package kernels

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/host/keeper"
)

// What people do on a machine, by name.
const (
	nameless = "up without a hostname"
	doctored = "doctor"
	asked    = "hosts"
	shown    = "host show"
	opened   = "a read session"
	looked   = "inspect top"
	frozen   = "pause"
	thawed   = "resume"
	stopped  = "stop"
	killed   = "a keeper that is killed"
	locked   = "lock"
	ended    = "the end of handrail"
	declared = "break-glass"
	wrote    = "a write session"
	prepared = "an account made by hand"
	again    = "a write session with that account"
	strict   = "a read session where the host wants the full floor"
	verified = "ledger verify"
)

const hostData = "/srv/handrail"

// day is what people do with handrail on this machine.
type day struct {
	*answer
	ctx  context.Context
	host string
	last *exec.Cmd // a session that is there when handrail ends
}

const lastMark = "86399"

// runHandrail lets two people work with handrail on this machine, and once more
// with a host that wants the full floor.
func (a *answer) runHandrail(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	d := day{answer: a, ctx: ctx}
	d.withoutName()
	d.up(d.first)
	d.prepare()
	d.up(func() {
		d.say("ada", again, "ssh", "--write", d.host, "--", writing)
		d.say("ada", strict, "ssh", d.host, "--", "id -u")
		d.say("ada", verified, "ledger", "verify")
	})
}

// prepare does what the host was said to want: an account for write sessions.
// It asks for the full floor, too.
func (d *day) prepare() {
	d.note(prepared, 0, "")
	for _, add := range []struct{ file, line string }{
		{"/etc/passwd", "handrail-write:x:998:998::/var/lib/handrail-write:/bin/sh\n"},
		{"/etc/group", "handrail-write:x:998:\n"},
	} {
		f, err := os.OpenFile(add.file, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString(add.line)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			d.Run[len(d.Run)-1] = ran{prepared, -1, err.Error()}
		}
	}
	if err := os.WriteFile(hostData+"/warden/policy.json", []byte(`{"least_floor": "full"}`), 0o600); err != nil {
		d.note("policy", -1, err.Error())
	}
}

// writing is what a write session does.
const writing = "id -un; touch /tmp/written; ls /tmp/written"

// withoutName starts handrail while this machine has the name that a kernel
// gives it.
func (d *day) withoutName() {
	name, err := os.Hostname()
	if err == nil {
		err = unix.Sethostname([]byte("(none)"))
	}
	if err != nil {
		d.note(nameless, -1, err.Error())
		return
	}
	d.say("ada", nameless, "up", "--data", hostData)
	if err := unix.Sethostname([]byte(name)); err != nil {
		d.note(nameless, -1, err.Error())
	}
}

func (d *day) first() {
	d.say("ada", doctored, "doctor", "--data", hostData)
	d.say("ada", "login", "login", "--local", "--data", hostData)
	d.say("ada", asked, "hosts", "-o", "json")
	d.say("ada", shown, "host", "show", d.host)
	d.say("ada", opened, "ssh", d.host, "--", "id -u; touch /srv/x")
	if d.ran(opened).Status == 255 {
		return // no shells here
	}
	d.say("ada", looked, "inspect", d.host, "top")
	d.enterCleo()
	d.pause()
	d.endOf(stopped, func() { d.say("cleo", "the brake "+stopped, "stop", "-", "--reason", "enough") })
	d.endOf(killed, func() {
		for _, pid := range processes(func(args []string) bool { return args[0] == keeper.Arg0 }) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	d.say("ada", declared, "break-glass", d.host, "--reason", "it burns")
	d.say("ada", wrote, "ssh", "--write", d.host, "--", writing)
	d.endOf(locked, func() { d.say("ada", "the brake "+locked, "lock", "cleo", "--reason", "lost laptop") })
	d.last = d.begin("ada", lastMark)
}

// enterCleo has ada add a developer, who logs in.
func (d *day) enterCleo() {
	d.say("ada", "person add", "person", "add", "cleo", "--group", "developer", "-o", "json")
	var added struct{ Token string }
	if err := json.Unmarshal([]byte(d.ran("person add").Out), &added); err != nil {
		return // it is seen in what was said
	}
	const file = "/tmp/token"
	if err := os.WriteFile(file, []byte(added.Token+"\n"), 0o600); err != nil {
		d.note("token", -1, err.Error())
		return
	}
	d.say("cleo", "login of cleo", "login", "--token-file", file)
}

// endOf has cleo open a session whose processes fled, and says how many of them
// are left when the brake has been answered.
func (d *day) endOf(name string, brake func()) {
	const mark = "86301"
	s := d.begin("cleo", mark)
	if s == nil {
		return
	}
	brake()
	_ = s.Wait()
	d.note(name, len(sleeping(mark)), s.Stdout.(*bytes.Buffer).String())
}

// begin opens a session with processes that left it and one that stays.
func (d *day) begin(who, mark string) *exec.Cmd {
	s := d.command(who, "ssh", d.host, "--", "setsid sh -c 'trap \"\" HUP TERM; sleep "+mark+" & sleep "+mark+"' & sleep "+mark)
	var out bytes.Buffer
	s.Stdout, s.Stderr = &out, &out
	if err := s.Start(); err != nil {
		d.note("begin", -1, err.Error())
		return nil
	}
	if !d.until(func() bool { return len(sleeping(mark)) == 3 }) {
		_ = s.Process.Kill()
		_ = s.Wait()
		d.note("begin", len(sleeping(mark)), out.String())
		return nil
	}
	return s
}

// pause has a session stand still and go on. The status is how many sessions are
// not as they should be.
func (d *day) pause() {
	const mark = "86302"
	s := d.begin("cleo", mark)
	if s == nil {
		return
	}
	d.say("cleo", "the brake "+frozen, "pause", "-", "--reason", "talk first")
	d.note(frozen, 1-standing(), "")
	d.say("cleo", "the end of "+frozen, "resume", "-")
	d.note(thawed, standing(), "")
	d.say("cleo", "the end of "+thawed, "stop", "-", "--reason", "enough")
	_ = s.Wait()
}

// standing is how many sessions stand still, as the kernel sees it.
func standing() (n int) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.events" && e.Name() != "freezer.state" {
			return nil
		}
		b, _ := os.ReadFile(path)
		if strings.Contains(string(b), "frozen 1") || strings.TrimSpace(string(b)) == "FROZEN" {
			n++
		}
		return nil
	})
	return n
}

// until waits for something, and says whether it came.
func (d *day) until(f func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(2 * time.Minute); !f(); {
		select {
		case <-tick.C:
		case <-late:
			return false
		case <-d.ctx.Done():
			return false
		}
	}
	return true
}

// processes are those whose arguments are meant.
func processes(meant func(args []string) bool) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"); err == nil && len(b) > 0 && meant(args) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sleeping are the living processes of a session that begin has opened.
func sleeping(mark string) []int {
	return processes(func(args []string) bool { return slices.Equal(args, []string{"sleep", mark}) })
}

// up runs handrail while f acts.
func (d *day) up(f func()) {
	up := exec.CommandContext(d.ctx, "/bin/handrail", "up", "--data", hostData, "--listen", "127.0.0.1:7680", "--ssh-listen", "127.0.0.1:7622")
	var errs bytes.Buffer
	up.Stderr = &errs
	out, err := up.StdoutPipe()
	if err == nil {
		err = up.Start()
	}
	if err != nil {
		d.note("up", -1, err.Error())
		return
	}
	d.host = ""
	said := ""
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C"); {
		said += lines.Text() + "\n"
		if f := strings.Fields(lines.Text()); len(f) > 4 && f[0] == "ssh" && f[2] == "-p" {
			d.host, _, _ = strings.Cut(f[4], "@")
		}
	}
	f()
	_ = up.Process.Signal(os.Interrupt)
	_ = up.Wait()
	d.note("up", 0, said+errs.String())
	if d.last != nil {
		d.note(ended, len(sleeping(lastMark)), "")
		_ = d.last.Wait()
		d.last = nil
	}
}

func (d *day) command(who string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, "/bin/handrail", args...)
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME=/tmp/client-"+who)
	return cmd
}

func (d *day) say(who, name string, args ...string) {
	cmd := d.command(who, args...)
	b, err := cmd.CombinedOutput()
	status := 0
	if err != nil {
		status = -1
		if cmd.ProcessState != nil {
			status = cmd.ProcessState.ExitCode()
		}
	}
	d.note(name, status, string(b))
}

func (a *answer) note(name string, status int, out string) {
	fmt.Printf("guest: %s: %d\n", name, status)
	a.Run = append(a.Run, ran{Name: name, Status: status, Out: out})
}

func (a *answer) ran(name string) ran {
	for _, r := range a.Run {
		if r.Name == name {
			return r
		}
	}
	return ran{Name: name, Status: -1, Out: "was not run"}
}
