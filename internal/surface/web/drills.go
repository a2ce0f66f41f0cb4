package web

import (
	"net/http"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routeDrills(mux *http.ServeMux) {
	mux.HandleFunc("GET /drills", s.page(s.showDrills))
}

func (s *site) showDrills(v *visit) error {
	drills, err := s.vouchers.Drills(v.ctx, &v1.DrillsRequest{})
	if err != nil {
		return err
	}
	out, err := s.vouchers.List(v.ctx, &v1.ListVouchersRequest{})
	if err != nil {
		return err
	}
	f := v.frame("Drills", "hosts")
	return v.show(f, drillsPage(f, drills.Drills, out.Vouchers))
}

// took is the length of a drill as people say it.
func took(d *durationpb.Duration) string { return d.AsDuration().Round(10 * time.Millisecond).String() }
