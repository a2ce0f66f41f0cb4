package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// OpenRequest is what a person asks for.
type OpenRequest struct {
	Host       string // name or id
	Level      string // read, write; empty is read
	Kind       string // shell, exec, sftp, forward; empty follows from the others
	Forward    string // the destination of a forwarded port, or empty
	Command    string
	Subsystem  string // sftp or empty
	PTY        bool
	Term       string
	Cols, Rows uint16
	Env        map[string]string // LANG and LC_* pass
	Client     string            // browser, cli, ssh
	Source     string            // address
}

const (
	maxCommand = 64 << 10
	maxTerm    = 64
	maxEnv     = 32
	maxEnvText = 256
)

// normal checks the request and fills in what follows from it.
func (r OpenRequest) normal() (OpenRequest, error) {
	if r.Level == "" {
		r.Level = wire.LevelRead
	}
	if r.Level != wire.LevelRead && r.Level != wire.LevelWrite {
		return r, fault.New(fault.Invalid, "cannot open a session of level %q: it is read or write", r.Level)
	}
	switch {
	case r.Forward != "":
		var err error
		if r.Command, err = wire.ForwardDestination(r.Forward, false); err != nil {
			return r, err
		}
		if r.Level != wire.LevelWrite {
			return r, fault.New(fault.Denied, "cannot forward to %s in a read session", r.Command).WithHint("ssh HOST+write@handrail, with a grant: %s", elevateFor("HOST", r.Command))
		}
		r.Kind, r.PTY = wire.SessionForward, false
	case r.Subsystem == "sftp":
		r.Kind, r.Command, r.PTY = wire.SessionSFTP, "", false
	case r.Subsystem != "":
		return r, fault.New(fault.Invalid, "cannot open the subsystem %q: only sftp is served", r.Subsystem)
	case r.Command != "":
		r.Kind = wire.SessionExec
	default:
		r.Kind = wire.SessionShell
	}
	if len(r.Command) > maxCommand || strings.ContainsRune(r.Command, 0) {
		return r, fault.New(fault.Invalid, "cannot run a command of %d bytes: at most %d, without NUL", len(r.Command), maxCommand)
	}
	r.Term = Term(r.Term)
	env := map[string]string{}
	for k, v := range r.Env {
		if len(env) < maxEnv && AcceptEnv(k, v) {
			env[k] = v
		}
	}
	r.Env = env
	return r, nil
}

func unprintable(r rune) bool { return r < 0x20 || r == 0x7f }

// AcceptEnv says which variables a client may set, and to what.
func AcceptEnv(name, value string) bool {
	return (name == "LANG" || strings.HasPrefix(name, "LC_") || name == "COLORTERM") && len(name) <= maxTerm &&
		len(value) <= maxEnvText && !strings.ContainsFunc(name+value, unprintable)
}

// Term is a client's terminal type, or that of one nobody knows.
func Term(name string) string {
	if len(name) > maxTerm || strings.ContainsFunc(name, unprintable) {
		return "dumb"
	}
	return name
}

// Open starts a session and returns it once its node runs it. ctx bounds the
// opening only; the session then lives until it ends.
func (s *Sessions) Open(ctx context.Context, by identity.Principal, req OpenRequest) (*Live, error) {
	req, err := req.normal()
	if err != nil {
		return nil, err
	}
	host, err := s.d.Hosts.Get(ctx, req.Host)
	if err != nil {
		return nil, err
	}
	if s.d.Online != nil && !s.d.Online(host.ID) {
		return nil, fault.New(fault.Unavailable, "cannot open a session on %s: its node is not connected", host.Name).
			WithHint("handrail host show %s", host.Name)
	}
	if by.ReadOnly && req.Level != wire.LevelRead {
		return nil, fault.New(fault.Denied, "cannot open a write session: this connection was let in by a code, for reading only").
			WithHint("handrail login")
	}
	res, err := s.d.Recordings.Reserve()
	if err != nil {
		return nil, err
	}
	l, err := s.admit(by, host, req)
	if err != nil {
		res.Release()
		return nil, err
	}
	return l, s.start(ctx, l, host, req, res)
}

