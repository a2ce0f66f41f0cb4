package rpc

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"

	"connectrpc.com/connect"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestACallerThatWentAwayIsNoFailure(t *testing.T) {
	var log bytes.Buffer
	g := &gate{log: slog.New(slog.NewTextHandler(&log, nil))}
	left := connect.NewError(connect.CodeCanceled, io.ErrClosedPipe)
	if got := g.leave(left); !errors.Is(got, io.ErrClosedPipe) || log.Len() != 0 {
		t.Fatalf("left: %v, log %q", got, &log)
	}
	away := fault.Wrap(fault.Unavailable, left, "cannot ask the other server")
	if got := g.leave(away); connect.CodeOf(got) != connect.CodeUnavailable {
		t.Fatalf("what failed because another went away lost its words: %v", got)
	}
	if got := g.leave(io.ErrClosedPipe); connect.CodeOf(got) != connect.CodeInternal || log.Len() == 0 {
		t.Fatalf("failed: %v, log %q", got, &log)
	}
}
