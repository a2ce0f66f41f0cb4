package store

import (
	"context"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Export writes a zip that verifies with no server (ledger.VerifyExport): all
// entries up to a checkpoint that is signed now, earlier checkpoints, the trust
// bundle, and the pieces of recordings that blobs hand out. Payloads lie in it
// in clear; those of erased subjects are absent.
func (s *Store) Export(ctx context.Context, w io.Writer, blobs ...BlobExporter) error {
	tree, signed, err := s.Head(ctx)
	if err != nil {
		return err
	}
	var bundle []byte
	if s.cfg.Bundle != nil {
		bundle = s.cfg.Bundle()
	}
	e := ledger.NewExport(w, bundle, "")
	for next := int64(0); next < tree.N; {
		rec, err := s.after(ctx, next-1, verifyStep)
		if err != nil {
			return err
		}
		for _, r := range rec {
			if r.Seq != next {
				return fault.New(fault.Internal, "cannot export entry #%d: it is missing", next).WithHint("handrail ledger verify")
			}
			if r.Seq == tree.N {
				break // younger than the checkpoint
			}
			if err := e.Entry(r.Leaf, r.Salt, r.Payload); err != nil {
				return asFault(err, "export")
			}
			next++
		}
		if len(rec) == 0 {
			return fault.New(fault.Internal, "cannot export entry #%d: it is missing", next).WithHint("handrail ledger verify")
		}
	}
	if err := s.exportCheckpoints(ctx, e, tree.N); err != nil {
		return err
	}
	upTo := func(fn func(Recorded) error) error {
		return s.each(ctx, func(r Recorded) error {
			if r.Seq >= tree.N {
				return nil
			}
			return fn(r)
		})
	}
	for _, b := range blobs {
		if err := exportCosigned(ctx, b, tree.N, e); err != nil {
			return err
		}
		if err := b.ExportBlobs(ctx, upTo, e.Blob); err != nil {
			return err
		}
	}
	return asFault(e.Close(signed), "export")
}

func (s *Store) exportCheckpoints(ctx context.Context, e *ledger.ExportWriter, size int64) error {
	for last := int64(0); ; {
		var rows []checkpointRow
		err := s.View(ctx, func(v *View) (err error) {
			rows, err = All[checkpointRow](v, `SELECT n, signed, chain FROM ledger_checkpoint WHERE n > $1 AND n <= $2 ORDER BY n LIMIT 1000`, last, size)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			if err := e.Checkpoint(r.N, []byte(r.Signed)); err != nil {
				return asFault(err, "export")
			}
			last = r.N
		}
	}
}
