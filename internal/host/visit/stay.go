package visit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/role"
)

// What a node that comes to stay says to the server, line by line.
const (
	StaySaid = "handrail-stay said "
	StayDone = "handrail-stay done"
)

// StayOptions say how a node stays.
type StayOptions struct {
	Unlink string   // the folder that brought the program; may be empty
	Data   string   // where its data will lie
	Run    []string // what follows the program's name, to run the node
	Undo   bool     // end it and take it away
}

const unitName = "handrail-node.service"

// Stay makes this host's node a resident one: the program and its data lie in
// one folder, it joins with the token from in (never argv), and something
// starts it: systemd where that is process 1, else nothing yet, and then it
// says what somebody must put where. It needs root.
func Stay(ctx context.Context, o StayOptions, in io.Reader, out io.Writer) error {
	if o.Unlink != "" {
		if err := settle(o.Unlink); err != nil {
			return err
		}
	}
	var token string
	if !o.Undo {
		var err error
		if token, err = firstLine(in); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "cannot stay: this account is not root, and sudo asks it for a password").
			WithHint("let it run sudo without a password for the length of the adoption")
	}
	unix.Umask(0o022) // that of what brought us is stricter; the link's account must run the program
	s := stay{o, out, filepath.Join(o.Data, "bin", "handrail-node")}
	if o.Undo {
		return s.undo(ctx)
	}
	for _, other := range []string{"server", "link"} { // before anything is touched: what is here stays
		if _, err := os.Stat(filepath.Join(o.Data, other)); err == nil {
			return fault.New(fault.Conflict, "cannot stay: %s holds a handrail %s already", o.Data, map[string]string{"server": "server", "link": "node"}[other]).
				WithHint("to join it to this installation, end what runs there and remove %s", o.Data)
		}
	}
	if err := s.settleIn(ctx, token); err != nil {
		_ = s.undo(context.WithoutCancel(ctx)) // what was put here goes, whatever it was that failed
		return err
	}
	_, err := fmt.Fprintln(out, StayDone)
	return err
}

type stay struct {
	o       StayOptions
	out     io.Writer
	program string
}

func (s stay) say(format string, args ...any) {
	fmt.Fprintf(s.out, StaySaid+"%s\n", fmt.Sprintf(format, args...))
}

func (s stay) settleIn(ctx context.Context, token string) error {
	p, err := role.Prepare(s.o.Data, false)
	if err != nil {
		return err
	}
	if err := s.putProgram(); err != nil {
		return err
	}
	s.say("program and data lie in %s", s.o.Data)
	joined, err := p.Join(ctx, token, link.JoinOptions{})
	if err != nil {
		return err
	}
	s.say("joined as %s (%s)", joined.Name, joined.Node)
	if bySystemd() {
		return s.unit(ctx)
	}
	return s.process()
}

// putProgram copies this program to where it stays; a crash leaves none or all.
func (s stay) putProgram() error {
	fail := func(err error) error {
		return fault.Wrap(fault.Unavailable, err, "cannot put the program to %s", s.program)
	}
	if err := os.MkdirAll(filepath.Dir(s.program), 0o755); err != nil {
		return fail(err)
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return fail(err)
	}
	defer from.Close()
	to, err := os.OpenFile(s.program+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return fail(err)
	}
	if _, err = io.Copy(to, from); err == nil {
		err = to.Sync()
	}
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(s.program+".new", s.program)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// bySystemd says whether systemd is process 1 here.
func bySystemd() bool {
	st, err := os.Stat("/run/systemd/system")
	return err == nil && st.IsDir()
}

func (s stay) command() []string {
	return append(append([]string{s.program}, s.o.Run...), "--data", s.o.Data)
}

func (s stay) unit(ctx context.Context) error {
	text := fmt.Sprintf(`[Unit]
Description=handrail: this host's node
Documentation=https://handrail.dev
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=%s
Restart=always
RestartSec=2
KillMode=mixed
TimeoutStopSec=20
Delegate=yes

[Install]
WantedBy=multi-user.target
`, strings.Join(s.command(), " "))
	if err := os.WriteFile(filepath.Join("/etc/systemd/system", unitName), []byte(text), 0o644); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write the unit %s", unitName)
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", "--quiet", unitName}, {"restart", unitName}} {
		if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot start %s: systemctl %s: %s", unitName, args[0], bytes.TrimSpace(out))
		}
	}
	s.say("systemd runs it: systemctl status %s", unitName)
	return nil
}

// process starts the node by itself. It watches its own halves; nothing starts
// it after a reboot yet, and that is said.
func (s stay) process() error {
	log, err := os.OpenFile(filepath.Join(s.o.Data, "node.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start the node")
	}
	defer log.Close()
	args := s.command()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start the node")
	}
	s.say("it runs as process %d; its log is %s/node.log", cmd.Process.Pid, s.o.Data)
	_ = cmd.Process.Release()
	s.say("this host has no systemd: so that it runs after a reboot, put this line where the host starts its services: %s", strings.Join(args, " "))
	return nil
}

// lastWords is the end of the node's log, for whoever wonders why it did not come.
func (s stay) lastWords() []string {
	b, err := os.ReadFile(filepath.Join(s.o.Data, "node.log"))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-4096):])), "\n")
	return lines[max(0, len(lines)-5):]
}

const endPatience = 15 * time.Second

// undo ends the node and takes away what Stay put here.
func (s stay) undo(ctx context.Context) error {
	if bySystemd() {
		_ = exec.CommandContext(ctx, "systemctl", "disable", "--now", unitName).Run() // there may be none
		_ = os.Remove(filepath.Join("/etc/systemd/system", unitName))
		_ = exec.CommandContext(ctx, "systemctl", "daemon-reload").Run()
	}
	if err := s.end(ctx); err != nil {
		return err
	}
	for _, line := range s.lastWords() {
		s.say("its log: %s", line)
	}
	// Only what is a node's: a folder that holds a server too is not taken away.
	if _, err := os.Stat(filepath.Join(s.o.Data, "server")); err == nil {
		return fault.New(fault.Conflict, "cannot remove %s: it holds a server", s.o.Data)
	}
	if _, err := os.Stat(s.program); errors.Is(err, fs.ErrNotExist) {
		s.say("there was no node of ours")
	} else if err := os.RemoveAll(s.o.Data); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remove %s", s.o.Data)
	} else {
		s.say("the node is ended, and %s is removed", s.o.Data)
	}
	if s.o.Undo {
		fmt.Fprintln(s.out, StayDone)
	}
	return nil
}

// end ends the process that holds the data folder, if it is our program.
func (s stay) end(ctx context.Context) error {
	var r role.Running
	b, err := os.ReadFile(filepath.Join(s.o.Data, "up.json"))
	if err != nil || json.Unmarshal(b, &r) != nil || r.PID <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.PID)); err != nil || strings.TrimSuffix(exe, " (deleted)") != s.program {
		return nil // another process has that number now
	}
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return nil
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return nil
		}
	}
}
