package app

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/role"
)

// Vouchers need the fleet, which needs what vouchers say in leases: so the
// fleet is given these questions, and they are answered once vouchers are there.

func (s *Server) openVouchers(context.Context) error {
	s.vouchers.Store(voucher.New(voucher.Deps{
		Store: s.store, Ring: s.ring, Door: s.door, People: s.people, Hosts: s.hosts, Policy: s.force, Access: s.access,
		Sessions: s.sessions, Nodes: guests{s.fleet}, Epochs: s.epochs, Dir: filepath.Join(s.p.server(), "journals"), Log: s.c.Log,
	}))
	return nil
}

// voucherAnswers are what nodes ask of vouchers.
func (s *Server) voucherAnswers() map[string]func(context.Context, string, []byte) []byte {
	later := func(answer func(*voucher.Vouchers) func(context.Context, string, []byte) []byte) func(context.Context, string, []byte) []byte {
		return func(ctx context.Context, host string, data []byte) []byte {
			v := s.vouchers.Load()
			if v == nil {
				return nil // the node asks again
			}
			return answer(v)(ctx, host, data)
		}
	}
	return map[string]func(context.Context, string, []byte) []byte{
		wire.UpEntrance: later(func(v *voucher.Vouchers) func(context.Context, string, []byte) []byte { return v.Keys }),
		wire.UpJournal:  later(func(v *voucher.Vouchers) func(context.Context, string, []byte) []byte { return v.Take }),
	}
}

func (s *Server) revokedVouchers(ctx context.Context) ([]uint64, error) {
	v := s.vouchers.Load()
	if v == nil {
		return nil, nil
	}
	return v.Revoked(ctx)
}

// voucherBanners hang for a day over everything after a voucher was used.
func (s *Server) voucherBanners(ctx context.Context) (out []notice.Banner, err error) {
	v := s.vouchers.Load()
	if v == nil {
		return nil, nil
	}
	words, err := v.Lately(ctx)
	for _, text := range words {
		out = append(out, notice.Banner{Loud: true, Text: text})
	}
	return out, err
}

// guests gives vouchers the fleet in their own words.
type guests struct{ f *fleet.Fleet }

func (g guests) Order(ctx context.Context, pass doorway.Pass, host string) error {
	return g.f.Resume(ctx, pass, host)
}

func (g guests) Addresses(host string) []string {
	for _, fact := range g.f.Node(host).Facts {
		if fact.Name == "addresses" && !strings.HasPrefix(fact.Value, "unreadable") {
			return strings.FieldsFunc(fact.Value, func(r rune) bool { return r == ' ' || r == ',' })
		}
	}
	return nil
}

// entranceFlag says where people with vouchers come in.
func entranceFlag(cmd *cobra.Command, at *string, usual string) {
	cmd.Flags().StringVar(at, "entrance", "", "where people with vouchers come in while no server answers, or \""+role.NoEntrance+"\" (default "+usual+"; closed while a server answers)")
}

// entrance is this machine's: on loopback like the page, unless somebody says
// otherwise. What cannot be read gives none.
func (s *supervisor) entrance() string {
	asked := s.c.Entrance
	if asked == "" {
		asked = "127.0.0.1" + role.DefaultEntrance
	}
	at, err := role.EntranceAt(asked)
	if err != nil {
		logger().Error("there is no entrance for vouchers", "error", err)
	}
	return at
}
