package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// ctx has no deadline: what a test waits for has its own.
var ctx = context.Background()

func TestTheOrderIsTheEntryByteForByte(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada", "developer")
	w.grant(ada, doorway.GrantInForce{ID: "g-00000001", Kind: "break-glass", Reason: "the shop is down", Sudo: true,
		Authority: wire.Authority{Request: []byte("{}"), Signatures: []wire.Signature{}}})
	l, node, _ := w.open(ada, session.OpenRequest{Level: "write", Command: "systemctl restart shop"})
	o := w.nodes.orders[0]
	e := w.entries(session.Opened)[0]
	var same wire.OrderPayload
	fatal(t, json.Unmarshal(e.Payload, &same))
	if o.Order == "" || same.Order != o.Order || e.Parsed.Object != l.ID() || e.Parsed.Session != l.ID() {
		t.Fatalf("order %+v, entry %+v", o, e.Parsed)
	}
	s := o.Session
	if s.Level != "write" || !s.Sudo || !s.BreakGlass || s.Account != "handrail-write" || s.Kind != "exec" || s.PersonName != "ada" || o.Authority == nil {
		t.Fatalf("the order says %+v", s)
	}
	if s.RemainingMS > time.Hour.Milliseconds() || s.RemainingMS < 59*60_000 || o.Epochs.Person[ada.ID] != ada.Epoch {
		t.Fatalf("it lasts %d ms, epochs %+v", s.RemainingMS, o.Epochs)
	}
	if len(s.Banner) != 2 || !strings.Contains(s.Banner[0], "WRITE as handrail-write") || !strings.Contains(s.Banner[1], "the shop is down") {
		t.Fatalf("the banner is %q", s.Banner)
	}
	node.exits(wire.Exit{})
	<-l.Done()
}

func TestASessionOfARobotEndsWithTheRobot(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada", "admin")
	ends := time.Now().Add(10 * time.Minute).UnixMicro()
	var robot identity.Person
	w.Record(func(tx *store.Tx) (entries []ledger.Entry, err error) {
		robot, entries, err = w.People.MakeRobotTx(tx, ada, "nightly", ada.ID, identity.Robot{
			May: identity.Groups{"sessions.open:read"}, Hosts: "host:*", Expires: ends, Proof: identity.Proof{Key: strings.Repeat("ab", 32)},
		})
		return entries, err
	})
	by := identity.Principal{ID: robot.ID, Name: robot.Name, Kind: identity.KindRobot, Via: identity.ViaRobot, Owner: ada.ID, Epoch: robot.Epoch}
	l, err := w.sessions.Open(t.Context(), by, session.OpenRequest{Host: "web-1"})
	fatal(t, err)
	if got := l.Info().Deadline; got != ends {
		t.Errorf("the session ends at %v, the robot at %v", time.UnixMicro(got), time.UnixMicro(ends))
	}
}

func TestAReadSessionTakesNothingFromAGrant(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada", "developer")
	w.grant(ada, doorway.GrantInForce{ID: "g-00000001", Root: true})
	_, _, _ = w.open(ada, session.OpenRequest{PTY: true})
	if s := w.nodes.orders[0].Session; s.Grant != "" || s.Root || s.Account != "" || s.RemainingMS < 11*time.Hour.Milliseconds() || len(s.Secrets) == 0 {
		t.Fatalf("the order says %+v", s)
	}
}

func TestOutputIsInTheRecordingBeforeItsOwnerSeesIt(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{EndGrace: 50 * time.Millisecond})
	l, err := w.sessions.Open(ctx, w.person("ada"), session.OpenRequest{Host: "web-1", PTY: true})
	fatal(t, err)
	node := w.nodes.last()
	blocked := &owner{stop: make(chan struct{})}
	fatal(t, l.Own(blocked))
	node.says("secret plan")
	eventually(t, "it is recorded", func() bool {
		r, err := w.recordings.Open(t.Context(), l.ID())
		if err != nil {
			return false
		}
		defer r.Close()
		e, err := r.Next()
		return err == nil && string(e.Data) == "secret plan"
	})
}

