package webhook

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Run delivers until ctx ends. Of several servers one runs it.
func (x *Hooks) Run(ctx context.Context) error {
	crew := crew{x: x, at: map[string]*worker{}}
	defer crew.end()
	beat, tell := time.NewTicker(x.b.Beat), time.NewTicker(x.b.Told)
	defer beat.Stop()
	defer tell.Stop()
	for {
		if err := x.tend(ctx, &crew); err != nil && ctx.Err() == nil {
			x.d.Log.Warn("webhooks cannot be tended", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		case <-x.kick:
		case <-tell.C:
			if err := x.tell(ctx); err != nil && ctx.Err() == nil {
				x.d.Log.Warn("how webhooks were delivered cannot be recorded", "error", err)
			}
		}
	}
}

// tend gives each hook that is told a worker.
func (x *Hooks) tend(ctx context.Context, c *crew) error {
	hooks, err := x.active(ctx)
	if err == nil {
		c.use(ctx, hooks)
	}
	return err
}

func (x *Hooks) active(ctx context.Context) (hooks []Hook, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		hooks, err = store.All[Hook](v, selectHook+`WHERE state = $1 ORDER BY id`, StateActive)
		return err
	})
	return hooks, err
}

// crew is the workers, one for each hook that is told.
type crew struct {
	x  *Hooks
	at map[string]*worker
}

// use starts and ends workers until there is one for each of these hooks. A
// hook that changed gets another.
func (c *crew) use(ctx context.Context, hooks []Hook) {
	stay := map[string]int64{}
	for _, h := range hooks {
		stay[h.ID] = h.Version
	}
	for id, w := range c.at {
		if version, ok := stay[id]; !ok || version != w.h.Version {
			w.end()
			delete(c.at, id)
		}
	}
	for _, h := range hooks {
		if c.at[h.ID] == nil {
			w := &worker{x: c.x, h: h}
			ctx, cancel := context.WithCancel(ctx)
			w.cancel = cancel
			w.done.Go(func() { w.run(ctx) })
			c.at[h.ID] = w
		}
	}
}

func (c *crew) end() {
	for _, w := range c.at {
		w.end()
	}
}

