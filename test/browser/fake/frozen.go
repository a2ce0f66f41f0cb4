package fake

import (
	"encoding/json"
	"net/http"

	"connectrpc.com/connect"

	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/surface/web"
)

// frozen answers every call as a server does that is cut off from its database.
func frozen(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(web.CutHeader, "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": "unavailable",
		"message": "cannot do this here: this server is cut off from the database since 14:05:11 UTC; try south at south.example.org:7080"})
}

// brakes are the calls that work without the database.
func (a *API) brakes(mux *http.ServeMux) http.Handler {
	with := connect.WithInterceptors(guard{a})
	_, people := handrailv1connect.NewPeopleHandler(people{a: a}, with)
	_, grants := handrailv1connect.NewGrantsHandler(grants{a: a}, with)
	_, sessions := handrailv1connect.NewSessionsHandler(sessions{a: a}, with)
	mux.Handle(handrailv1connect.PeopleLockProcedure, people)
	mux.Handle(handrailv1connect.GrantsRevokeProcedure, grants)
	mux.Handle(handrailv1connect.SessionsPauseProcedure, sessions)
	mux.Handle(handrailv1connect.SessionsStopProcedure, sessions)
	return mux
}
