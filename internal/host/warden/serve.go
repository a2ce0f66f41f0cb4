package warden

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	maxConns    = 64
	acceptPause = 100 * time.Millisecond
)

// accept serves the link's connections until the listener closes.
func (w *warden) accept(ctx context.Context, l *net.UnixListener, wg *sync.WaitGroup) error {
	slots := make(chan struct{}, maxConns)
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fault.Wrap(fault.Unavailable, err, "cannot serve the link")
			}
			w.log.Error("the link is not served for a moment", "error", err) // out of descriptors, say: sessions must not end for it
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if uid, err := peerUID(c); err != nil || uid != w.c.LinkUID {
			w.alarm(refuse(RuleTrust, "cannot serve uid %d: only the link, uid %d, may speak to the warden", uid, w.c.LinkUID), "")
			c.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			w.serve(ctx, c)
		}()
	}
}

func peerUID(c *net.UnixConn) (int, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	if cerr := rc.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return -1, cerr
	}
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

// serve answers one connection, one request at a time.
func (w *warden) serve(ctx context.Context, c *net.UnixConn) {
	for {
		var m message
		if _, err := receive(c, &m, false, frameTime); err != nil {
			return
		}
		if !w.reply(ctx, c, m) {
			return
		}
	}
}

// reply does what was asked and says so; a newer program does not take over in
// between.
func (w *warden) reply(ctx context.Context, c *net.UnixConn, m message) bool {
	if m.Op != opEvent { // which may wait for long, and is asked again
		w.gate.RLock()
		defer w.gate.RUnlock()
	}
	r, f := w.answer(ctx, m)
	defer closeFile(f)
	_ = c.SetWriteDeadline(time.Now().Add(frameTime))
	return send(c, r, f) == nil
}

func (w *warden) answer(ctx context.Context, m message) (reply, *os.File) {
	switch m.Op {
	case opHello:
		s := w.status
		s.Live = w.run.count()
		return reply{Status: &s}, nil
	case opLeaseAsk:
		b, err := w.judge.ask()
		return w.failed(err, reply{Data: b}), nil
	case opLease:
		return w.failed(w.lease(m), reply{}), nil
	case opOrder:
		a, f, err := w.order(ctx, m.Data)
		return w.failed(err, reply{Answer: &a}), f
	case opBrake:
		a, err := w.brake(ctx, m.Data)
		return w.failed(err, reply{Brake: &a}), nil
	case opEvent:
		return reply{Event: w.events.next(ctx, m.Ack)}, nil
	case opEntrance:
		e := w.door.status()
		return reply{Entrance: &e}, nil
	case opEnter:
		f, err := w.door.enter(string(m.Data))
		return w.failed(err, reply{}), f
	case opJournals, opJournal, opForget:
		return w.journals(m), nil
	}
	return w.failed(refuse(RuleForm, "cannot serve the link: request %.32q is not known", m.Op), reply{}), nil
}

// failed turns an error into a reply.
func (w *warden) failed(err error, good reply) reply {
	if err == nil {
		return good
	}
	var need *needProof
	if errors.As(err, &need) {
		return reply{Need: &Need{Old: need.old, New: need.new, At: need.at}}
	}
	f := fault.From(err)
	out := &replyError{Kind: f.Kind.String(), Text: f.Text, Hint: f.Hint}
	if r := (*refusal)(nil); errors.As(err, &r) {
		out.Rule = r.rule
	}
	return reply{Error: out}
}

// alarm reports a refusal that an honest server does not meet.
func (w *warden) alarm(err error, order string) {
	var r *refusal
	if !errors.As(err, &r) || r.quiet || r.rule == RuleHost {
		return
	}
	left, ok := w.alarms.take(w.c.Boot())
	if !ok {
		return
	}
	w.log.Warn("refused and alarmed", "rule", r.rule, "order", order, "why", r.Error(), "left_out", left)
	w.events.put(wire.Event{Kind: wire.EventAlarm, Rule: r.rule, Text: r.Error(), Order: order, Count: left})
}

// alarmRate is how many alarms are told in a minute: a link that was taken
// over must not drown what else happens, nor fill the host's log. How many
// were left out is in the next.
const alarmRate = 20

type alarms struct {
	mu    sync.Mutex
	since time.Duration // boot time
	told  int
	left  int64
}

