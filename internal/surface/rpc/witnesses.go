package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/ledger"
)

type witnesses struct{ d *Deps }

func (s witnesses) List(context.Context, *handrailv1.ListWitnessesRequest) (*handrailv1.ListWitnessesResponse, error) {
	states, p, version := s.d.Witnesses.List()
	bundle, _ := s.d.Ring.Bundle()
	out := &handrailv1.ListWitnessesResponse{
		Policy: ledger.SimplePolicy(nil, nil, 0), Version: uint64(version), Need: int32(p.Need()), LogKey: bundle.LogKey, WitnessKey: s.d.WitnessKey,
	}
	if text := p.Text(); text != "" {
		out.Policy = text
	}
	for _, w := range states {
		out.Witnesses = append(out.Witnesses, &handrailv1.Witness{
			Name: w.Name, Key: w.Key, Url: w.URL, Size: uint64(w.Size), CosignedAt: stampTime(w.At),
			Took: durationpb.New(w.Took), MissingSince: stampTime(w.Missing), Why: w.Why,
		})
	}
	if p.Wants() {
		tail := s.d.Witnesses.Tail()
		out.Tail, out.CosignedAt, out.Late = uint64(max(tail.Entries, 0)), stampTime(tail.Since), tail.Late
	}
	if _, signed, ok := s.d.Witnesses.Newest(); ok {
		out.Checkpoint = string(signed)
	}
	return out, nil
}

func (s witnesses) Set(ctx context.Context, r *handrailv1.SetWitnessesRequest) (*handrailv1.SetWitnessesResponse, error) {
	approval, err := s.d.Witnesses.Set(ctx, caller(ctx), int64(r.Base), r.Policy)
	return &handrailv1.SetWitnessesResponse{Approval: approval}, err
}

func witnessSet(s *said) string {
	p := read[struct{ Text string }](s)
	policy, err := ledger.ParseWitnessPolicy([]byte(p.Text))
	if err != nil {
		return s.who() + " set the witnesses of the ledger"
	}
	names := make([]string, 0, len(policy.Witnesses))
	for _, w := range policy.Witnesses {
		names = append(names, w.Name)
	}
	if len(names) == 0 {
		return s.who() + " set the witnesses of the ledger: none"
	}
	return s.who() + " set the witnesses of the ledger: " + strings.Join(names, ", ")
}

// witnessPayload is of witness.missing, .refused and .returned.
type witnessPayload struct {
	Name, Why string
	Since     int64
}

func witnessMissing(s *said) string {
	p := read[witnessPayload](s)
	if s.Action == "witness.refused" {
		return "witness " + p.Name + " REFUSES to cosign the ledger" + because(p.Why)
	}
	return "witness " + p.Name + " is missing since " + clock(p.Since) + because(p.Why)
}

func witnessReturned(s *said) string {
	p := read[witnessPayload](s)
	return "witness " + p.Name + " cosigns again, after " + time.UnixMicro(p.Since).UTC().Format("15:04 MST")
}
