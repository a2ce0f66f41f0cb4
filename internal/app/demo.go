package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/lab"
	"handrail.dev/handrail/internal/host/role"
)

// The demo is a real installation with a story: three lab hosts, four people
// named for what they do, and what they did, each act by the command that a
// person would type. Nothing is written behind the doorway's back.

// demo tells the story.
type demo struct {
	dir string // its data folder
	log *slog.Logger
	out func(format string, args ...any)
}

// demoHosts are the lab hosts.
var demoHosts = []struct{ name, environment, scope, service string }{
	{"web-1", "production", "none", "shop"},
	{"db-1", "production", "pci", "shop"},
	{"build-1", "dev", "none", "build"},
}

// demoPeople are the people beside the first.
var demoPeople = []struct{ name, group string }{
	{"operator", "operator"}, {"developer", "developer"}, {"auditor", "auditor"},
}

// demoFiles is what lies on every lab host.
func demoFiles(service string) map[string]string {
	var journal strings.Builder
	for n := range 40 {
		level := "INFO "
		if n%13 == 7 {
			level = "ERROR"
		}
		fmt.Fprintf(&journal, "2026-01-01T14:%02d:00Z %s %s: order %d handled in %d ms\n", n, level, service, 1000+n, 12+n*7%90)
	}
	return map[string]string{
		"/var/log/" + service + ".log":       journal.String(),
		"/etc/" + service + "/settings.conf": "workers = 4\ntimeout = 30s\n",
	}
}

// Demo runs the demo until ctx ends, in a folder of its own that is removed
// afterwards unless one was named.
func Demo(ctx context.Context, c UpConfig) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Unavailable, "cannot make the demo's lab hosts: that needs root").
			WithHint("sudo handrail demo, or look around with: handrail up")
	}
	if c.Data == "" {
		dir, err := os.MkdirTemp("/var/tmp", "handrail-demo-")
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot make the demo's folder").WithHint("handrail demo --data DIR")
		}
		defer os.RemoveAll(dir)
		c.Data = dir
	}
	c.Demo = true
	c.Also = func(ctx context.Context, r Running) error {
		d := &demo{dir: r.Data, log: logger(), out: func(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }}
		return d.tell(ctx)
	}
	return Up(ctx, c)
}

func (d *demo) home(person string) string { return filepath.Join(d.dir, "people", person) }

// as runs one command as a person.
func (d *demo) as(ctx context.Context, person string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, role.Program, args...)
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+d.home(person), "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fault.New(fault.Internal, "cannot tell the demo's story: %s: handrail %s: %s",
			person, strings.Join(args, " "), strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// tell makes the hosts and people, then plays the story.
func (d *demo) tell(ctx context.Context) error {
	d.out("\nThe demo's hosts and people arrive …")
	if err := os.MkdirAll(filepath.Join(d.dir, "people"), 0o700); err != nil {
		return err
	}
	if _, err := d.as(ctx, "admin", "login", "--local", "--data", d.dir); err != nil {
		return err
	}
	for _, p := range demoPeople {
		if err := d.enter(ctx, p.name, p.group); err != nil {
			return err
		}
	}
	for _, h := range demoHosts {
		if err := d.host(ctx, h.name, h.environment, h.scope, h.service); err != nil {
			return err
		}
	}
	if err := d.play(ctx); err != nil {
		return err
	}
	d.out("The story is told: open the page. One request waits for your yes or no, one session is live to watch.")
	return nil
}

// enter adds a person and logs them in.
func (d *demo) enter(ctx context.Context, name, group string) error {
	out, err := d.as(ctx, "admin", "person", "add", name, "--group", group, "-o", "json")
	if err != nil {
		return err
	}
	var added struct{ Token string }
	if err := json.Unmarshal([]byte(out), &added); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot add the demo's %s", name)
	}
	file := filepath.Join(d.dir, "people", name+".token")
	if err := os.WriteFile(file, []byte(added.Token), 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = d.as(ctx, name, "login", "--token-file", file)
	return err
}

