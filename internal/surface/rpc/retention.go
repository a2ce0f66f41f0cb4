package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Retention is what a server's configuration says about payloads, and what came
// of it.
type Retention struct {
	File, Server string
	Rules        []ledger.PruneRule // as of now
	Every        time.Duration
	Looked       time.Time // zero: this server has not, since it started
	Failed       string
}

type retention struct{ d *Deps }

func (s retention) Show(ctx context.Context, _ *handrailv1.ShowRetentionRequest) (*handrailv1.ShowRetentionResponse, error) {
	now := s.d.Now()
	r, err := s.d.Retention(now)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.ShowRetentionResponse{File: r.File, Server: r.Server, Every: durationpb.New(r.Every), LookedAt: stampTime(r.Looked), Failed: r.Failed}
	for _, rule := range r.Rules {
		out.Rules = append(out.Rules, &handrailv1.RetentionRule{Action: rule.Action, Keep: durationpb.New(now.Sub(time.UnixMicro(rule.Before)).Round(time.Second))})
	}
	if len(r.Rules) > 0 {
		due, err := s.d.Store.Prunable(ctx, r.Rules)
		if err != nil {
			return nil, err
		}
		for _, p := range due {
			out.Due = append(out.Due, &handrailv1.DuePayloads{Action: p.Action, Count: uint64(p.Count), Bytes: uint64(p.Bytes), Oldest: stampTime(time.UnixMicro(p.Oldest))})
		}
	}
	last, err := s.d.Store.Entries(ctx, store.EntryQuery{Action: string(ledger.ActionPruned), Limit: 1})
	if err != nil || len(last) == 0 {
		return out, err
	}
	p, err := ledger.ParsePruned(last[0].Payload)
	out.PrunedNumber, out.PrunedAt, out.PrunedCount = uint64(last[0].Seq), stampTime(time.UnixMicro(last[0].Parsed.Time)), uint64(p.Count)
	return out, err
}
