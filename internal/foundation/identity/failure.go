package identity

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// failures counts what people without a login fail at. Whatever a stranger
// does, it makes the ledger grow by one bounded entry a minute.
type failures struct {
	mu     sync.Mutex
	since  time.Time
	counts map[string]map[string]int64 // source → reason → times
	others int64
}

const (
	failureSources = 256
	failureReasons = 8
)

// FailedLogin counts a failure of somebody without a login. reason is one of a
// few constant words, never what the stranger sent.
func (p *People) FailedLogin(source, reason string) {
	p.failures.add(bare(source), reason, 1, time.Now())
	p.failed.Add(1)
}

// FailedLogins is how many failed at this server since its start.
func (p *People) FailedLogins() int64 { return p.failed.Load() }

func (f *failures) add(source, reason string, times int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts, f.since = map[string]map[string]int64{}, now
	}
	reasons, ok := f.counts[source]
	if !ok {
		if len(f.counts) >= failureSources {
			f.others += times
			return
		}
		reasons = map[string]int64{}
		f.counts[source] = reasons
	}
	if _, ok := reasons[reason]; !ok && len(reasons) >= failureReasons {
		reason = "other"
	}
	reasons[reason] += times
}

// take empties the counts.
func (f *failures) take() (FailuresPayload, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		return FailuresPayload{}, false
	}
	out := FailuresPayload{V: 1, Minute: micros(f.since), Others: f.others}
	for source, reasons := range f.counts {
		out.Sources = append(out.Sources, SourceFailure{Source: source, Counts: reasons})
	}
	slices.SortFunc(out.Sources, func(a, b SourceFailure) int { return strings.Compare(a.Source, b.Source) })
	f.counts, f.others = nil, 0
	return out, true
}

// recordFailures writes one entry for what was counted. If the database is
// away the counts are kept for the next minute.
func (p *People) recordFailures(ctx context.Context) {
	counted, any := p.failures.take()
	if !any {
		return
	}
	err := p.record(ctx, func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: LoginFailed, Outcome: ledger.Denied, Subjects: []string{ledger.System}, Payload: counted}}, nil
	})
	if err == nil {
		return
	}
	p.failures.mu.Lock()
	p.failures.others += counted.Others
	p.failures.mu.Unlock()
	for _, s := range counted.Sources {
		for reason, times := range s.Counts {
			p.failures.add(s.Source, reason, times, fromMicros(counted.Minute))
		}
	}
}
