package attack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// scene tells the probes where the victims are.
type scene struct {
	Dir     string // mode 0777, outside the private places
	Tmp     string // a 0666 file in the host's /tmp
	VarTmp  string
	Shm     string // a 0666 file in /dev/shm
	Hidden  string // a readable file in a folder that the spec hides
	Suite   int    // the process that runs the attack
	PID     int    // a process with the session's uid
	Address uintptr
	Secret  int // its descriptor of an unlinked file
	Writer  int // its writable descriptor of Dir/held
	TCP     int
	TCP6    int
	UDP     int
	Unix    string // stream socket by path, 0777
	Dgram   string // datagram socket by path, 0777
	Named   string // abstract stream socket
	ShmID   int
	MsgID   int
	SemID   int
	Queue   string
	TTY     string // a terminal of the host, 0666
	Setuid  string // a setuid root copy of this program, root only
	Handle  []byte // the secret's file handle
	Kind    int32
	Peer    peer
}

// secretText is what no probe may read.
const secretText = "the-attacked-secret"

// uid of the attacker in root mode; no account has it.
const attackerUID = 4_199_999

// setting is a scene with what must be taken down again.
type setting struct {
	scene
	mode sandbox.Mode
	undo []func()
}

func (s *setting) later(f func()) { s.undo = append(s.undo, f) }

func (s *setting) tearDown() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	s.undo = nil
}

// setUp makes the victims.
func setUp(ctx context.Context, mode sandbox.Mode) (*setting, error) {
	s := &setting{mode: mode, scene: scene{Suite: os.Getpid()}}
	for _, step := range []func() error{s.makeFolder, s.makeFiles, s.makeSockets, s.makeIPC, s.makeTerminal,
		func() error { return s.makeVictim(ctx) }} {
		if err := step(); err != nil {
			s.tearDown()
			return nil, err
		}
	}
	return s, nil
}

// folderVariable overrides where the victims' files lie.
const folderVariable = "HANDRAIL_ATTACK_FOLDER"

func (s *setting) makeFolder() error {
	base := os.Getenv(folderVariable)
	if base == "" {
		base = "/var/lib"
		if s.mode != sandbox.RootMode {
			base, _ = os.UserHomeDir()
		}
	}
	dir, err := os.MkdirTemp(base, "handrail-attack-")
	if err != nil {
		return err
	}
	s.later(func() { _ = os.RemoveAll(dir) })
	s.Dir = dir
	return os.Chmod(dir, 0o777)
}

// targets are the files that probes change, one each.
var targets = [...]string{"write", "truncate", "unlink", "rename", "chmod", "chown", "utimes", "xattr", "reopen",
	"creat", "openat2", "link", "lock", "lease", "held", "procroot", "mask"}

// own gives a file to the attacker.
func (s *setting) own(path string) error {
	if s.mode != sandbox.RootMode {
		return nil
	}
	return os.Chown(path, attackerUID, attackerUID)
}

func (s *setting) makeFiles() error {
	if err := s.renew(); err != nil {
		return err
	}
	for at, where := range map[*string]string{&s.Tmp: "/tmp", &s.VarTmp: "/var/tmp", &s.Shm: "/dev/shm"} {
		f, err := os.CreateTemp(where, "handrail-attack-")
		if err != nil {
			return err
		}
		f.Close()
		*at = f.Name()
		s.later(func() { _ = os.Remove(f.Name()) })
		if err := os.Chmod(f.Name(), 0o666); err != nil {
			return err
		}
	}
	s.Hidden = s.Dir + "/hidden/key"
	if s.mode == sandbox.RootMode {
		s.Setuid = s.Dir + "/setuid"
		if err := copySelf(s.Setuid); err != nil {
			return err
		}
	}
	// The handle lets a probe open the file without its name.
	if h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, s.Dir+"/secret", 0); err == nil {
		s.Handle, s.Kind = h.Bytes(), h.Type()
	}
	return nil
}

