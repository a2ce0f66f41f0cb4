package kernels

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// What a person does on a machine, by name.
const (
	asked    = "hosts"
	opened   = "a read session"
	strict   = "a read session where the host wants the full floor"
	verified = "ledger verify"
)

const hostData = "/srv/handrail"

// runHandrail starts handrail on this machine and lets a person look at the host
// and open a session; then once more, with a host that wants the full floor.
func (a *answer) runHandrail(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	a.up(ctx, func(host string) {
		a.say(ctx, "login", "login", "--local", "--data", hostData)
		a.say(ctx, asked, "hosts", "-o", "json")
		a.say(ctx, opened, "ssh", host, "--", "id -u; touch /srv/x")
	})
	policy := hostData + "/warden/policy.json"
	if err := os.WriteFile(policy, []byte(`{"least_floor": "full"}`), 0o600); err != nil {
		a.Run = append(a.Run, ran{strict, -1, err.Error()})
		return
	}
	a.up(ctx, func(host string) {
		a.say(ctx, strict, "ssh", host, "--", "id -u")
		a.say(ctx, verified, "ledger", "verify")
	})
}

// up runs handrail while f acts.
func (a *answer) up(ctx context.Context, f func(host string)) {
	up := exec.CommandContext(ctx, "/bin/handrail", "up", "--data", hostData, "--listen", "127.0.0.1:7680", "--ssh-listen", "127.0.0.1:7622")
	var errs bytes.Buffer
	up.Stderr = &errs
	out, err := up.StdoutPipe()
	if err == nil {
		err = up.Start()
	}
	if err != nil {
		a.Run = append(a.Run, ran{"up", -1, err.Error()})
		return
	}
	host := ""
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C"); {
		if f := strings.Fields(lines.Text()); len(f) > 4 && f[0] == "ssh" && f[2] == "-p" {
			host, _, _ = strings.Cut(f[4], "@")
		}
	}
	f(host)
	_ = up.Process.Signal(os.Interrupt)
	_ = up.Wait()
	a.Run = append(a.Run, ran{"up", 0, errs.String()})
}

func (a *answer) say(ctx context.Context, name string, args ...string) {
	cmd := exec.CommandContext(ctx, "/bin/handrail", args...)
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME=/tmp/client")
	b, err := cmd.CombinedOutput()
	r := ran{Name: name, Out: string(b)}
	if err != nil {
		r.Status = -1
		if cmd.ProcessState != nil {
			r.Status = cmd.ProcessState.ExitCode()
		}
	}
	a.Run = append(a.Run, r)
}

func (a *answer) ran(name string) ran {
	for _, r := range a.Run {
		if r.Name == name {
			return r
		}
	}
	return ran{Name: name, Status: -1, Out: "was not run"}
}