func TestANodeThatRefusesEndsTheSessionAsFailedAndSaysWhy(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	w.nodes.err, w.nodes.answer = fault.New(fault.Denied, "this host keeps only the reduced floor"), wire.SessionAnswer{Kind: "denied"}
	_, err := w.sessions.Open(ctx, w.person("ada"), session.OpenRequest{Host: "web-1"})
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "reduced floor") {
		t.Fatalf("got %v", err)
	}
	eventually(t, "it is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Failed {
		t.Fatalf("outcome %s", e.Parsed.Outcome)
	}
	w.nodes.err, w.nodes.answer = errors.New("no answer"), wire.SessionAnswer{}
	_, err = w.sessions.Open(ctx, w.person("bob"), session.OpenRequest{Host: "web-1"})
	if err == nil {
		t.Fatal("a session without a node")
	}
	eventually(t, "it is closed", func() bool { return len(w.entries(session.Closed)) == 2 })
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Unknown {
		t.Fatalf("silence is %s", e.Parsed.Outcome)
	}
}

func TestALockThatComesWhileASessionStartsWins(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada")
	w.nodes.started = func() { w.sessions.EndByPerson(ctx, ada.ID, 2, "left") }
	_, err := w.sessions.Open(ctx, ada, session.OpenRequest{Host: "web-1"})
	if err == nil {
		t.Fatal("the session outlived the lock")
	}
	if !w.nodes.braked(wire.BrakeStopSession) || !w.nodes.braked(wire.BrakeLockPerson) {
		t.Fatalf("brakes: %+v", w.nodes.brakes)
	}
	eventually(t, "nothing is live", func() bool { return w.sessions.CountLive() == 0 })
}

// What one brake to all nodes has killed is not braked once more, session by
// session: the nodes have better to do in that moment.
func TestALockBrakesOnlyThoseByThemselvesWhoseNodeDidNotAnswer(t *testing.T) {
	for what, answers := range map[string]bool{"the node answers": true, "it does not": false} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, recording.Deps{}, session.Bounds{})
			ada := w.person("ada")
			l, _, _ := w.open(ada, session.OpenRequest{})
			w.nodes.mu.Lock()
			if w.nodes.obeys = !answers; answers {
				w.nodes.meets = w.host.ID
			}
			w.nodes.mu.Unlock()
			if n := w.sessions.EndByPerson(ctx, ada.ID, 2, "left"); n != 1 {
				t.Errorf("%d sessions", n)
			}
			<-l.Done()
			if _, why, _ := l.Result(); why != session.WhyLocked {
				t.Errorf("it ended because %s", why)
			}
			if w.nodes.braked(wire.BrakeStopSession) == answers {
				t.Errorf("brakes: %+v", w.nodes.brakes)
			}
		})
	}
}

func TestARecorderThatCannotWriteEndsTheSessionLoudly(t *testing.T) {
	full := make(chan struct{})
	w := newWorld(t, recording.Deps{Bounds: recording.Bounds{Patience: time.Millisecond}, OpenFile: func(path string) (recording.File, error) {
		f, err := os.CreateTemp(t.TempDir(), "rec")
		return failing{f, full}, err
	}}, session.Bounds{})
	l, node, o := w.open(w.person("ada"), session.OpenRequest{PTY: true})
	node.says("seen")
	eventually(t, "it is seen", func() bool { return o.text() == "seen" })
	close(full)
	node.says("never seen")
	<-l.Done()
	if o.text() != "seen" {
		t.Fatalf("unrecorded output was shown: %q", o.text())
	}
	if _, why, err := l.Result(); why != session.WhyRecorder || err == nil {
		t.Fatalf("it ended as %s, %v", why, err)
	}
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Failed {
		t.Fatalf("outcome %s", e.Parsed.Outcome)
	}
	if !w.nodes.braked(wire.BrakeStopSession) {
		t.Fatal("the node was not told")
	}
}

type failing struct {
	*os.File
	full chan struct{}
}

func (f failing) Write(p []byte) (int, error) {
	select {
	case <-f.full:
		return 0, errors.New("input/output error")
	default:
		return f.File.Write(p)
	}
}

