package stack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// JVM is asked by its own protocol, by the account that it runs as: a file says
// that somebody wants to talk, a signal that it catches makes it look, and it
// answers on a socket beside the file.

// JVMRequest says how to reach it.
type JVMRequest struct {
	Request
	Root    int // its root folder
	Pidfd   int
	EUID    int
	Catches bool     // it handles SIGQUIT: one that does not would be ended by it
	Args    []string // with which it was started
}

const (
	maxDumpText = 8 << 20
	jvmPatience = 5 * time.Second
)

// JVM asks for a dump of its threads.
func JVM(r JVMRequest) (Dump, error) {
	d := Dump{Method: "the JVM's own attach protocol, spoken by its own account (a file .attach_pid in its /tmp for a moment, a signal that it catches; its socket .java_pid stays there); its stop at a safepoint was within the time of the answer"}
	for _, a := range r.Args {
		if strings.Contains(a, "DisableAttachMechanism") && !strings.Contains(a, "-XX:-") {
			return d, fault.New(fault.Unavailable, "cannot ask this JVM: it was started with -XX:+DisableAttachMechanism")
		}
	}
	tmp, err := r.temporary()
	if err != nil {
		return d, err
	}
	defer unix.Close(tmp)
	conn, err := r.connect(tmp)
	if err != nil {
		if err = r.wake(tmp); err != nil {
			return d, err
		}
		if conn, err = r.connect(tmp); err != nil {
			return d, err
		}
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(jvmPatience))
	began := time.Now()
	if _, err := conn.Write([]byte("1\x00threaddump\x00-l\x00\x00\x00")); err != nil {
		return d, fault.Wrap(fault.Unavailable, err, "cannot ask the JVM")
	}
	text, err := io.ReadAll(io.LimitReader(conn, maxDumpText))
	d.Pause, d.AtMost = time.Since(began), true
	if err != nil && len(text) == 0 {
		return d, fault.Wrap(fault.Unavailable, err, "cannot hear the JVM")
	}
	status, body, _ := bytes.Cut(text, []byte("\n"))
	if strings.TrimSpace(string(status)) != "0" {
		return d, fault.New(fault.Unavailable, "cannot get a dump: the JVM answered %.100q", status)
	}
	if d.Pause > r.Limit {
		d.note("The answer took longer than the limit of %s; a JVM that was asked cannot be told to stop.", r.Limit)
	}
	d.Partial = len(text) == maxDumpText
	d.Stacks = fold(parseThreadDump(string(body)))
	return d, r.Still()
}

// temporary opens /tmp of the JVM's own tree, following no link out of it.
func (r *JVMRequest) temporary() (int, error) {
	fd, err := unix.Openat2(r.Root, "tmp", &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return -1, fault.Wrap(fault.Unavailable, err, "cannot reach the JVM's folder for temporary files")
	}
	return fd, nil
}

// connect opens the JVM's socket: only a socket, only its own, only there.
func (r *JVMRequest) connect(tmp int) (net.Conn, error) {
	name := ".java_pid" + strconv.Itoa(r.Inner)
	fd, err := unix.Openat2(tmp, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the JVM")
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != r.EUID {
		return nil, fault.New(fault.Denied, "cannot ask the JVM: what lies at its socket's place is not its socket")
	}
	d := net.Dialer{Timeout: jvmPatience}
	conn, err := d.Dial("unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the JVM")
	}
	return conn, nil
}

