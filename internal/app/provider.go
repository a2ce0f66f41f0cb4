package app

import "handrail.dev/handrail/internal/foundation/oidc"

// openProvider makes the client of the company's provider, where one is
// configured. It asks the provider nothing: while that is down, everything else
// works.
func (s *Server) openProvider() {
	if s.c.sections.OIDC != nil {
		s.provider = oidc.New(*s.c.sections.OIDC, oidc.Deps{Seals: s.ring.Subjects(), Page: s.url(), Log: s.c.Log})
	}
}

// providerApproves says whether a login at the provider may make credentials
// that approve.
func (s *Server) providerApproves() bool {
	return s.c.sections.OIDC != nil && s.c.sections.OIDC.MayApprove
}
