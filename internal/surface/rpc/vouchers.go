package rpc

import (
	"context"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/voucher"
)

type vouchers struct{ d *Deps }

func (s vouchers) Fetch(ctx context.Context, r *handrailv1.FetchVoucherRequest) (*handrailv1.FetchVoucherResponse, error) {
	given, err := s.d.Vouchers().Fetch(ctx, caller(ctx), r.PublicKey, r.Hosts)
	if err != nil {
		return nil, err
	}
	return &handrailv1.FetchVoucherResponse{
		Certificate: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(given.Certificate))), Serial: given.Certificate.Serial,
		Key: given.Key, Expires: stampTime(given.Expires), LeftOut: given.LeftOut,
		Hosts: each(given.Places, func(p voucher.Place) *handrailv1.VoucherHost {
			return &handrailv1.VoucherHost{Id: p.ID, Name: p.Name, Account: p.Account, Addresses: p.Addresses, Port: uint32(p.Port), HostKey: p.HostKey}
		}),
	}, nil
}

func (s vouchers) List(ctx context.Context, r *handrailv1.ListVouchersRequest) (*handrailv1.ListVouchersResponse, error) {
	out, err := s.d.Vouchers().List(ctx, caller(ctx), r.Mine)
	return &handrailv1.ListVouchersResponse{Vouchers: each(out, func(v voucher.Out) *handrailv1.Voucher {
		return &handrailv1.Voucher{Serial: uint64(v.Serial), PersonName: v.PersonName, Key: v.Key, Hosts: uint32(v.Hosts), Issued: stamp(v.Issued), Expires: stamp(v.Expires)}
	})}, err
}

func (s vouchers) Drill(ctx context.Context, r *handrailv1.DrillRequest) (*handrailv1.DrillResponse, error) {
	d, until, err := s.d.Vouchers().Rehearse(ctx, caller(ctx), r.Host, r.For.AsDuration())
	if err != nil {
		return nil, err
	}
	return &handrailv1.DrillResponse{Id: d.ID, HostName: d.HostName, Until: stampTime(until)}, nil
}

func (s vouchers) Drilled(ctx context.Context, r *handrailv1.DrilledRequest) (*handrailv1.DrilledResponse, error) {
	d, err := s.d.Vouchers().End(ctx, caller(ctx), r.Id, r.Took.AsDuration(), r.Failure)
	if err != nil {
		return nil, err
	}
	return &handrailv1.DrilledResponse{Drill: drillMessage(d)}, nil
}

func (s vouchers) Drills(ctx context.Context, _ *handrailv1.DrillsRequest) (*handrailv1.DrillsResponse, error) {
	list, err := s.d.Vouchers().Drills(ctx)
	return &handrailv1.DrillsResponse{Drills: each(list, drillMessage)}, err
}

func drillMessage(d voucher.Drill) *handrailv1.Drill {
	return &handrailv1.Drill{
		Id: d.ID, HostName: d.HostName, PersonName: d.PersonName, At: stamp(d.At), Took: durationpb.New(time.Duration(d.Took) * time.Microsecond),
		Outcome: d.Outcome, Failure: d.Failure,
	}
}

func (s vouchers) KeyBegin(ctx context.Context, r *handrailv1.VoucherKeyBeginRequest) (*handrailv1.VoucherKeyBeginResponse, error) {
	options, ceremony, print, err := s.d.Vouchers().KeyBegin(ctx, caller(ctx), r.PublicKey)
	return &handrailv1.VoucherKeyBeginResponse{OptionsJson: options, Ceremony: ceremony, Fingerprint: print}, err
}

func (s vouchers) KeyFinish(ctx context.Context, r *handrailv1.VoucherKeyFinishRequest) (*handrailv1.VoucherKeyFinishResponse, error) {
	print, err := s.d.Vouchers().KeyFinish(ctx, caller(ctx), r.PublicKey, r.Ceremony, r.ResponseJson)
	return &handrailv1.VoucherKeyFinishResponse{Fingerprint: print}, err
}

func (s vouchers) Revoke(ctx context.Context, r *handrailv1.RevokeVoucherRequest) (*handrailv1.RevokeVoucherResponse, error) {
	err := s.d.Vouchers().Revoke(ctx, caller(ctx), r.Serial, r.Reason)
	return &handrailv1.RevokeVoucherResponse{}, err
}
