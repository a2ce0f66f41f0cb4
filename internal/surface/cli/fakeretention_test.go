package cli_test

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

type fakeRetention struct {
	handrailv1connect.UnimplementedRetentionHandler
	*fake
}

func (f *fakeRetention) Show(context.Context, *v1.ShowRetentionRequest) (*v1.ShowRetentionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.retention == nil {
		return &v1.ShowRetentionResponse{File: "/etc/handrail/handrail.toml", Server: "keep-1", Every: durationpb.New(6 * time.Hour)}, nil
	}
	return f.retention, nil
}

// retain configures what is let go, and has something due.
func (f *fake) retain() {
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }
	const day = 24 * time.Hour
	f.retention = &v1.ShowRetentionResponse{
		File: "/etc/handrail/handrail.toml", Server: "keep-1", Every: durationpb.New(6 * time.Hour), LookedAt: ago(time.Hour), Failed: "cannot write",
		Rules: []*v1.RetentionRule{{Action: "inspection.*", Keep: durationpb.New(400 * day)}, {Action: "node.*", Keep: durationpb.New(200 * day)}, {Action: "node.reported", Keep: durationpb.New(90 * day)}},
		Due:   []*v1.DuePayloads{{Action: "node.joined", Count: 1, Bytes: 600, Oldest: ago(201 * day)}, {Action: "node.reported", Count: 12, Bytes: 4096, Oldest: ago(91 * day)}},

		PrunedNumber: 77, PrunedAt: ago(30 * day), PrunedCount: 40,
	}
}