// wake makes the JVM listen.
func (r *JVMRequest) wake(tmp int) error {
	if !r.Catches {
		return fault.New(fault.Unavailable, "cannot ask this JVM: it does not handle the signal for it (-Xrs?), which would end it")
	}
	name := ".attach_pid" + strconv.Itoa(r.Inner)
	fd, err := unix.Openat2(tmp, name, &unix.OpenHow{Flags: unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Mode: 0o600,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case err == nil:
		unix.Close(fd)
		defer func() { _ = unix.Unlinkat(tmp, name, 0) }()
	case !errors.Is(err, unix.EEXIST): // somebody else asks at this moment
		return fault.Wrap(fault.Unavailable, err, "cannot tell the JVM that somebody asks")
	}
	if r.Pidfd < 0 {
		return fault.New(fault.Unavailable, "cannot ask the JVM: this kernel gives no safe way to signal it")
	}
	if err := r.Still(); err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(r.Pidfd, unix.SIGQUIT, nil, 0); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot ask the JVM")
	}
	for end := time.Now().Add(jvmPatience); time.Now().Before(end); nap(5 * time.Millisecond) {
		var st unix.Stat_t
		if unix.Fstatat(tmp, ".java_pid"+strconv.Itoa(r.Inner), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return nil
		}
	}
	return fault.New(fault.Unavailable, "cannot ask the JVM: it did not listen within %s (is it stopped?)", jvmPatience)
}

// parseThreadDump reads the JVM's own text. What it does not know it leaves out.
func parseThreadDump(text string) []wire.InspectStack {
	var out []wire.InspectStack
	var now *wire.InspectStack
	flush := func() {
		if now != nil {
			out = append(out, *now)
		}
		now = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, `"`):
			flush()
			now = threadHead(line)
		case now == nil:
		case trimmed == "":
			flush()
		case strings.HasPrefix(trimmed, "java.lang.Thread.State: "):
			now.State = strings.ToLower(strings.TrimPrefix(trimmed, "java.lang.Thread.State: "))
		case strings.HasPrefix(trimmed, "at ") && len(now.Frames) < maxFrames:
			now.Frames = append(now.Frames, javaFrame(strings.TrimPrefix(trimmed, "at ")))
		case strings.HasPrefix(trimmed, "- ") && len(now.Frames) > 0:
			f := &now.Frames[len(now.Frames)-1]
			f.Note = strings.TrimSpace(f.Note + " " + lockWords(trimmed[2:]))
		}
		if len(out) >= maxThreads {
			break
		}
	}
	flush()
	return out
}

// threadHead reads `"name" #12 daemon prio=5 … nid=0x1f or nid=31 waiting on condition`.
func threadHead(line string) *wire.InspectStack {
	s := &wire.InspectStack{Kind: "thread"}
	end := strings.LastIndexByte(line, '"')
	t := wire.InspectThread{}
	if end > 0 {
		t.Name = line[1:end]
	}
	for _, word := range strings.Fields(line[end+1:]) {
		if n, ok := strings.CutPrefix(word, "nid="); ok {
			t.ID, _ = strconv.ParseInt(n, 0, 64)
		}
	}
	s.Threads = []wire.InspectThread{t}
	if s.State == "" && strings.Contains(line[end+1:], "runnable") {
		s.State = "runnable"
	}
	return s
}

// javaFrame reads "java.base@17.0.15/java.lang.Thread.sleep(Native Method)".
func javaFrame(text string) wire.InspectFrame {
	name, where, ok := strings.Cut(strings.TrimSuffix(text, ")"), "(")
	f := wire.InspectFrame{Function: name}
	if module, rest, cut := strings.Cut(name, "/"); cut && !strings.HasPrefix(rest, "0x") { // which is a lambda's
		f.Module, f.Function = module, strings.TrimPrefix(rest, "/")
	}
	if !ok {
		return f
	}
	if i := strings.LastIndexByte(where, '/'); i >= 0 {
		where = where[i+1:]
	}
	if file, line, cut := strings.Cut(where, ":"); cut {
		f.File = file
		f.Line, _ = strconv.ParseInt(line, 10, 64)
	} else {
		f.File = where
	}
	return f
}

// lockWords leaves the address out, by which equal stacks would differ, unless
// somebody waits there.
func lockWords(s string) string {
	words := strings.Fields(s)
	wait := strings.HasPrefix(s, "waiting to lock") || strings.HasPrefix(s, "locked")
	words = slices.DeleteFunc(words, func(w string) bool { return !wait && strings.HasPrefix(w, "<0x") })
	return strings.Join(words, " ")
}
