package warden

import (
	"encoding/json"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// A newer program takes a warden's place without ending its sessions: the
// process stays, and with it whose child it is and whose parent; the program in
// it is replaced (exec), which finds what it must know in a sealed file in
// memory, and the sockets open. A warden that is killed still leaves nothing.

// HandoverVersion is of the form of what is passed on. Another form is refused,
// by the supervisor before anything ends.
const HandoverVersion = 1

// maxPassed bounds the file.
const maxPassed = 64 << 20

// passed is all that the next program must know and that is on no disk.
type passed struct {
	V        int          `json:"v"`
	BootID   string       `json:"boot_id"`
	Listener int          `json:"listener"` // descriptors
	Lock     int          `json:"lock"`
	Upgrades int          `json:"upgrades"`
	Judge    passedJudge  `json:"judge"`
	Events   []wire.Event `json:"events"`
	Dropped  int64        `json:"dropped"`
	Sessions []passedLive `json:"sessions"`
	NextUID  uint32       `json:"next_uid"`
}

// passedLive is one session.
type passedLive struct {
	ID       string           `json:"id"`
	Person   string           `json:"person"`
	Epochs   map[string]int64 `json:"epochs"`
	UID      uint32           `json:"uid"`
	Cgroup   string           `json:"cgroup"`
	Deadline time.Duration    `json:"deadline"` // boot time
	Power    *powerful        `json:"power,omitempty"`
	Before   places           `json:"before,omitempty"`
	Keeper   keeper.Passed    `json:"keeper"`
}

// passedJudge is what a judge remembers beside the pin. Without it the next
// would take an order twice, or lift a freeze.
type passedJudge struct {
	Known   []tlog.Tree              `json:"known"`
	Lease   passedLease              `json:"lease"`
	Started int64                    `json:"started"`
	Epochs  wire.Epochs              `json:"epochs"`
	Seen    map[string]time.Duration `json:"seen"`
	Brakes  []string                 `json:"brakes"`
	Frozen  bool                     `json:"frozen"`
	Thaw    time.Duration            `json:"thaw"`
	Drill   passedDrill              `json:"drill"`
	Revoked []uint64                 `json:"revoked"`
	Time    int64                    `json:"time"`
	Began   time.Duration            `json:"began"`
	Asks    []passedAsk              `json:"asks"`
}

// passedAsk is a lease that was asked for; its answer is on its way.
type passedAsk struct {
	Ask wire.LeaseAsk `json:"ask"`
	At  time.Duration `json:"at"`
}

type passedLease struct {
	Have   bool          `json:"have"`
	Asked  time.Duration `json:"asked"`
	Server int64         `json:"server"`
	Off    bool          `json:"off"`
}

type passedDrill struct {
	Order  string        `json:"order"`
	Person string        `json:"person"`
	Until  time.Duration `json:"until"`
}

func (j *judge) pass() passedJudge {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := passedJudge{
		Known: j.known, Lease: passedLease{j.lease.have, j.lease.asked, j.lease.server, j.lease.off}, Started: j.started,
		Epochs: j.epochs, Seen: j.seen, Brakes: j.brakes, Frozen: j.frozen, Thaw: j.thaw,
		Drill: passedDrill{j.alone.drill.order, j.alone.drill.person, j.alone.drill.until}, Time: j.alone.time, Began: j.alone.began,
	}
	for serial := range j.alone.revoked {
		p.Revoked = append(p.Revoked, serial)
	}
	for _, a := range j.asks {
		p.Asks = append(p.Asks, passedAsk{a.LeaseAsk, a.at})
	}
	return p
}

// take takes over what another judge remembered.
func (j *judge) take(p passedJudge) error {
	if len(p.Seen) > maxSeen || len(p.Brakes) > maxBrakeIDs || len(p.Known) > knownTrees || len(p.Epochs.Person) > maxPersons || len(p.Asks) > maxAsks {
		return fault.New(fault.Invalid, "cannot take over: more is remembered than a warden does")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.known, j.started, j.brakes, j.frozen, j.thaw = p.Known, p.Started, p.Brakes, p.Frozen, p.Thaw
	j.lease = lease{p.Lease.Have, p.Lease.Asked, p.Lease.Server, p.Lease.Off}
	j.raiseAll(p.Epochs)
	clear(j.rises) // they rose before this
	for id, until := range p.Seen {
		j.seen[id] = until
	}
	j.alone.drill = drill{p.Drill.Order, p.Drill.Person, p.Drill.Until}
	j.alone.time, j.alone.began = max(j.alone.time, p.Time), p.Began
	for _, serial := range p.Revoked {
		j.alone.revoked[serial] = true
	}
	for _, a := range p.Asks {
		j.asks = append(j.asks, pendingAsk{a.Ask, a.At})
	}
	return nil
}

func (q *events) pass() ([]wire.Event, int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.queue), q.dropped
}

// sealed puts what is passed on into a file that nobody can change.
func (p passed) sealed() (*os.File, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	if len(b) > maxPassed {
		return nil, fault.New(fault.Exhausted, "cannot hand over: %d bytes are more than %d", len(b), maxPassed)
	}
	fd, err := unix.MemfdCreate("handrail-handover", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "handover")
	if _, err = f.Write(b); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, handoverSeals)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

const handoverSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// readPassed reads it in the next program.
func readPassed(fd int) (*passed, error) {
	bad := func(why string) error { return fault.New(fault.Invalid, "cannot take over a warden: %s", why) }
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&handoverSeals != handoverSeals {
		return nil, bad("what it left is not sealed")
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxPassed+1))
	if err != nil || len(b) > maxPassed {
		return nil, bad("what it left cannot be read")
	}
	p, err := parsePassed(b)
	if err == nil {
		for _, fd := range p.descriptors() { // before anything is started
			unix.CloseOnExec(fd)
		}
	}
	return p, err
}

