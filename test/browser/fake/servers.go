package fake

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

type servers struct {
	handrailv1connect.UnimplementedServersHandler
}

func (servers) List(context.Context, *v1.ListServersRequest) (*v1.ListServersResponse, error) {
	seen := timestamppb.New(time.Now().Add(-2 * time.Second))
	return &v1.ListServersResponse{Servers: []*v1.Server{
		{Id: "v-4f9k2m7x", Name: "north", State: "active", Address: "north.example.org:7080", SshAddress: "north.example.org:7022", Version: "0.1.0", Nodes: 212, Sessions: 9, Seen: seen, Self: true},
		{Id: "v-2m4x8c1d", Name: "south", State: "draining", Address: "south.example.org:7080", SshAddress: "south.example.org:7022", Version: "0.1.0", Behind: 3, Nodes: 4, Sessions: 1, Seen: seen},
		{Id: "v-1t5y9u3i", Name: "west", State: "away", Address: "west.example.org:7080", SshAddress: "west.example.org:7022", Version: "0.0.9", Behind: 1204, Seen: timestamppb.New(time.Now().Add(-time.Hour))},
	}}, nil
}