// worker tells one hook.
type worker struct {
	x      *Hooks
	h      Hook
	p      Place
	client *http.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (w *worker) end() {
	w.cancel()
	w.done.Wait()
}

// errEnough ends a worker: its hook is told nothing more.
var errEnough = errors.New("the hook is told nothing more")

// run follows the ledger for its hook. It gives up only when the hook is
// disabled: a database that is away must not lose what happened.
func (w *worker) run(ctx context.Context) {
	u, err := checkURL(w.h.URL)
	if err != nil {
		w.x.d.Log.Error("a webhook cannot be told", "webhook", w.h.Name, "error", err)
		return
	}
	w.client = w.x.newClient(u)
	defer w.client.CloseIdleConnections()
	for ctx.Err() == nil {
		if w.p, err = w.x.place(ctx, w.h); err == nil {
			if w.p.Attempts > int64(len(w.x.b.Retry)) {
				w.p.Attempts, w.p.Next = 0, 0 // it was resumed
			}
			err = w.x.d.Store.Follow(ctx, w.p.Seq, func(r store.Recorded) error { return w.take(ctx, r) })
		}
		if errors.Is(err, errEnough) {
			return
		}
		if ctx.Err() == nil {
			w.x.d.Log.Warn("a webhook cannot be told", "webhook", w.h.Name, "error", err)
		}
		pause(ctx, w.x.b.Beat)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// skipAtMost is after how many entries that do not concern a hook its place is
// written all the same.
const skipAtMost = 1000

// take passes over an entry, or delivers it.
func (w *worker) take(ctx context.Context, r store.Recorded) error {
	if w.h.wants(r.Parsed) {
		return w.deliver(ctx, r)
	}
	if r.Seq-w.p.Seq < skipAtMost {
		return nil
	}
	p := w.p
	p.Seq, p.Attempts, p.Next = r.Seq, 0, 0
	if err := w.x.keep(ctx, w.h, p, nil); err != nil {
		return err
	}
	w.p = p
	return nil
}

// deliver sends an entry until it is taken, or the hook is disabled.
func (w *worker) deliver(ctx context.Context, r store.Recorded) error {
	for {
		if wait := time.Until(time.UnixMicro(w.p.Next)); w.p.Attempts > 0 && wait > 0 {
			pause(ctx, wait)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		body, err := w.body(ctx, r)
		if err != nil {
			return err
		}
		began := time.Now()
		res, err := w.x.send(ctx, w.client, w.h, fmt.Sprintf("%s-%d", w.h.ID, r.Seq), body)
		if err != nil {
			return err
		}
		a := Attempt{At: began.UnixMicro(), Seq: r.Seq, Action: string(r.Parsed.Action), Attempt: w.p.Attempts + 1, Took: time.Since(began).Microseconds(), Status: int64(res.status), Failure: res.why}
		p := w.p
		if res.why == "" {
			p.Seq, p.Attempts, p.Next, p.Delivered = r.Seq, 0, 0, p.Delivered+1
		} else {
			p.Attempts, p.Failed = p.Attempts+1, p.Failed+1
			if n := int(p.Attempts); n <= len(w.x.b.Retry) {
				p.Next = time.Now().Add(max(jitter(w.x.b.Retry[n-1]), res.wait)).UnixMicro()
			}
		}
		if err := w.x.keep(ctx, w.h, p, &a); err != nil {
			return err
		}
		w.p = p
		switch {
		case res.why == "":
			return nil
		case res.gone:
			return w.disable(ctx, r.Seq, "the receiver says that it is gone (410)")
		case int(p.Attempts) > len(w.x.b.Retry):
			return w.disable(ctx, r.Seq, fmt.Sprintf("%d attempts in vain, the last: %s", p.Attempts, res.why))
		}
	}
}

// body is read anew for each attempt where payloads go along: what was erased
// since the last one must not be sent by the next.
func (w *worker) body(ctx context.Context, r store.Recorded) ([]byte, error) {
	if w.h.Names {
		now, err := w.x.d.Store.Entries(ctx, store.EntryQuery{After: r.Seq - 1, Oldest: true, Limit: 1})
		if err != nil {
			return nil, err
		}
		if len(now) != 1 || now[0].Seq != r.Seq {
			return nil, fault.New(fault.Internal, "cannot send entry #%d: it is not there", r.Seq).WithHint("handrail ledger verify")
		}
		r = now[0]
	}
	return w.x.bodyOf(w.h, r)
}

// jitter spreads retries, so that those of many do not come at once.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

// disable ends a hook that failed for too long, with an entry that alarms.
func (w *worker) disable(ctx context.Context, seq int64, why string) error {
	_, err := w.x.d.Store.Record(ctx, fmt.Sprintf("webhook/%s/disabled/%d", w.h.ID, w.h.Version), func(tx *store.Tx) ([]ledger.Entry, error) {
		h, err := getTx(tx, w.h.ID)
		if err != nil {
			return nil, err
		}
		if h.State != StateActive || h.Version != w.h.Version {
			return nil, nil // somebody changed it meanwhile, and another worker decides
		}
		h.State, h.Why, h.Version = StateDisabled, why, h.Version+1
		if _, err := tx.Exec(`UPDATE webhooks SET state = $1, why = $2, version = $3 WHERE id = $4`, h.State, h.Why, h.Version, h.ID); err != nil {
			return nil, err
		}
		e := h.entry(ActionDisabled, ledger.System, payload{Why: why, Seq: seq})
		e.Outcome = ledger.Failed
		return []ledger.Entry{e}, nil
	})
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	w.p.Attempts, w.p.Next = 0, 0 // whoever resumes it begins anew
	if err := w.x.keep(ctx, w.h, w.p, nil); err != nil {
		w.x.d.Log.Warn("a disabled webhook keeps its count of attempts", "webhook", w.h.Name, "error", err)
	}
	w.x.Look()
	return errEnough
}

// deliveredPayload is the payload of webhook.delivered: what went to one hook
// since the entry before.
type deliveredPayload struct {
	V         int    `json:"v"`
	Hook      string `json:"hook"`
	Name      string `json:"name"`
	Delivered int64  `json:"delivered"`
	Failed    int64  `json:"failed"` // attempts in vain
	Seq       int64  `json:"seq"`    // all that concerns it up to this entry was taken
}

// tell records what was delivered since the last time, one entry for each hook.
// The counts lie beside the place, so that what a kill interrupts is told later.
func (x *Hooks) tell(ctx context.Context) error {
	listed, err := x.List(ctx)
	if err != nil {
		return err
	}
	var hooks []Hook
	for _, l := range listed {
		hooks = append(hooks, l.Hook)
		if err := x.tellOf(ctx, l); err != nil {
			return err
		}
	}
	return x.tidy(ctx, hooks)
}

func (x *Hooks) tellOf(ctx context.Context, l Listed) error {
	was, err := x.toldOf(ctx, l.Hook)
	if err != nil || l.Delivered <= was.Delivered && l.Failed <= was.Failed {
		return err
	}
	_, err = x.d.Store.Record(ctx, fmt.Sprintf("webhook/%s/%d/%d", l.ID, l.Delivered, l.Failed), func(tx *store.Tx) ([]ledger.Entry, error) {
		rows, err := store.All[told](tx, `SELECT seq, delivered, failed FROM webhook_told WHERE hook = $1`, l.ID)
		if err != nil {
			return nil, err
		}
		was := first(rows)
		if l.Delivered <= was.Delivered && l.Failed <= was.Failed {
			return nil, nil
		}
		if _, err := tx.Exec(`INSERT INTO webhook_told (hook, seq, delivered, failed) VALUES ($1, $2, $3, $4) ON CONFLICT (hook) DO UPDATE SET seq = $2, delivered = $3, failed = $4`,
			l.ID, l.Seq, l.Delivered, l.Failed); err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: ActionDelivered, Subjects: []string{ledger.System}, Target: "webhook/" + l.ID, Payload: deliveredPayload{
			V: 1, Hook: l.ID, Name: l.Name, Delivered: l.Delivered - was.Delivered, Failed: l.Failed - was.Failed, Seq: l.Seq,
		}}}, nil
	})
	return err
}
