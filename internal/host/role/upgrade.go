package role

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/inspect"
	"handrail.dev/handrail/internal/host/socket"
	"handrail.dev/handrail/internal/host/warden"
)

// A node becomes a newer program while its sessions go on: whoever owns it puts
// the program in the place of the one that runs and says `node upgrade`. The
// supervisor checks the file, asks it what it can take over, and hands it to the
// warden, which becomes it. The link, which carries the sessions, and the
// supervisor itself stay what they are until the next start.

const (
	upgradeTime = time.Minute
	formTime    = 10 * time.Second
	maxForm     = 4096
)

// Newer finds the program that is installed now; where the entrance is stays.
type Newer func(ctx context.Context) (Node, error)

// InstalledNode is the Newer of a program that is a node and nothing else.
func InstalledNode(ctx context.Context) (Node, error) {
	f, version, err := Installed(ctx)
	if err != nil {
		return Node{}, err
	}
	return Node{Version: version, Program: PathOf(f), Release: func() { f.Close() }}, nil
}

// PathOf is an open file for whoever this process starts, whatever it is called
// by then.
func PathOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// running is the node that a Watch runs.
type running struct {
	Node
	mode     string
	upgrades *os.File       // the warden's ear
	kin      []inspect.File // programs that keepers of earlier sessions still run
	mu       sync.Mutex     // one upgrade at a time
}

// form is what a program says that it can take over.
type form struct {
	Handover int    `json:"handover"`
	Version  string `json:"version"`
}

func sayForm(version string) error {
	return json.NewEncoder(os.Stdout).Encode(form{warden.HandoverVersion, version})
}

// Installed opens the file that this program was started from, which may be
// another one by now, and asks it for its version. Who else could write it could
// become whoever runs it: such a file is refused.
func Installed(ctx context.Context) (f *os.File, version string, err error) {
	path, err := os.Executable()
	if err == nil {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, "", fault.Wrap(fault.Unavailable, err, "cannot find the program that is installed").
			WithHint("put it where the one that runs came from")
	}
	if err = refuseWritable(f, path); err == nil {
		version, err = formOf(ctx, f)
	}
	if err != nil {
		f.Close()
		return nil, "", err
	}
	return f, version, nil
}

func refuseWritable(f *os.File, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot use %s", path)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() && st.Uid != 0 || st.Mode&0o022 != 0 {
		return fault.New(fault.Denied, "cannot run %s as the node: others may write it", path).WithHint("chown root %s && chmod 755 %s", path, path)
	}
	return nil
}

// formOf runs the program for a moment.
func formOf(ctx context.Context, f *os.File) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, formTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, PathOf(f), wardenName, "--handover-form")
	cmd.Env, cmd.Dir, cmd.WaitDelay = environment(""), "/", drainTime
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot run the program that is installed").WithHint("is it one for this machine?")
	}
	text, _ := io.ReadAll(io.LimitReader(out, maxForm))
	var got form
	if err = cmd.Wait(); err == nil {
		err = json.Unmarshal(text, &got)
	}
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot upgrade: the program that is installed does not know how to take over")
	}
	if got.Handover != warden.HandoverVersion {
		return "", fault.New(fault.Invalid, "cannot upgrade: %s takes over in another way (%d) than this one hands over (%d)", printable([]byte(got.Version)), got.Handover, warden.HandoverVersion).
			WithHint("restart the node instead; its sessions end")
	}
	return got.Version, nil
}

// endWith asks the kernel to end this process with its supervisor: the change of
// program gave back power, and made it forget that.
func endWith(supervisor int) error {
	runtime.LockOSThread() // for good: the kernel keeps it by thread
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot ask to end with the supervisor")
	}
	if os.Getppid() != supervisor {
		return fault.New(fault.Unavailable, "cannot take over: the supervisor has ended")
	}
	return nil
}

