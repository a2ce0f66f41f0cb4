// Package keeper is the process that holds one session: its pty or pipes, its
// cgroup, its deadline and a local copy of its output. One keeper is started
// per session, by the warden, as this same executable again.
//
//	warden ── control socket ──▶ keeper ◀── session socket ── link ══ server
//	          spec, stop, pause    │          frames both ways
//	          ◀── started, ended   ▼
//	                            sandbox ▶ shell, command, sftp server or forwarded port
//
// What must stay true:
//
//   - nothing of a session outlives its keeper's end: the cgroup is killed
//     first, then the keeper exits; if the keeper itself is killed, the warden
//     kills the cgroup;
//   - the keeper ends with the warden (its control socket closes) and with the
//     gateway (its session socket closes);
//   - the deadline runs on boot time, and can only be shortened;
//   - no byte is dropped: when the reader is slow, the program waits;
//   - whatever runs for the person runs in the sandbox, never here.
package keeper

import (
	"os"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/entrance"
	"handrail.dev/handrail/internal/host/inspect"
	"handrail.dev/handrail/internal/host/sandbox"
)

// Names by which this executable knows, from argv[0], what it is to be.
const (
	Arg0        = "handrail-keeper"
	Arg0SFTP    = "handrail-sftp"
	Arg0Forward = "handrail-forward"
)

// File descriptors that a keeper is born with.
const (
	controlFD = 3
	sessionFD = 4
)

// Spec is what a keeper is told, over its control socket, never in argv.
type Spec struct {
	Session  wire.SessionSpec `json:"session"`
	Sandbox  sandbox.Spec     `json:"sandbox"`
	Cgroup   string           `json:"cgroup"`            // name; "" where the host has none
	Deadline time.Duration    `json:"deadline"`          // boot time
	Spool    string           `json:"spool"`             // file of the local copy; "" for none
	Home     string           `json:"home"`              // folder to make for the session and to remove after it; "" for none
	Journal  *JournalSpec     `json:"journal,omitempty"` // of a session that no server records
}

// Why a session ended, in wire.Exit.Why; empty means by itself.
const (
	WhyDeadline = "deadline"
	WhyGateway  = "gateway" // the session socket closed
	WhyBudget   = "budget"  // more output than allowed
	WhyLost     = "lost"    // the keeper or its warden ended
	WhyLease    = "lease"   // no server for too long
	WhyStopped  = "stopped"
	WhyLocked   = "locked"
	WhyFailed   = "failed"   // it did not start
	WhyRecorder = "recorder" // what no server records could not be recorded here
)

// command is what the warden tells a keeper after the spec.
type command struct {
	Op  string `json:"op"` // stop, pause, resume
	Why string `json:"why,omitempty"`
}

const (
	opStop   = "stop"
	opPause  = "pause"
	opResume = "resume"
)

// report is what a keeper tells the warden.
type report struct {
	Event  string              `json:"event"` // started, done, alive, ended
	Answer *wire.SessionAnswer `json:"answer,omitempty"`
	Killed int                 `json:"killed,omitempty"`
	Error  string              `json:"error,omitempty"`
	Ended  *Ended              `json:"ended,omitempty"`
}

const (
	eventStarted = "started"
	eventDone    = "done"  // answers one command
	eventAlive   = "alive" // every beat: it is not stopped
	eventEnded   = "ended"
)

// Ended says how a session ended.
type Ended struct {
	Exit   wire.Exit `json:"exit"`
	Status int32     `json:"status"`
	Bytes  int64     `json:"bytes"`          // of output
	Tail   string    `json:"tail"`           // SHA-256 of all output frames, hex
	Left   []string  `json:"left,omitempty"` // names of processes that had left the cgroup and were killed
}

// Main returns at once unless this process was started as a keeper, as the
// first stage of a sandbox, or as a server inside one: then it does
// that work and never returns. It is the first call in main, and in TestMain
// of packages that start sessions.
func Main() {
	sandbox.Stage2()
	inspect.Main()
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case Arg0:
		os.Exit(run())
	case Arg0SFTP:
		os.Exit(serveSFTP())
	case Arg0Forward:
		os.Exit(serveForward())
	case entrance.Arg0:
		entrance.Serve()
	}
}