func (p *passed) descriptors() []int {
	fds := []int{p.Listener, p.Lock, p.Upgrades}
	for _, s := range p.Sessions {
		fds = append(fds, s.Keeper.Control)
	}
	return fds
}

func parsePassed(b []byte) (*passed, error) {
	bad := func(why string) error { return fault.New(fault.Invalid, "cannot take over a warden: %s", why) }
	var p passed
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, bad("what it left is no JSON")
	}
	if p.V != HandoverVersion {
		return nil, bad("it left another form than this program knows")
	}
	if p.BootID != bootID() {
		return nil, bad("it is of another boot")
	}
	used := map[int]bool{}
	ids := map[string]bool{}
	for _, s := range p.Sessions {
		if !wire.ValidID('s', s.ID) || ids[s.ID] {
			return nil, bad("a session without a name of its own")
		}
		ids[s.ID] = true
	}
	for _, fd := range p.descriptors() {
		if fd < 3 || used[fd] {
			return nil, bad("a descriptor twice")
		}
		used[fd] = true
	}
	if len(p.Sessions) > maxSessions || len(p.Events) > maxEvents {
		return nil, bad("it left more than a warden holds")
	}
	return &p, nil
}

// adopt takes over the sessions that go on. One whose keeper cannot be found is
// ended, like that of a keeper that died.
func (s *sessions) adopt(from *passed) {
	s.uids.next = from.NextUID % s.uids.count
	for _, p := range from.Sessions {
		l := &live{id: p.ID, person: p.Person, epochs: p.Epochs, uid: p.UID, cgroup: p.Cgroup, deadline: p.Deadline, power: p.Power}
		if l.power != nil {
			l.power.before = p.Before
		}
		h, err := s.spawn.Adopt(p.ID, p.Keeper)
		if err != nil {
			n := killResidue(l.cgroup) + len(s.sweep(l.power))
			s.tell(l, wire.Event{Kind: wire.EventResidue, Session: l.id, Person: l.person, Count: int64(n),
				Text: "a newer program of this node could not take over this session; it was ended"})
			s.tell(l, wire.Event{Kind: wire.EventSessionEnded, Session: l.id, Person: l.person, Why: keeper.WhyLost, Status: 255})
			continue
		}
		l.handle = h
		s.live[l.id] = l
		if l.uid != 0 {
			s.uids.used[l.uid] = true
		}
		go s.await(l)
	}
}

// lockOf takes the folder's lock, or goes on holding it.
func lockOf(dir string, from *passed) (*os.File, error) {
	if from == nil {
		return lock(dir)
	}
	return os.NewFile(uintptr(from.Lock), "lock"), nil
}
