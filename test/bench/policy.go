package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/target"
)

// policies prints what a decision costs with the default set and a hundred
// rules more, a quarter of them about the action that is asked for. Every
// answer is looked at: one that is quick and wrong counts for nothing.
func (b *bench) policies(ctx context.Context) error {
	set := policy.Default()
	var text strings.Builder
	verbs := []string{"sessions.open", "hosts.list", "people.lock", "ledger.export"}
	for i := range 100 {
		fmt.Fprintf(&text, "@id(\"team-%d\") @says(\"team %d\") permit (principal is Person in Group::\"team-%d\", action == Action::\"%s\", resource) when { context.level == \"read\" };\n", i, i, i, verbs[i%4])
	}
	set.Files = append(set.Files, policy.File{Name: "zz-bench.cedar", Text: text.String()})
	engine, problems := policy.Parse(set)
	if engine == nil {
		return fmt.Errorf("%s", problems[0])
	}
	host := &target.Host{ID: "h-00000001", Name: "web-1", Environment: "production", Scope: "none"}
	ada := identity.Principal{ID: "p-00000001", Name: "ada", Kind: identity.KindPerson, Groups: []string{"developer", "team-8"}}
	for _, ask := range []struct {
		name  string
		query policy.Query
		allow bool
	}{
		{"allowed", policy.Query{Principal: ada, Action: "sessions.open", Host: host, Context: policy.Context{Level: "read", FloorOK: true}}, true},
		{"refused", policy.Query{Principal: ada, Action: "sessions.open", Host: host, Context: policy.Context{Level: "write", FloorOK: true}}, false},
		{"in error, refused", policy.Query{Principal: ada, Action: "no.such", Host: host}, false},
	} {
		if err := b.decisions(ctx, engine, ask.name, ask.query, ask.allow); err != nil {
			return err
		}
	}
	b.t.note("no peer is a Debian package; OPA's own figure for a rule of this kind is about 35 µs, on another machine")
	return nil
}

// serverHeap is less than a server has in use, so that memory is collected as
// often as it is there, and not with each few thousand decisions.
const serverHeap = 16 << 20

func (b *bench) decisions(ctx context.Context, engine *policy.Engine, name string, q policy.Query, allow bool) error {
	const each = 100_000
	var p50, p99, used []float64
	took := make([]float64, each)
	heap := make([]byte, serverHeap)
	defer runtime.KeepAlive(heap)
	for range each { // a server has its memory already; what touches it first is not the decision
		engine.Decide(q)
	}
	for range b.turns {
		before := ownTime()
		for i := range took {
			start := time.Now()
			d := engine.Decide(q)
			took[i] = micros(time.Since(start))
			if d.Allowed != allow {
				return errors.New("a decision " + name + " was the other one: " + d.Text)
			}
		}
		used = append(used, micros(ownTime()-before)/each)
		p50, p99 = append(p50, quantile(took, 0.5)), append(p99, quantile(took, 0.99))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	b.t.alone("a decision, "+name+": p50", µsParts, median(p50), 0)
	b.t.alone("a decision, "+name+": p99", µsParts, median(p99), 5)
	b.t.alone("a decision, "+name+": processor", µsParts, median(used), 0)
	return nil
}