func (a *alarms) take(now time.Duration) (left int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now-a.since > time.Minute {
		a.since, a.told = now, 0
	}
	if a.told >= alarmRate {
		a.left++
		return 0, false
	}
	a.told++
	left, a.left = a.left, 0
	return left, true
}

func (w *warden) lease(m message) error {
	proof, err := wire.ParseHashList(m.Hashes)
	if err != nil {
		return err
	}
	_, err = w.judge.answer(m.Nonce, m.Data, m.From, proof)
	if err != nil {
		w.alarm(err, "")
		return err
	}
	w.stopOvertaken()
	// A disk that is full starts nothing new (order saves before it answers),
	// but it must not end what runs: the lease is in force all the same.
	if err := w.pin.save(w.judge.size()); err != nil {
		w.log.Error("the last checkpoint could not be saved", "error", err)
	}
	w.door.remember()
	return nil
}

// order carries out one order. The checkpoint that it brought is on disk
// before it is answered; both happen at the same time as the session starts,
// because that takes longer. If the disk refuses, the session is killed.
func (w *warden) order(ctx context.Context, envelope []byte) (wire.SessionAnswer, *os.File, error) {
	e, err := wire.ParseEnvelope(envelope)
	if err != nil {
		err = refuse(RuleForm, "%v", err)
		w.alarm(err, "")
		return wire.SessionAnswer{}, nil, err
	}
	a, err := w.judge.order(e)
	if err != nil {
		w.alarm(err, a.Order)
		return wire.SessionAnswer{}, nil, err
	}
	saved := make(chan error, 1)
	go func() { saved <- w.pin.save(a.tree) }()
	answer, f, err := w.carryOut(ctx, a)
	if serr := <-saved; serr != nil && err == nil {
		closeFile(f)
		w.run.stopWhere(serr.Error(), func(l *live) bool { return l.id == a.SessionID() })
		err = serr
	}
	if err != nil {
		closeFile(f)
		w.alarm(err, a.Order)
		return wire.SessionAnswer{}, nil, err
	}
	return answer, f, nil
}

func (w *warden) carryOut(ctx context.Context, a accepted) (wire.SessionAnswer, *os.File, error) {
	if a.Kind == wire.KindDrill {
		w.judge.drill(a)
		return wire.SessionAnswer{OK: true}, nil, nil
	}
	if a.Kind == wire.KindSessionResume {
		h, err := w.run.handleOf(a.Session.ID)
		if err != nil {
			return wire.SessionAnswer{}, nil, err
		}
		return wire.SessionAnswer{OK: true}, nil, h.Resume(ctx)
	}
	if a.Kind == wire.KindInspect {
		return w.inspect(ctx, a)
	}
	if w.run.mode == sandbox.NoShells {
		e := fault.New(fault.Unavailable, "cannot start session %s: this host can give no shells", a.Session.ID)
		if len(w.status.Missing) > 0 {
			e.Text += ": " + w.status.Missing[0]
		}
		return wire.SessionAnswer{}, nil, e.WithHint("handrail doctor (on the host) says which layer is missing and what to do")
	}
	return w.run.start(ctx, a)
}

// brake acts at once, on the signature alone.
func (w *warden) brake(ctx context.Context, signed []byte) (wire.BrakeAnswer, error) {
	b, _, err := w.judge.brake(signed)
	if err != nil {
		w.alarm(err, b.ID)
		return wire.BrakeAnswer{}, err
	}
	a := wire.BrakeAnswer{V: 1, ID: b.ID, Node: w.status.Node}
	switch b.Kind {
	case wire.BrakeStopSession:
		a.Sessions, a.Killed = w.run.stopWhere(keeper.WhyStopped, func(l *live) bool { return l.id == b.Session })
	case wire.BrakeLockPerson:
		a.Sessions, a.Killed = w.run.stopWhere(keeper.WhyLocked, func(l *live) bool { return l.person == b.Person })
		a.Killed += w.looks.stop(func(person string) bool { return person == b.Person })
	case wire.BrakePauseSession:
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		h, err := w.run.handleOf(b.Session)
		if err == nil {
			a.Sessions, err = 1, h.Pause(ctx, b.Reason)
		}
		if err != nil { // a session that cannot be paused is stopped: a brake always works
			a.Error = err.Error()
			_, a.Killed = w.run.stopWhere(keeper.WhyStopped, func(l *live) bool { return l.id == b.Session })
		}
	}
	return a, nil
}
