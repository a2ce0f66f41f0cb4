package store

import (
	"context"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// CosignedExporter hands out, for an export of that many entries, checkpoints
// that outside witnesses cosigned.
type CosignedExporter interface {
	ExportCosigned(ctx context.Context, size int64, put func(n int64, signed []byte) error) error
}

func exportCosigned(ctx context.Context, from any, size int64, e *ledger.ExportWriter) error {
	c, ok := from.(CosignedExporter)
	if !ok {
		return nil
	}
	return asFault(c.ExportCosigned(ctx, size, e.Cosigned), "export")
}