// admit puts the session into the live table before it is decided, so that a
// lock that commits right after the decision finds it there.
func (s *Sessions) admit(by identity.Principal, host target.Host, req OpenRequest) (*Live, error) {
	info := Info{ID: store.NewID('s'), Person: by.ID, PersonName: by.Name, Host: host.ID, HostName: host.Name, Level: req.Level,
		Kind: req.Kind, State: StateStarting, Environment: host.Environment, Scope: host.Scope, Command: req.Command,
		Client: req.Client, Source: req.Source, Started: time.Now().UnixMicro(), Version: 1, Home: s.d.Home}
	l := newLive(s, by, info, req.PTY)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.New(fault.Unavailable, "cannot open a session: this server is stopping")
	}
	if s.shut != "" {
		return nil, fault.New(fault.Unavailable, "cannot open a session: %s", s.shut).WithHint("try again, at another server")
	}
	if s.draining {
		return nil, fault.New(fault.Unavailable, "cannot open a session: this server is about to restart").WithHint("try again, at another server: handrail servers")
	}
	mine := 0
	for _, other := range s.live {
		if other.fixed.Person == by.ID {
			mine++
		}
	}
	if len(s.live) >= s.b.Live || mine >= s.b.PerPerson {
		return nil, fault.New(fault.Exhausted, "cannot open a session: %d are open here, %d of them yours", len(s.live), mine).
			WithHint("handrail sessions --live")
	}
	s.live[info.ID] = l
	s.wg.Add(1)
	return l, nil
}

// start runs the act in a goroutine that lives as long as the session.
func (s *Sessions) start(ctx context.Context, l *Live, host target.Host, req OpenRequest, res *recording.Reservation) error {
	draft, err := s.d.Recordings.Draft(recording.Header{Session: l.fixed.ID, Person: l.fixed.Person, Host: host.ID, Kind: req.Kind,
		PTY: req.PTY, Term: req.Term, Cols: req.Cols, Rows: req.Rows, Started: l.fixed.Started})
	if err != nil {
		s.forget(l)
		res.Release()
		return err
	}
	ready := make(chan error, 1)
	act := doorway.Act{Action: "sessions.open", By: l.by, Host: &host, Context: policy.Context{Level: req.Level, FloorOK: true},
		ID: l.fixed.ID, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			return s.opened(tx, l, req, draft)
		}}
	go func() {
		defer s.forget(l)
		ran := false
		_, err := s.d.Door.Do(context.WithoutCancel(ctx), act, func(ctx context.Context, pass doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
			ran = true
			return s.run(ctx, l, draft, res, pass, ready)
		})
		if !ran {
			res.Release()
		}
		if err == nil {
			err = fault.New(fault.Internal, "cannot open session %s", l.fixed.ID)
		}
		ready <- err // nobody listens any more if the session had been live
	}()
	select {
	case err := <-ready:
		return err
	case <-ctx.Done():
		l.end(WhyHangup, "")
		return fault.Wrap(fault.Unavailable, ctx.Err(), "cannot open a session on %s", host.Name)
	}
}

func (s *Sessions) forget(l *Live) {
	s.mu.Lock()
	delete(s.live, l.fixed.ID)
	s.mu.Unlock()
	l.over()
	close(l.done)
	s.wg.Done()
}

// opened writes the row and the entries of a session that was let through. It
// runs inside the deciding transaction, perhaps more than once.
func (s *Sessions) opened(tx *store.Tx, l *Live, req OpenRequest, draft *recording.Draft) ([]ledger.Entry, error) {
	engine, err := s.d.Rules.EngineTx(tx)
	if err != nil {
		return nil, err
	}
	host, err := s.d.Hosts.GetTx(tx, l.fixed.Host)
	if err != nil {
		return nil, err
	}
	now := tx.Now()
	grant, granted, err := s.grantFor(tx, req, host, l.fixed.Person, now)
	if err != nil {
		return nil, err
	}
	if s.d.Admits != nil {
		if err := s.d.Admits(tx, host, l.by, granted && grant.Kind == "break-glass", now); err != nil {
			return nil, err
		}
	}
	// A read session takes nothing from a grant, except where data is regulated
	// and reading itself needs one.
	granted = granted && (req.Level == wire.LevelWrite || host.Scope != "" && host.Scope != "none")
	if !granted {
		grant = doorway.GrantInForce{}
	}
	info := l.fixed
	info.Started, info.Environment, info.Scope, info.HostName = now.UnixMicro(), host.Environment, host.Scope, host.Name
	info.Deadline = now.Add(s.b.ReadFor).UnixMicro()
	if l.by.Kind == identity.KindRobot { // what it may do ends with it
		robot, err := s.d.People.RobotTx(tx, l.by.ID)
		if err != nil {
			return nil, err
		}
		info.Deadline = min(info.Deadline, robot.Expires)
	}
	if granted {
		info.Deadline = min(info.Deadline, grant.Expires)
		info.Grant, info.Reason, info.BreakGlass = grant.ID, grant.Reason, grant.Kind == "break-glass"
	}
	info.BuddyRequired = req.Level == wire.LevelWrite && (grant.BuddyRequired || engine.BuddyRequired(host))
	if grant, err = accountThere(host, info, grant); err != nil {
		return nil, err
	}
	spec := withoutNode(specOf(info, req, engine, host, grant, now), host)
	order := wire.OrderPayload{V: 1, Order: "o-" + l.fixed.ID[2:], Kind: wire.KindSessionStart, Node: host.ID, Issued: now.UnixMicro(),
		ValidMS: s.validFor(host), Session: &spec}
	if granted {
		order.Authority = &grant.Authority
	}
	if req.Kind == wire.SessionForward {
		order.Need = []string{"forward"}
	}
	if order.Epochs, err = s.epochs(tx, engine, l.fixed.Person, order.Authority); err != nil {
		return nil, err
	}
	payload, err := order.Marshal()
	if err != nil {
		return nil, err
	}
	info.Account = spec.Account
	if err := insert(tx, info); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.info, l.spec = info, spec
	l.mu.Unlock()
	subjects := []string{l.fixed.Person}
	if l.by.Owner != "" { // a robot's session is its owner's to answer for
		subjects = append(subjects, l.by.Owner)
	}
	return []ledger.Entry{{Action: Opened, Subjects: subjects, Session: l.fixed.ID, Target: host.Path(),
		Object: l.fixed.ID, Version: 1, Payload: payload}, draft.Entry()}, nil
}