func TestAWatcherWhoSleepsSlowsNobodyAndBeginsAnewAfterwards(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{WatcherQueue: 8 << 10})
	l, node, o := w.open(w.person("ada"), session.OpenRequest{PTY: true, Cols: 80, Rows: 24})
	a, err := w.sessions.Watch(ctx, w.person("bob", "operator"), l.ID(), session.ModeWatch)
	fatal(t, err)
	line := strings.Repeat("x", 1000) + "\n"
	for range 500 {
		node.says(line)
	}
	node.says("the end")
	eventually(t, "the owner has all", func() bool { return len(o.text()) == 500*len(line)+7 })
	behind, last := false, ""
	for !strings.HasSuffix(last, "the end") {
		e, err := a.Recv(ctx)
		fatal(t, err)
		behind = behind || e.Notice == session.NoticeBehind
		last += string(e.Data)
	}
	if !behind || len(last) > 200_000 {
		t.Fatalf("behind %v, %d bytes", behind, len(last))
	}
}

func TestWhoComesLaterSeesTheSizeAndTheLastOutput(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	l, node, o := w.open(w.person("ada"), session.OpenRequest{PTY: true, Cols: 80, Rows: 24})
	node.says("$ make\r\n")
	eventually(t, "it is seen", func() bool { return o.text() != "" })
	fatal(t, l.Send(session.Event{Kind: session.Resize, Cols: 132, Rows: 50}))
	a, err := w.sessions.Watch(ctx, w.person("bob", "operator"), l.ID(), session.ModeWatch)
	fatal(t, err)
	e := must(a.Recv(ctx))
	if e.Kind != session.Resize || e.Cols != 132 {
		t.Fatalf("first %+v", e)
	}
	if e = must(a.Recv(ctx)); string(e.Data) != "$ make\r\n" {
		t.Fatalf("then %+v", e)
	}
}

func TestWatchingNeedsTheRightAndIsRecorded(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	l, _, _ := w.open(w.person("ada"), session.OpenRequest{PTY: true})
	if _, err := w.sessions.Watch(ctx, w.person("eve", "developer"), l.ID(), session.ModeWatch); fault.KindOf(err) != fault.Denied {
		t.Fatalf("a developer watches: %v", err)
	}
	if _, err := w.sessions.Stop(ctx, w.person("mal", "developer"), l.ID(), ""); fault.KindOf(err) != fault.Denied {
		t.Fatalf("a developer stops: %v", err)
	}
}

func TestATicketWorksOnceForItsSessionOnly(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada")
	l, err := w.sessions.Open(ctx, ada, session.OpenRequest{Host: "web-1", PTY: true})
	fatal(t, err)
	word := must(w.sessions.Ticket(ctx, ada, l.ID(), session.ModeOwner))
	if _, err := w.sessions.Attach("s-another0", word); err == nil {
		t.Fatal("it opened another session")
	}
	word = must(w.sessions.Ticket(ctx, ada, l.ID(), session.ModeOwner))
	a, err := w.sessions.Attach(l.ID(), word)
	fatal(t, err)
	if _, err := w.sessions.Attach(l.ID(), word); fault.KindOf(err) != fault.Unauthenticated {
		t.Fatalf("it worked twice: %v", err)
	}
	w.nodes.last().says("hello")
	if e := must(a.Recv(ctx)); string(e.Data) != "hello" {
		t.Fatalf("got %+v", e)
	}
	fatal(t, a.Send(session.Event{Kind: session.Input, Data: []byte("ls\r")}))
	if got := w.nodes.last().hears(t, wire.FrameStdin); string(got) != "ls\r" {
		t.Fatalf("the node got %q", got)
	}
	if _, err := w.sessions.Ticket(ctx, w.person("eve", "admin"), l.ID(), session.ModeOwner); fault.KindOf(err) != fault.Denied {
		t.Fatalf("another person owns it: %v", err)
	}
	fatal(t, a.Close())
	<-l.Done()
}

