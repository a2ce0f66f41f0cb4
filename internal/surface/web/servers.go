package web

import (
	"net/http"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routeServers(mux *http.ServeMux) {
	mux.HandleFunc("GET /servers", s.page(s.showServers))
}

func (s *site) showServers(v *visit) error {
	got, err := s.servers.List(v.ctx, &v1.ListServersRequest{})
	if err != nil {
		return err
	}
	f := v.frame("Servers", "servers")
	return v.show(f, serversPage(f, got.Servers))
}
