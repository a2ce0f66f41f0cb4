package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// progressEvery is how often a long check says how far it is.
const progressEvery = 100 * time.Millisecond

func (s ledgers) Verify(ctx context.Context, _ *handrailv1.VerifyRequest, out *connect.ServerStream[handrailv1.VerifyResponse]) error {
	check := func(ctx context.Context) (ledger.Outcome, error) {
		report, err := Verify(ctx, s.d.Store, s.d.Recordings, func(m *handrailv1.VerifyResponse) { _ = out.Send(m) }) // the last message tells
		if err != nil {
			return ledger.Failed, err
		}
		outcome := ledger.OK
		if !report.Ok {
			outcome = ledger.Failed
		}
		return outcome, out.Send(report)
	}
	act := doorway.Act{Action: "ledger.verify", By: caller(ctx)}
	if s.d.Store.Damage() != nil {
		// Nothing can be recorded, which is why somebody asks.
		if err := s.d.Door.Read(ctx, act); err != nil {
			return err
		}
		_, err := check(ctx)
		return err
	}
	act.Open = s.note(ctx, ledgerVerified)
	_, err := s.d.Door.Do(ctx, act, func(ctx context.Context, _ doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		outcome, err := check(ctx)
		return outcome, nil, err
	})
	return err
}

// Verify recomputes the ledger from what lies on disk and says what was
// touched. A ledger that accepts no entry any more has no newest checkpoint,
// and does not verify.
func Verify(ctx context.Context, s *store.Store, recordings store.BlobVerifier, progress func(*handrailv1.VerifyResponse)) (*handrailv1.VerifyResponse, error) {
	var last time.Time
	report, err := s.Verify(ctx, func(done, total int64) {
		if time.Since(last) >= progressEvery {
			last = time.Now()
			progress(&handrailv1.VerifyResponse{Checked: uint64(done), Total: uint64(total)})
		}
	}, recordings)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.VerifyResponse{
		Checked: uint64(report.Entries), Total: uint64(report.Entries), Done: true, Ok: report.OK,
		Findings: each(report.Findings, ledger.Finding.String), Recordings: uint64(report.Recordings), Payloads: uint64(report.Payloads),
	}
	if damage := s.Damage(); damage != nil {
		out.Ok, out.Findings = false, append(out.Findings, damage.Error())
		return out, nil
	}
	_, signed, err := s.Head(ctx)
	out.Checkpoint = string(signed)
	return out, err
}