func TestARequiredBuddyHoldsTheSession(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{BuddyAway: 300 * time.Millisecond})
	ada, bob := w.person("ada"), w.person("bob", "operator")
	w.grant(ada, doorway.GrantInForce{ID: "g-00000001", BuddyRequired: true})
	l, node, o := w.open(ada, session.OpenRequest{Level: "write", PTY: true})
	if i := l.Info(); i.State != session.StatePaused || !w.nodes.orders[0].Session.BuddyRequired {
		t.Fatalf("it starts as %s", i.State)
	}
	typed := make(chan error, 1)
	go func() { typed <- l.Send(session.Event{Kind: session.Input, Data: []byte("rm x\r")}) }()
	if _, err := w.sessions.Resume(ctx, bob, l.ID()); fault.KindOf(err) != fault.Conflict {
		t.Fatalf("it went on without a buddy: %v", err)
	}
	own, err := w.sessions.Watch(ctx, ada, l.ID(), session.ModeWatch)
	fatal(t, err)
	if l.Info().State != session.StatePaused {
		t.Fatal("its own person is no buddy")
	}
	fatal(t, own.Close())
	buddy, err := w.sessions.Watch(ctx, bob, l.ID(), session.ModeWatch)
	fatal(t, err)
	if got := node.hears(t, wire.FrameStdin); string(got) != "rm x\r" {
		t.Fatalf("the node got %q", got)
	}
	fatal(t, <-typed)
	if n := len(w.nodes.orders); w.nodes.orders[n-1].Kind != wire.KindSessionResume || len(w.entries(session.Resumed)) != 1 {
		t.Fatal("it went on without an order in the ledger")
	}
	fatal(t, buddy.Close())
	if l.Info().State != session.StatePaused || !w.nodes.braked(wire.BrakePauseSession) {
		t.Fatal("it goes on without its buddy")
	}
	<-l.Done()
	if _, why, _ := l.Result(); why != session.WhyPauseTimeout || !o.told("Nobody came to watch: this session ends.") {
		t.Fatalf("it ended by %s", why)
	}
}

func TestAGrantThatEndsTakesItsSessionsAndNoOthers(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada")
	w.nodes.obeys = false
	read, _, _ := w.open(ada, session.OpenRequest{PTY: true})
	w.grant(ada, doorway.GrantInForce{ID: "g-00000001"})
	write, node, o := w.open(ada, session.OpenRequest{Level: "write", PTY: true})
	w.sessions.TellGrant("g-00000001", "bob agreed to it")
	if n := w.sessions.Shorten("g-00000001", time.Now().Add(10*time.Minute)); n != 1 {
		t.Fatalf("%d shortened", n)
	}
	if ms := must(wire.DecodeDeadline(node.hears(t, wire.FrameDeadline))); ms > 600_000 || ms < 590_000 {
		t.Fatalf("the keeper hears %d ms", ms)
	}
	if n := w.sessions.EndByGrant("g-00000001", session.WhyRevoked, "not needed"); n != 1 {
		t.Fatalf("%d ended", n)
	}
	eventually(t, "the node was told", func() bool { return w.nodes.braked(wire.BrakeStopSession) })
	node.exits(wire.Exit{Status: 137, Why: "stopped"})
	<-write.Done()
	if !o.told("bob agreed to it") || !o.told("The grant was ended: not needed") || read.Info().State != session.StateLive {
		t.Fatalf("told %+v", o.events)
	}
}

func TestABlockedOwnerDoesNotKeepAStoppedSessionAlive(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{EndGrace: 50 * time.Millisecond})
	w.nodes.obeys = false
	ada := w.person("ada")
	l, err := w.sessions.Open(ctx, ada, session.OpenRequest{Host: "web-1", PTY: true})
	fatal(t, err)
	fatal(t, l.Own(&owner{stop: make(chan struct{})}))
	w.nodes.last().says("nobody reads this")
	_, err = w.sessions.Stop(ctx, w.person("bob", "operator"), l.ID(), "enough")
	fatal(t, err)
	<-l.Done()
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Unknown {
		t.Fatalf("the node never said that it is dead, and the entry says %s", e.Parsed.Outcome)
	}
}