// host invites a lab host and starts it.
func (d *demo) host(ctx context.Context, name, environment, scope, service string) error {
	out, err := d.as(ctx, "admin", "host", "invite", name, "--env", environment, "--scope", scope, "--service", service, "-o", "json")
	if err != nil {
		return err
	}
	var invited struct{ Token string }
	if err := json.Unmarshal([]byte(out), &invited); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot invite the demo's %s", name)
	}
	if _, err := StartLab(ctx, filepath.Join(d.dir, "lab", name), name, invited.Token, demoFiles(service), d.dir); err != nil {
		return err
	}
	return d.waitOnline(ctx, name)
}

// StartLab starts a lab host whose node joins with token.
func StartLab(ctx context.Context, dir, name, token string, files map[string]string, hide ...string) (*lab.Host, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make a folder for lab host %s", name)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot find this program")
	}
	all := map[string]string{"/run/handrail-token": token + "\n"}
	for path, text := range files {
		all[path] = text
	}
	const data = "/var/lib/handrail-node"
	script := "set -e; " + lab.ProgramPath + " join --data " + data + " --name " + name + " --token-file /run/handrail-token >/dev/null; " +
		"rm /run/handrail-token; exec " + lab.ProgramPath + " node --data " + data
	return lab.Start(ctx, lab.Config{
		Name: name, Dir: dir, Program: program, Run: []string{"/bin/sh", "-c", script}, Files: all, Hide: hide, Stderr: os.Stderr,
	})
}

// waitOnline waits until a host's node has come.
func (d *demo) waitOnline(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if out, err := d.as(ctx, "admin", "host", "show", name); err == nil && strings.Contains(out, "online") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "cannot tell the demo's story: %s did not come online", name)
		case <-tick.C:
		}
	}
}

// grantOf reads the id that elevate and break-glass print.
func grantOf(out string) (string, error) {
	var asked struct{ ID string }
	if err := json.Unmarshal([]byte(out), &asked); err != nil || asked.ID == "" {
		return "", errors.New("no grant id in " + out)
	}
	return asked.ID, nil
}

// play is what happened before the visitor came.
func (d *demo) play(ctx context.Context) error {
	if _, err := d.as(ctx, "developer", "ssh", "web-1", "--", "grep ERROR /var/log/shop.log; df -h /"); err != nil {
		return err
	}
	out, err := d.as(ctx, "developer", "elevate", "web-1", "--reason", "timeouts since 14:05, raise them", "--ticket", "OPS-7", "--for", "30m", "--root", "-o", "json")
	if err != nil {
		return err
	}
	jump, err := grantOf(out)
	if err != nil {
		return err
	}
	fix := "sed -i 's/timeout = 30s/timeout = 60s/' /etc/shop/settings.conf; cat /etc/shop/settings.conf"
	for _, step := range [][]string{
		{"operator", "approve", jump, "--yes"},
		{"developer", "ssh", "--write", "web-1", "--", fix},
		{"developer", "done", jump},
	} {
		if _, err := d.as(ctx, step[0], step[1:]...); err != nil {
			return err
		}
	}
	if out, err = d.as(ctx, "operator", "break-glass", "build-1", "--reason", "the build queue stands still", "-o", "json"); err != nil {
		return err
	}
	glass, err := grantOf(out)
	if err != nil {
		return err
	}
	for _, step := range [][]string{
		{"operator", "ssh", "--write", "build-1", "--", "cat /etc/build/settings.conf"},
		{"operator", "done", glass},
		{"developer", "elevate", "db-1", "--reason", "a migration left a lock behind", "--ticket", "OPS-8", "--for", "20m"},
	} {
		if _, err := d.as(ctx, step[0], step[1:]...); err != nil {
			return err
		}
	}
	go d.live(ctx)
	return nil
}

// live keeps one session for the visitor to watch.
func (d *demo) live(ctx context.Context) {
	cmd := exec.CommandContext(ctx, role.Program, "ssh", "-t", "web-1", "--", "top -b -d 2")
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+d.home("developer"), "TERM=xterm")
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		d.log.Warn("the demo's live session ended", "error", err)
	}
}