// upgrade has the warden become what is installed now.
func (w *Watch) upgrade(ctx context.Context, newer Newer) (version string, err error) {
	r := w.node
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, upgradeTime)
	defer cancel()
	n, err := newer(ctx)
	if err != nil {
		return "", err
	}
	n.Entrance = r.Entrance
	before := r.Program
	if before == "" {
		before = Program
	}
	kin := r.kin
	if was, err := inspect.FileAt(before); err == nil {
		r.kin = append(r.kin[:len(r.kin):len(r.kin)], was)
	}
	version, err = w.hand(ctx, n)
	if err != nil {
		r.kin = kin
		n.release()
		return "", err
	}
	w.restartAs(wardenName, n.Program, w.wardenArgs(n))
	w.restartAs(linkName, n.Program, w.linkArgs(n))
	r.release() // what runs from it holds it
	r.Node = n
	return version, nil
}

func (n Node) release() {
	if n.Release != nil {
		n.Release()
	}
}

// restartAs says how a role is started when it has died.
func (w *Watch) restartAs(name, program string, args []string) {
	for _, p := range w.all {
		p.mu.Lock()
		if p.r.Name == name {
			p.r.Program, p.r.Args = program, args
		}
		p.mu.Unlock()
	}
}

func (w *Watch) hand(ctx context.Context, n Node) (string, error) {
	f, err := os.Open(n.Program)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot open the newer program")
	}
	defer f.Close()
	args := append([]string{"handrail"}, w.wardenArgs(n)...)
	return warden.Upgrade(ctx, w.node.upgrades, f, append(args, "--supervisor", fmt.Sprint(os.Getpid())))
}

// upgradeAnswer is what the supervisor says to whoever asked.
type upgradeAnswer struct {
	Version string `json:"version,omitempty"`
	Kind    string `json:"kind,omitempty"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// ServeUpgrades listens for the owner of the data folder until ctx ends.
func (w *Watch) ServeUpgrades(ctx context.Context, newer Newer) (stop func(), err error) {
	path := w.place.At("run", "node.sock")
	_ = os.Remove(path) // the lock of the folder says that nobody listens there
	l, err := socket.Listen(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot listen for upgrades")
	}
	end := context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(restartFirst)
				continue
			}
			w.answerUpgrade(ctx, c, newer)
		}
	}()
	return func() { end(); l.Close() }, nil
}

// answerUpgrade serves one owner, who says a line and hears one.
func (w *Watch) answerUpgrade(ctx context.Context, c net.Conn, newer Newer) {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if line, err := bufio.NewReader(io.LimitReader(c, maxForm)).ReadString('\n'); err != nil || line != "upgrade\n" {
		return
	}
	var a upgradeAnswer
	err := fault.New(fault.Denied, "cannot upgrade: this is the node of another account")
	if mine(c) {
		a.Version, err = "", nil
		version, uerr := w.upgrade(ctx, newer)
		if a.Version = version; uerr != nil {
			err = fault.From(uerr)
		}
	}
	if err != nil {
		a = upgradeAnswer{Kind: err.Kind.String(), Error: err.Text, Hint: err.Hint}
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_ = json.NewEncoder(c).Encode(a)
}

// mine says whether the kernel says that this account, or root, is at the other
// end.
func mine(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	uid := -1
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return err == nil && (uid == os.Geteuid() || uid == 0)
}

// AskUpgrade asks the node of a data folder to become the program that is
// installed now; its sessions go on. It returns the version that runs.
func AskUpgrade(ctx context.Context, dir string) (version string, err error) {
	path := Place{Dir: dir}.At("run", "node.sock")
	c, err := socket.Dial(ctx, path)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, err, "cannot upgrade: no node runs on %s", dir).WithHint("start it: %s node --data %s", programName(), dir)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(upgradeTime + 2*formTime))
	var a upgradeAnswer
	if _, err = io.WriteString(c, "upgrade\n"); err == nil {
		err = json.NewDecoder(io.LimitReader(c, 16*maxForm)).Decode(&a)
	}
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot hear whether the node was upgraded")
	}
	if a.Error != "" {
		f := fault.New(fault.ParseKind(a.Kind), "%s", strings.TrimSpace(a.Error))
		f.Hint = a.Hint
		return "", f
	}
	return a.Version, nil
}
