package fake

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type vouchers struct {
	handrailv1connect.UnimplementedVouchersHandler
	a *API
}

func (v vouchers) Drills(context.Context, *v1.DrillsRequest) (*v1.DrillsResponse, error) {
	if v.a.kind == Fresh {
		return &v1.DrillsResponse{}, nil
	}
	at := timestamppb.New(time.Now().Add(-26 * time.Hour))
	return &v1.DrillsResponse{Drills: []*v1.Drill{
		{Id: "s-dr111111", HostName: "web-1", PersonName: "ada", At: at, Took: durationpb.New(1310 * time.Millisecond), Outcome: "ok"},
		{Id: "s-dr222222", HostName: "a-host-with-a-name-that-is-long-enough-to-break-a-row.example.org", PersonName: "grace", At: at, Outcome: "failed", Failure: "ssh: connect to host 192.0.2.7 port 7322: Connection refused"},
	}}, nil
}

func (v vouchers) List(context.Context, *v1.ListVouchersRequest) (*v1.ListVouchersResponse, error) {
	if v.a.kind == Fresh {
		return &v1.ListVouchersResponse{}, nil
	}
	return &v1.ListVouchersResponse{Vouchers: []*v1.Voucher{
		{Serial: 7, PersonName: "ada", Key: "hardware", Hosts: 12, Expires: timestamppb.New(time.Now().Add(9 * time.Hour))},
	}}, nil
}

// KeyBegin asks for a passkey that no browser has: the page before it is what
// is looked at.
func (vouchers) KeyBegin(_ context.Context, r *v1.VoucherKeyBeginRequest) (*v1.VoucherKeyBeginResponse, error) {
	if r.PublicKey == "" {
		return nil, wrong(fault.New(fault.Invalid, "cannot read a public key: it is no line of authorized_keys").WithHint("handrail voucher key FILE.pub"))
	}
	return &v1.VoucherKeyBeginResponse{
		OptionsJson: `{"challenge":"q83vASNFZ4mrze8BI0VniQ","rpId":"localhost"}`, Ceremony: "c-4f9k2m7x", Fingerprint: "SHA256:8bQh0vJ2rXoN1ZkUu7nQy6l3fZt5m9s4c0gEwYq2pTA",
	}, nil
}