// renew puts the files back to what the first run found. The plain run removed
// and changed some.
func (s *setting) renew() error {
	for _, d := range []string{"rmdir", "hidden", "gone"} {
		if err := os.MkdirAll(s.Dir+"/"+d, 0o777); err != nil {
			return err
		}
	}
	if err := os.Chmod(s.Dir+"/rmdir", 0o777); err != nil {
		return err
	}
	for _, t := range targets {
		path := s.Dir + "/" + t
		if err := os.WriteFile(path, []byte("victim\n"), 0o666); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(path, 0o666), s.own(path)); err != nil {
			return err
		}
	}
	for _, made := range []string{"created", "mkdir", "symlink", "hardlink", "fifo-made", "renamed", "tmpfile", "rename-target"} {
		_ = os.Remove(s.Dir + "/" + made)
	}
	if err := os.WriteFile(s.Dir+"/hidden/key", []byte(secretText), 0o644); err != nil {
		return err
	}
	if _, err := os.Lstat(s.Dir + "/secret"); err == nil {
		return errors.Join(os.WriteFile(s.Dir+"/secret", []byte(secretText), 0o644), os.Chmod(s.Dir+"/secret", 0o644))
	}
	if err := unix.Mkfifo(s.Dir+"/fifo", 0o666); err != nil {
		return err
	}
	fifo, err := os.OpenFile(s.Dir+"/fifo", os.O_RDWR, 0) // a reader
	if err != nil {
		return err
	}
	s.later(func() { fifo.Close() })
	return errors.Join(
		os.Chmod(s.Dir+"/fifo", 0o666),
		os.WriteFile(s.Dir+"/secret", []byte(secretText), 0o644),
		os.Link(s.Dir+"/secret", s.Dir+"/gone/other-name"),
		os.WriteFile(s.Dir+"/secret.bak", []byte(secretText), 0o644),
		os.WriteFile(s.Dir+"/copy", []byte(secretText), 0o644),
		os.Symlink("secret", s.Dir+"/alias"),
	)
}

func copySelf(to string) error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return errors.Join(out.Close(), os.Chmod(to, 0o755|os.ModeSetuid))
}

// makeSockets listens on everything.
func (s *setting) makeSockets() error {
	keep := func(c io.Closer, err error) error {
		if err == nil {
			s.later(func() { c.Close() })
		}
		return err
	}
	s.Unix, s.Dgram, s.Named = s.Dir+"/stream", s.Dir+"/dgram", "@handrail-attack-"+filepath.Base(s.Dir)
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": s.Unix, "named": s.Named} {
		kind := network
		if network == "named" {
			kind = "unix"
		}
		l, err := net.Listen(kind, address)
		if err != nil && network == "tcp6" {
			continue // a host without IPv6
		}
		if err := keep(l, err); err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			if network == "tcp" {
				s.TCP = a.Port
			} else {
				s.TCP6 = a.Port
			}
		}
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err := keep(u, err); err != nil {
		return err
	}
	s.UDP = u.LocalAddr().(*net.UDPAddr).Port
	d, err := net.ListenPacket("unixgram", s.Dgram)
	if err := keep(d, err); err != nil {
		return err
	}
	return errors.Join(os.Chmod(s.Unix, 0o777), os.Chmod(s.Dgram, 0o777))
}

// makeIPC makes System V and POSIX objects that everybody may use. A kind that
// the kernel lacks stays -1, and its probe cannot run.
func (s *setting) makeIPC() error {
	get := func(trap uintptr, a, b, c uintptr) int {
		id, _, errno := unix.Syscall(trap, a, b, c)
		if errno != 0 {
			return -1
		}
		return int(id)
	}
	const create = 0o1000 | 0o666 // IPC_CREAT
	s.ShmID = get(unix.SYS_SHMGET, 0, 4096, create)
	s.MsgID = get(unix.SYS_MSGGET, 0, create, 0)
	s.SemID = get(unix.SYS_SEMGET, 0, 1, create)
	s.later(func() {
		_, _, _ = unix.Syscall(unix.SYS_SHMCTL, uintptr(s.ShmID), 0, 0) // IPC_RMID
		_, _, _ = unix.Syscall(unix.SYS_MSGCTL, uintptr(s.MsgID), 0, 0)
		_, _, _ = unix.Syscall6(unix.SYS_SEMCTL, uintptr(s.SemID), 0, 0, 0, 0, 0)
	})
	s.Queue = filepath.Base(s.Dir)
	if fd, err := openQueue(s.Queue, unix.O_CREAT|unix.O_RDWR); err == nil {
		_ = unix.Fchmod(fd, 0o666)
		unix.Close(fd)
		s.later(func() {
			name, _ := unix.BytePtrFromString(s.Queue)
			_, _, _ = unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
		})
	} else {
		s.Queue = ""
	}
	return nil
}

func openQueue(name string, flags int) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags), 0o666, 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// makeTerminal opens a terminal of the host as if somebody had logged in and
// left it open to messages.
func (s *setting) makeTerminal() error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	s.later(func() { master.Close() })
	_ = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil
	}
	s.TTY = fmt.Sprintf("/dev/pts/%d", n)
	return os.Chmod(s.TTY, 0o666)
}

