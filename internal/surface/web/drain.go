package web

import (
	"net/http"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeDrains(mux *http.ServeMux) {
	mux.HandleFunc("POST /hosts/{host}/drain", s.page(s.drain))
	mux.HandleFunc("POST /hosts/{host}/undrain", s.page(s.undrain))
}

func (s *site) drain(v *visit) error {
	host := v.r.PathValue("host")
	length, err := time.ParseDuration(v.form("for"))
	if err != nil || length <= 0 {
		return fault.New(fault.Invalid, "cannot drain %s for %q: not a length of time such as 2h", host, v.form("for"))
	}
	if _, err := s.drains.Drain(v.ctx, &v1.DrainHostRequest{Host: host, For: durationpb.New(length), Why: v.form("why")}); err != nil {
		return err
	}
	return v.goOn("/hosts/"+host, "drained")
}

func (s *site) undrain(v *visit) error {
	host := v.r.PathValue("host")
	if _, err := s.drains.Undrain(v.ctx, &v1.UndrainHostRequest{Host: host}); err != nil {
		return err
	}
	return v.goOn("/hosts/"+host, "undrained")
}
