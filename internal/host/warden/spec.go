package warden

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/sandbox"
)

// Defaults of what a session may take of the host.
const (
	readPIDs, writePIDs = 512, 4096
	readMemory          = 1 << 30
	readCPU, writeCPU   = 200, 0  // 0: no bound
	readBytesOut        = 4 << 30 // a read session is not masked: what it can carry away is bounded
)

// defaultGroups let a read session read logs.
var defaultGroups = []string{"adm", "systemd-journal"}

// specOf turns an accepted order into what a keeper is told.
func (s *sessions) specOf(a accepted, l *live) (keeper.Spec, error) {
	o := *a.Session
	b := sandbox.Spec{
		Level: sandbox.Level(o.Level), Mode: s.mode, User: o.PersonName,
		PTY: o.PTY, Term: o.Term, Cols: o.Cols, Rows: o.Rows, Prompt: keeper.PromptOf(o),
		Secrets: o.Secrets, Hide: s.hide, LeastFloor: stricter(o.LeastFloor, s.policy.LeastFloor), Hints: true,
	}
	k := keeper.Spec{Session: o, Cgroup: l.cgroup, Deadline: a.deadline, Spool: filepath.Join(s.dir, o.ID)}
	if o.Level == wire.LevelRead {
		b.UID, b.GID, b.Groups = l.uid, l.uid, o.Groups
		if len(b.Groups) == 0 {
			b.Groups = defaultGroups
		}
		setDefaults(&k.Session.Limits, readPIDs, readMemory, readCPU)
		if k.Session.Limits.BytesOut == 0 {
			k.Session.Limits.BytesOut = readBytesOut
		}
	} else {
		acct, err := s.writer(o.Account)
		if err != nil {
			return k, err
		}
		if acct.uid == 0 && !o.Root && s.mode == sandbox.UserNamespaceMode {
			return k, fault.New(fault.Denied, "cannot start session %s: the one account here is root of a container, which the grant does not give", o.ID).
				WithHint("run handrail as an ordinary user, or as root of the host itself")
		}
		if acct.uid == 0 && !o.Root {
			return k, refuse(RulePolicy, "cannot start session %s: account %s is root, which the grant does not give", o.ID, o.Account)
		}
		b.User, b.UID, b.GID, b.Home, b.Shell = acct.name, acct.uid, acct.gid, acct.home, acct.shell
		b.Groups, b.Sudo, b.Root = groupsOf(acct.name, acct.gid), o.Sudo, o.Root
		s.alone(&k, &b)
		k.Session.Account = acct.name // what the banner says
		setDefaults(&k.Session.Limits, writePIDs, writeMemory(), writeCPU)
	}
	switch o.Kind {
	case wire.SessionExec:
		b.Command = []string{shellOf(b), "-c", o.Command}
	case wire.SessionSFTP:
		b.Command, b.Self = []string{keeper.Arg0SFTP, o.Level}, true
	case wire.SessionForward:
		b.Command, b.Self = []string{keeper.Arg0Forward, o.Command}, true
	}
	b.Env = envOf(o, a.left)
	k.Sandbox, k.Journal = b, a.journal
	return k, nil
}

// writeMemory leaves a quarter of the host's memory to what it is there for.
func writeMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit) / 4 * 3)
}

// alone says what an account that is kept for sessions means for one.
func (s *sessions) alone(k *keeper.Spec, b *sandbox.Spec) {
	if b.Alone = b.User == WriteAccount && s.mode == sandbox.RootMode; !b.Alone {
		return
	}
	if b.Sudo || b.Root {
		// Mounts of such a session are the host's, so its home is a folder. The
		// ordinary sessions have their own home over the one above it.
		b.Home = filepath.Join(b.Home, k.Session.ID)
		k.Home = b.Home
	}
	if !b.PTY {
		// The home ends with the session: a copy that names no folder must
		// fail, not vanish.
		b.Dir = "/"
	}
}

func setDefaults(l *wire.Limits, pids, memory, cpu int64) {
	if l.PIDs == 0 {
		l.PIDs = pids
	}
	if l.MemoryBytes == 0 {
		l.MemoryBytes = memory
	}
	if l.CPUPercent == 0 {
		l.CPUPercent = cpu
	}
}

var floorRank = map[string]int{wire.FloorBrokered: 1, wire.FloorReduced: 2, wire.FloorFull: 3, "": 0}

// stricter is the higher of two least floors; full where nobody says.
func stricter(a, b string) sandbox.Floor {
	if floorRank[b] > floorRank[a] {
		a = b
	}
	if a == "" {
		a = wire.FloorFull
	}
	return sandbox.Floor(a)
}

func shellOf(b sandbox.Spec) string {
	if b.Shell != "" {
		return b.Shell
	}
	if _, err := os.Stat("/bin/bash"); err == nil {
		return "/bin/bash"
	}
	return "/bin/sh"
}

