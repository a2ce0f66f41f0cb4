package fake

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

type vouchers struct {
	handrailv1connect.UnimplementedVouchersHandler
}

func (vouchers) Drills(context.Context, *v1.DrillsRequest) (*v1.DrillsResponse, error) {
	at := timestamppb.New(time.Now().Add(-26 * time.Hour))
	return &v1.DrillsResponse{Drills: []*v1.Drill{
		{Id: "s-dr111111", HostName: "web-1", PersonName: "ada", At: at, Took: durationpb.New(1310 * time.Millisecond), Outcome: "ok"},
		{Id: "s-dr222222", HostName: "a-host-with-a-name-that-is-long-enough-to-break-a-row.example.org", PersonName: "grace", At: at, Outcome: "failed", Failure: "ssh: connect to host 192.0.2.7 port 7322: Connection refused"},
	}}, nil
}

func (vouchers) List(context.Context, *v1.ListVouchersRequest) (*v1.ListVouchersResponse, error) {
	return &v1.ListVouchersResponse{Vouchers: []*v1.Voucher{
		{Serial: 7, PersonName: "ada", Key: "hardware", Hosts: 12, Expires: timestamppb.New(time.Now().Add(9 * time.Hour))},
	}}, nil
}
