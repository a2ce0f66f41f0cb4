package rpc

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"

	"connectrpc.com/connect"
)

func TestACallerThatWentAwayIsNoFailure(t *testing.T) {
	var log bytes.Buffer
	g := &gate{log: slog.New(slog.NewTextHandler(&log, nil))}
	left := connect.NewError(connect.CodeCanceled, io.ErrClosedPipe)
	if got := g.leave(left); !errors.Is(got, io.ErrClosedPipe) || log.Len() != 0 {
		t.Fatalf("left: %v, log %q", got, &log)
	}
	if got := g.leave(io.ErrClosedPipe); connect.CodeOf(got) != connect.CodeInternal || log.Len() == 0 {
		t.Fatalf("failed: %v, log %q", got, &log)
	}
}
