package sandbox

// Level says what a session may do to the host.
type Level string

// The two levels. A read session cannot write, signal or connect; a write
// session is an ordinary login of a named account.
const (
	Read  Level = "read"
	Write Level = "write"
)

// Mode says with which power the sandbox is built.
type Mode string

// The modes. NoShells is what Probe answers where neither of the others works.
const (
	RootMode          Mode = "root"
	UserNamespaceMode Mode = "user-namespace"
	NoShells          Mode = "no-shells"
)

// Floor names how much of the sandbox stands.
type Floor string

// The floors, from most to least. Brokered means that no shell can be given
// and only reads that the node itself performs are left.
const (
	Full     Floor = "full"
	Reduced  Floor = "reduced"
	Brokered Floor = "brokered"
)

// AtLeast reports whether f is as strong as least; an empty least is Full.
func (f Floor) AtLeast(least Floor) bool { return f.rank() >= least.orFull().rank() }

func (f Floor) orFull() Floor {
	if f == "" {
		return Full
	}
	return f
}

func (f Floor) rank() int {
	switch f {
	case Full:
		return 3
	case Reduced:
		return 2
	case Brokered:
		return 1
	}
	return 0
}

// Spec says what the session may be. It reaches stage 2 through an inherited
// memfd, never through argv or the environment, since others can list those.
type Spec struct {
	Level Level `json:"level"`
	Mode  Mode  `json:"mode"`

	// UID and GID are the session's own in a read session (a number used by
	// nobody else) and the account's in a write session. In user-namespace
	// mode they are ignored: the caller's own are used.
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []string `json:"groups,omitempty"` // supplementary, by name or number; dangerous ones are refused in a read session
	User   string   `json:"user"`             // what whoami says
	Home   string   `json:"home,omitempty"`   // write sessions; a read session has its own in the private tmp
	Shell  string   `json:"shell,omitempty"`  // empty: bash, else sh

	Sudo bool `json:"sudo,omitempty"` // write: setuid programs work
	Root bool `json:"root,omitempty"` // write: uid 0

	// Alone says that the account is kept for sessions like this one and runs
	// nothing else. Without sudo or root, its signals then end at the session's
	// border, and the home is covered by one of the session's own.
	Alone bool `json:"alone,omitempty"`

	Command []string `json:"command,omitempty"` // argv; empty: an interactive shell
	Self    bool     `json:"self,omitempty"`    // run this executable with argv Command (sftp server, readers), even if its file is not in the view
	Env     []string `json:"env,omitempty"`     // added to, and winning over, the defaults
	Dir     string   `json:"dir,omitempty"`     // start directory; empty: the home
	PTY     bool     `json:"pty,omitempty"`
	Term    string   `json:"term,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Prompt  string   `json:"prompt,omitempty"` // PS1 in the shell's own syntax; empty: the shell's

	Secrets    []string `json:"secrets,omitempty"` // masked beside the default list; shell patterns allowed
	Hide       []string `json:"hide,omitempty"`    // handrail's own folders: empty in the view of every level
	LeastFloor Floor    `json:"least_floor,omitempty"`
	Hints      bool     `json:"hints,omitempty"` // ask for the notifier (first refusal)
}

// Layer is one layer of the sandbox as it stands for a session.
type Layer struct {
	Name    string `json:"name"`
	InForce bool   `json:"in_force"`
	Detail  string `json:"detail,omitempty"`
}

// Ready is what stage 2 reports before it becomes the shell.
type Ready struct {
	Floor    Floor    `json:"floor"`
	Missing  []string `json:"missing,omitempty"` // one sentence each
	Landlock int      `json:"landlock"`          // the ABI in force, 0 = none
	Notifier bool     `json:"notifier"`
	Layers   []Layer  `json:"layers"`

	// AuditSession is the kernel's number for all processes of the session,
	// wherever they go; 0 where it gives none.
	AuditSession int64 `json:"audit_session,omitempty"`
}