var envName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`) })

// ownEnv are the variables that the session sets itself.
var ownEnv = map[string]bool{"PATH": true, "HOME": true, "USER": true, "LOGNAME": true, "SHELL": true, "ENV": true, "BASH_ENV": true, "TERM": true, "PS1": true, "PROMPT_COMMAND": true}

// envOf is what the person's client sent, less what could turn the shell into
// something else, and what the prompt and scripts want to know.
func envOf(o wire.SessionSpec, left time.Duration) []string {
	var out []string
	for name, value := range o.Env {
		if envName().MatchString(name) && !ownEnv[name] && !strings.HasPrefix(name, "LD_") && !strings.HasPrefix(name, "HANDRAIL_") &&
			!strings.ContainsRune(value, 0) && len(value) < 4096 {
			out = append(out, name+"="+value)
		}
	}
	sort.Strings(out)
	return append(out,
		"HANDRAIL_SESSION="+o.ID, "HANDRAIL_LEVEL="+o.Level, "HANDRAIL_ENVIRONMENT="+o.Environment,
		"HANDRAIL_HOST="+o.HostName, fmt.Sprintf("HANDRAIL_ENDS=%d", time.Now().Add(left).Unix()), "HANDRAIL_UNITS=mh")
}

type account struct {
	uid, gid          uint32
	name, home, shell string
}

// writer is the account that a write session runs as. Without root there is
// one account only, handrail's own, whatever the policy names.
func (s *sessions) writer(named string) (account, error) {
	if s.mode != sandbox.UserNamespaceMode {
		a, err := sandbox.LookupAccount(named)
		if err != nil && named == WriteAccount {
			err = fault.From(err).WithHint("%s", AccountAdvice)
		}
		return account{a.UID, a.GID, a.Name, a.Home, a.Shell}, err
	}
	own := account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), name: strconv.Itoa(os.Geteuid()), home: "/"}
	if u, err := user.Current(); err == nil {
		own.name, own.home = u.Username, u.HomeDir
	}
	if home := os.Getenv("HOME"); home != "" {
		own.home = home
	}
	return own, nil
}

// groupsOf are an account's supplementary groups, as login would give them.
func groupsOf(name string, gid uint32) []string {
	b, err := os.ReadFile("/etc/group")
	if err != nil {
		return nil
	}
	var out []string
	for _, line := range strings.Split(string(b), "\n") {
		part := strings.Split(line, ":")
		if len(part) != 4 || part[2] == strconv.FormatUint(uint64(gid), 10) {
			continue
		}
		for _, member := range strings.Split(part[3], ",") {
			if member == name {
				out = append(out, part[2])
			}
		}
	}
	return out
}

// uidRange gives each read session a uid that nobody else has. It holds some
// ready, since looking for one goes through all processes.
type uidRange struct {
	first, count uint32

	mu    sync.Mutex
	next  uint32
	used  map[uint32]bool
	ready []uint32
}

// uidsReady is how many are found by one look at the processes.
const uidsReady = 8

func newUIDRange(p hostPolicy) *uidRange {
	return &uidRange{first: p.UIDFirst, count: p.UIDCount, next: rand.Uint32N(p.UIDCount), used: map[uint32]bool{}}
}

// take returns a uid that no account has and under which nothing runs.
func (u *uidRange) take() (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.ready) == 0 {
		if err := u.find(); err != nil {
			return 0, err
		}
	}
	uid := u.ready[0]
	u.ready = u.ready[1:]
	return uid, nil
}

// prepare holds some for those who come next.
func (u *uidRange) prepare() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.ready) == 0 {
		_ = u.find() // else the next take says why there is none
	}
}

// find goes round, so that a uid rests for as long as possible before it is
// used again. What is ready is nobody's until it is taken: no session has it,
// and only one that is over could have left somebody under it.
func (u *uidRange) find() error {
	passwd, _ := os.ReadFile("/etc/passwd")
	running := runningUIDs()
	for range min(u.count, 1024) {
		uid := u.first + u.next
		u.next = (u.next + 1) % u.count
		if u.used[uid] || running[uid] || strings.Contains(string(passwd), fmt.Sprintf(":%d:", uid)) {
			continue
		}
		u.used[uid] = true
		if u.ready = append(u.ready, uid); len(u.ready) == uidsReady {
			return nil
		}
	}
	if len(u.ready) == 0 {
		return fault.New(fault.Exhausted, "cannot start a session: no uid from %d on is free", u.first)
	}
	return nil
}

func (u *uidRange) release(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.used, uid)
}

// runningUIDs are the owners of all processes.
func runningUIDs() map[uint32]bool {
	out := map[uint32]bool{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, e := range entries {
		if c := e.Name()[0]; c < '0' || c > '9' {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat("/proc/"+e.Name(), &st) == nil {
			out[st.Uid] = true
		}
	}
	return out
}