func TestAfterARestartWhatWasLiveIsLostAndItsRecordingVerifies(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	l, node, o := w.open(w.person("ada"), session.OpenRequest{PTY: true})
	node.says("the last words")
	eventually(t, "it is seen", func() bool { return o.text() != "" })
	again := session.New(w.deps) // the old one never says goodbye
	fatal(t, again.Start(ctx))
	i := must(again.Get(ctx, l.ID()))
	if i.State != session.StateEnded || i.EndedWhy != session.WhyLost {
		t.Fatalf("it is %+v", i)
	}
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Lost {
		t.Fatalf("outcome %s", e.Parsed.Outcome)
	}
	fatal(t, again.Start(ctx))
	if n := len(w.entries(session.Closed)); n != 1 {
		t.Fatalf("%d closing entries", n)
	}
	_, findings, err := w.recordings.VerifyBlobs(ctx, func(fn func(store.Recorded) error) error {
		all, err := w.Store.Entries(ctx, store.EntryQuery{After: -1, Limit: 1000})
		for _, e := range all {
			if err := fn(e); err != nil {
				return err
			}
		}
		return err
	})
	if err != nil || len(findings) != 0 {
		t.Fatalf("%v, %v", findings, err)
	}
}

func TestSessionsAreListedNewestFirstAndFoundByPrefix(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada")
	var ids []string
	for range 3 {
		l, node, _ := w.open(ada, session.OpenRequest{Command: "true"})
		node.exits(wire.Exit{Status: 4})
		<-l.Done()
		ids = append(ids, l.ID())
	}
	all := must(w.sessions.List(ctx, session.Query{Limit: 2}))
	if len(all) != 2 || all[0].ID != ids[2] || all[1].ID != ids[1] || all[0].ExitStatus != 4 {
		t.Fatalf("got %+v", all)
	}
	rest := must(w.sessions.List(ctx, session.Query{Before: all[1].ID}))
	if len(rest) != 1 || rest[0].ID != ids[0] {
		t.Fatalf("then %+v", rest)
	}
	if i, err := w.sessions.Get(ctx, ids[0][:9]); err != nil || i.ID != ids[0] {
		t.Fatalf("by prefix: %v", err)
	}
	if i := must(w.sessions.Latest(ctx, ada.ID)); i.ID != ids[2] {
		t.Fatalf("latest %s", i.ID)
	}
	if _, err := w.sessions.Get(ctx, "s-nosuch00"); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("got %v", err)
	}
}

func TestEveryReplayIsAnEntryAndNeedsTheRight(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada")
	l, node, _ := w.open(ada, session.OpenRequest{PTY: true})
	node.says("hello")
	node.exits(wire.Exit{})
	<-l.Done()
	r, _, err := w.sessions.Replay(ctx, ada, l.ID())
	fatal(t, err)
	defer r.Close()
	if e := must(r.Next()); string(e.Data) != "hello" || len(w.entries(session.Replayed)) != 1 {
		t.Fatalf("got %+v", e)
	}
	if _, _, err := w.sessions.Replay(ctx, w.person("eve", "developer"), l.ID()); fault.KindOf(err) != fault.Denied {
		t.Fatalf("got %v", err)
	}
}

func TestNobodyAttachingEndsTheSession(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{AttachWithin: 20 * time.Millisecond, EndGrace: 20 * time.Millisecond})
	l, err := w.sessions.Open(ctx, w.person("ada"), session.OpenRequest{Host: "web-1", PTY: true})
	fatal(t, err)
	<-l.Done()
	if _, why, _ := l.Result(); why != session.WhyHangup {
		t.Fatalf("it ended by %s", why)
	}
}

func TestNonsenseIsRefusedBeforeAnythingIsRecorded(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{PerPerson: 1})
	ada := w.person("ada")
	for name, req := range map[string]session.OpenRequest{
		"level": {Host: "web-1", Level: "root"}, "subsystem": {Host: "web-1", Subsystem: "netconf"}, "nul": {Host: "web-1", Command: "a\x00b"},
		"host": {Host: "nowhere"}, "long": {Host: "web-1", Command: strings.Repeat("x", 1<<20)},
	} {
		if _, err := w.sessions.Open(ctx, ada, req); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	_, _, _ = w.open(ada, session.OpenRequest{PTY: true})
	if _, err := w.sessions.Open(ctx, ada, session.OpenRequest{Host: "web-1"}); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("more than one: %v", err)
	}
	if n := len(w.entries(session.Opened)); n != 1 {
		t.Errorf("%d entries", n)
	}
}