// grantFor is the grant that the session stands on. One for a forwarded port is
// one that names it.
func (s *Sessions) grantFor(q store.Queryer, req OpenRequest, host target.Host, person string, now time.Time) (doorway.GrantInForce, bool, error) {
	if req.Kind != wire.SessionForward {
		return s.d.Grants.Active(q, person, host.ID, now)
	}
	if host.Agentless() {
		return doorway.GrantInForce{}, false, fault.New(fault.Denied, "cannot forward through %s: it has no node", host.Name).WithHint("handrail host adopt %s", host.Name)
	}
	grant, ok, err := s.d.Grants.Forwarding(q, person, host.ID, req.Command, now)
	if err == nil && !ok {
		err = fault.New(fault.Denied, "cannot forward to %s through %s: no grant of yours names it", req.Command, host.Name).WithHint("%s", elevateFor(host.Name, req.Command))
	}
	return grant, ok, err
}

func elevateFor(host, destination string) string {
	return "handrail elevate " + host + " --forward " + destination + ` --reason "why"` // ASCII: clients print what they are told as bytes
}

// epochs are those of everybody whose word the order rests on.
func (s *Sessions) epochs(q store.Queryer, engine *policy.Engine, person string, a *wire.Authority) (wire.Epochs, error) {
	lock, err := s.d.LockEpoch(q)
	if err != nil {
		return wire.Epochs{}, err
	}
	e := wire.Epochs{Lock: lock, Policy: engine.Version(), Person: map[string]int64{}}
	people := []string{person}
	if a != nil {
		for _, sig := range a.Signatures {
			people = append(people, sig.Person)
		}
	}
	for _, id := range people {
		p, err := s.d.People.GetTx(q, id)
		if err != nil {
			return e, err
		}
		e.Person[p.ID] = p.Epoch
	}
	return e, nil
}

func specOf(info Info, req OpenRequest, engine *policy.Engine, host target.Host, grant doorway.GrantInForce, now time.Time) wire.SessionSpec {
	left := time.UnixMicro(info.Deadline).Sub(now)
	prompt, _, banner := engine.Prompt(host)
	spec := wire.SessionSpec{
		ID: info.ID, Person: info.Person, PersonName: info.PersonName, Level: info.Level, Kind: info.Kind,
		Command: req.Command, PTY: req.PTY, Term: req.Term, Cols: req.Cols, Rows: req.Rows, Env: req.Env,
		Environment: host.Environment, Scope: host.Scope, HostName: host.Name, RemainingMS: max(left.Milliseconds(), 1),
		Grant: info.Grant, BreakGlass: info.BreakGlass, BuddyRequired: info.BuddyRequired, Prompt: prompt,
		Secrets: engine.Secrets(host), LeastFloor: engine.LeastFloor(host.Environment),
	}
	if info.Level == wire.LevelWrite {
		spec.Account, spec.Sudo, spec.Root = grant.Account, grant.Sudo, grant.Root
		if spec.Account == "" {
			spec.Account = engine.WriteAccount(host)
		}
	} else {
		spec.Groups = engine.GroupsFor(identity.Principal{ID: info.Person, Name: info.PersonName}, host)
	}
	spec.Banner = bannerOf(info, spec, prompt, banner, left)
	return spec
}