// makeVictim starts a process with the attacker's own uid: stricter than a
// real session, whose uid nobody else has.
func (s *setting) makeVictim(ctx context.Context) error {
	cmd := s.command(ctx, "victim")
	cmd.Env = append(cmd.Env, "ATTACKED="+secretText)
	in, err := cmd.StdinPipe() // it ends when we do
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.later(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s.PID = cmd.Process.Pid
	_, err = fmt.Fscan(out, &s.Address, &s.Secret, &s.Writer)
	return err
}

// victimMemory is what a probe tries to read and to change.
var victimMemory = []byte(secretText)

func beVictim(s scene) {
	w, err := unix.Open(s.Dir+"/held", unix.O_RDWR, 0)
	if err != nil {
		os.Exit(2)
	}
	holdSecret(w)
}

// holdSecret keeps the secret in memory and in a file without a name, says
// where, and stays until its input ends.
func holdSecret(more any) {
	fd, err := unix.MemfdCreate("victim", 0)
	if err != nil {
		os.Exit(2)
	}
	_, _ = unix.Write(fd, victimMemory)
	fmt.Println(uintptr(unsafe.Pointer(&victimMemory[0])), fd, more)
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(victimMemory)
}

// command is this program as the attacker, without a sandbox.
func (s *setting) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = Arg0
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", sceneVariable + "=" + s.json()}
	cmd.WaitDelay = time.Second
	if s.mode == sandbox.RootMode {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: attackerUID, Gid: attackerUID}}
	}
	return cmd
}

func (s *setting) json() string {
	b, err := json.Marshal(s.scene)
	if err != nil {
		return ""
	}
	return string(b)
}

// plain runs the probes without a sandbox.
func (s *setting) plain(ctx context.Context, args ...string) (map[string]answer, error) {
	out, err := s.command(ctx, args...).Output()
	answers, bad := collect(string(out))
	if bad != nil {
		return nil, errors.Join(bad, err)
	}
	return answers, nil
}

// attackPids is the limit that the fork bomb must not pass.
const attackPids = 200

// sandboxed runs the probes in a read session.
func (s *setting) sandboxed(ctx context.Context, without []string) (map[string]answer, sandbox.Ready, error) {
	return s.inside(ctx, sandbox.Spec{
		Level: sandbox.Read, Mode: s.mode, UID: attackerUID, GID: attackerUID, User: "attacker",
		Self: true, Command: []string{Arg0}, Env: []string{sceneVariable + "=" + s.json()},
		Secrets: []string{s.Dir + "/secret"}, Hide: []string{s.Dir + "/hidden"}, Hints: true, LeastFloor: sandbox.Reduced,
	}, without)
}

// inside runs the probes of a spec's command and returns their answers.
func (s *setting) inside(ctx context.Context, spec sandbox.Spec, without []string) (map[string]answer, sandbox.Ready, error) {
	o := sandbox.Options{}
	cg, err := sandbox.NewCgroup("attack-"+strings.ToLower(rand.Text()), sandbox.Limits{Pids: attackPids, MemoryBytes: 1 << 30})
	if err == nil {
		o.Cgroup = cg
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_, _ = cg.Kill(ctx)
			_ = cg.Remove()
		}()
	} else if s.mode == sandbox.RootMode {
		return nil, sandbox.Ready{}, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, sandbox.Ready{}, fault.Wrap(fault.Unavailable, err, "cannot attack")
	}
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	c, err := sandbox.StartWithout(ctx, spec, o, without...)
	w.Close()
	if err != nil {
		return nil, sandbox.Ready{}, err
	}
	var b bytes.Buffer
	_, _ = io.Copy(&b, r)
	if _, err := c.Wait(); err != nil {
		return nil, c.Ready, err
	}
	answers, err := collect(b.String())
	return answers, c.Ready, err
}

// holds reports whether the text has the secret.
func holds(b []byte) bool { return strings.Contains(string(b), secretText) }

// snapshot describes the victims' files, so that harm shows which no probe
// reports.
func (s *setting) snapshot() map[string]string {
	files := map[string]string{}
	_ = filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		i, err := d.Info()
		if err != nil {
			return nil
		}
		text := fmt.Sprint(i.Mode(), i.ModTime().UnixNano())
		if i.Mode().IsRegular() && i.Size() < 1<<16 {
			b, _ := os.ReadFile(path)
			text += string(b)
		}
		files[path] = text
		return nil
	})
	for _, path := range []string{s.Tmp, s.VarTmp, s.Shm} {
		b, _ := os.ReadFile(path)
		files[path] = string(b)
	}
	return files
}
