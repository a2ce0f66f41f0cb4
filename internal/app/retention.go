package app

import (
	"context"
	"maps"
	"os"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/when"
	"handrail.dev/handrail/internal/surface/rpc"
)

// retention says how long payloads are kept, by action: a table of the
// configuration. What it does not name is kept for ever, and so is every leaf.
//
//	[retention]
//	"node.reported" = "90d"
//	"inspection.*" = "400d"
type retention map[string]string

// leastRetention keeps a slip from emptying the ledger.
const leastRetention = 24 * time.Hour

// retainEvery is how often it is looked whether something is due.
const retainEvery = 6 * time.Hour

// rules are what is due at a moment, in the same order each time.
func (r retention) rules(now time.Time) ([]ledger.PruneRule, error) {
	var rules []ledger.PruneRule
	for _, action := range slices.Sorted(maps.Keys(r)) {
		long, err := when.Duration(r[action])
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot keep %q for %q", action, r[action])
		}
		if long < leastRetention {
			return nil, fault.New(fault.Invalid, "cannot keep %q for %s only: a day is the least", action, r[action])
		}
		rules = append(rules, ledger.PruneRule{Action: action, Before: now.Add(-long).UnixMicro()})
	}
	if len(rules) == 0 {
		return nil, nil
	}
	return rules, ledger.Pruned{V: 1, Rules: rules}.Check()
}

// retainLook is one look at what is due.
type retainLook struct {
	at     time.Time
	failed string
}

// retention is what the configuration says now, for whoever asks.
func (s *Server) retention(now time.Time) (rpc.Retention, error) {
	rules, err := s.c.sections.Retention.rules(now)
	r := rpc.Retention{File: s.c.sections.File, Server: s.id, Rules: rules, Every: retainEvery}
	if r.Server == "" {
		r.Server, _ = os.Hostname()
	}
	if look := s.retained.Load(); look != nil {
		r.Looked, r.Failed = look.at, look.failed
	}
	return r, err
}

// retain lets go of payloads whose time is over, until ctx ends.
func (s *Server) retain(ctx context.Context) error {
	if len(s.c.sections.Retention) == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		now := time.Now()
		rules, err := s.c.sections.Retention.rules(now)
		if err == nil {
			_, err = s.store.Prune(ctx, rules)
		}
		look := retainLook{at: now}
		if err != nil && ctx.Err() == nil {
			s.c.Log.Warn("payloads whose time is over could not be let go", "error", err)
			look.failed = fault.From(err).Text
		}
		s.retained.Store(&look)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