// bannerOf is what a person sees first: where, how, how long, and that it is recorded.
func bannerOf(info Info, spec wire.SessionSpec, prompt, extra string, left time.Duration) []string {
	level := "read-only"
	if info.Level == wire.LevelWrite {
		level = "WRITE as " + spec.Account
		if spec.Root {
			level = "WRITE as root"
		}
	}
	lines := []string{fmt.Sprintf("%s · %s · %s · %s left · recorded as %s", info.HostName, strings.TrimSpace(prompt), level, brief(left), info.ID)}
	if info.BreakGlass {
		lines = append(lines, "BREAK-GLASS in force: everybody on call sees this, and a review is owed. Reason: "+oneLine(info.Reason))
	}
	if info.BuddyRequired {
		lines = append(lines, "A buddy must watch this session; it waits for one: handrail watch "+info.ID)
	}
	if extra = strings.TrimSpace(extra); extra != "" {
		lines = append(lines, oneLine(extra))
	}
	return lines
}

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unprintable(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "…"
	}
	return s
}

// brief is a length of time as a person says it: 25m, 11h59m.
func brief(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	d = d.Round(time.Minute)
	if h := d / time.Hour; h > 0 {
		if m := (d % time.Hour) / time.Minute; m > 0 {
			return fmt.Sprintf("%dh%dm", h, m)
		}
		return fmt.Sprintf("%dh", h)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}

// run is the effect: recorder, node, pump, and the end. It writes its closing
// entries itself, because the row ends in the same transaction.
func (s *Sessions) run(ctx context.Context, l *Live, draft *recording.Draft, res *recording.Reservation, pass doorway.Pass, ready chan<- error) (ledger.Outcome, []ledger.Entry, error) {
	rec, err := s.d.Recordings.Create(draft, res)
	if err != nil {
		res.Release()
		s.finish(l, ledger.Failed, WhyRecorder, err)
		return ledger.Failed, nil, err
	}
	l.mu.Lock()
	l.rec = rec
	l.mu.Unlock()
	starting, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(l.ctx, cancel)()
	defer cancel()
	stream, answer, err := s.d.Nodes.Start(starting, pass, l.fixed.Host, l.fixed.Kind != wire.SessionShell && !l.tty)
	if err != nil {
		outcome, why := ledger.Unknown, WhyLost // the node may have heard the order
		if answer.Kind != "" {
			outcome, why = ledger.Failed, WhyRefused
		}
		if ours, _ := l.ending(); ours != "" {
			why = ours
		}
		s.finish(l, outcome, why, err)
		return outcome, nil, err
	}
	if !l.begin(stream, answer) {
		// A lock or a stop came while the node started it.
		l.brake(wire.BrakeStopSession, l.mustEnd())
		_ = stream.Close()
		err := fault.New(fault.Denied, "cannot open session %s: it was ended while it started (%s)", l.fixed.ID, l.mustEnd())
		s.finish(l, ledger.Unknown, l.mustEnd(), err)
		return ledger.Unknown, nil, err
	}
	l.changed()
	ready <- nil
	l.pump()
	_ = stream.Close()
	outcome := l.outcome()
	s.finish(l, outcome, l.mustEnd(), nil)
	return outcome, nil, nil
}

// begin makes the session live; it reports false when it has to end already.
func (l *Live) begin(stream Stream, a wire.SessionAnswer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != "" {
		return false
	}
	l.stream = stream
	l.info.State, l.info.Floor, l.info.FloorMissing = StateLive, a.Floor, slices.Clone(a.Missing)
	if a.Account != "" {
		l.info.Account = a.Account
	}
	if l.spec.BuddyRequired { // the keeper starts it paused
		l.info.State, l.info.PausedWhy = StatePaused, "waiting for a buddy to watch"
		l.running = make(chan struct{})
		l.away = time.AfterFunc(l.s.b.BuddyAway, func() { l.end(WhyPauseTimeout, "") })
	}
	left := time.Until(time.UnixMicro(l.info.Deadline))
	l.timers = append(l.timers, time.AfterFunc(left, func() { l.end(WhyExpired, "") }))
	for _, before := range []time.Duration{5 * time.Minute, time.Minute} {
		if left > before+30*time.Second {
			l.timers = append(l.timers, time.AfterFunc(left-before, func() {
				l.tell(NoticeEnding, "This session ends in "+brief(before)+".")
			}))
		}
	}
	return true
}

func (l *Live) ending() (why, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why, l.whyText
}

func (l *Live) mustEnd() string {
	if why, _ := l.ending(); why != "" {
		return why
	}
	return WhyLost
}

// outcome is what the ledger is told. Without the node's exit frame nobody
// knows that the session is dead, whoever asked for its end.
func (l *Live) outcome() ledger.Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.why == WhyLost:
		return ledger.Lost
	case l.exit == nil:
		return ledger.Unknown
	case l.why == WhyRecorder:
		return ledger.Failed
	}
	return ledger.OK
}
