package app

import (
	"crypto/tls"

	"handrail.dev/handrail/internal/foundation/oidc"
	"handrail.dev/handrail/internal/surface/rpc"
)

// openProvider makes the client of the company's provider, where one is
// configured. It asks the provider nothing: while that is down, everything else
// works.
func (s *Server) openProvider() {
	if s.c.sections.OIDC != nil {
		s.provider = oidc.New(*s.c.sections.OIDC, oidc.Deps{Seals: s.ring.Subjects(), Page: s.url(), Log: s.c.Log})
	}
}

// openWorkloads makes what checks robots' tokens.
func (s *Server) openWorkloads() *oidc.Workloads {
	return oidc.NewWorkloads(s.c.sections.Workloads, oidc.Deps{Seals: s.ring.Subjects(), Log: s.c.Log})
}

// forRobots is the TLS of connections to the name by which robots with a key
// call: any certificate is taken, for the key that it proves alone. Nobody else
// is asked for one of theirs; others get their configuration as it is now.
func forRobots(conf *tls.Config, others func() *tls.Config) *tls.Config {
	robots := conf.Clone()
	robots.ClientAuth, robots.ClientCAs = tls.RequireAnyClientCert, nil
	robots.NextProtos = []string{"h2", "http/1.1"}
	robots.SessionTicketsDisabled = true // each connection proves the key itself
	out := conf.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == rpc.RobotName {
			return robots, nil
		}
		return others(), nil
	}
	return out
}

// providerApproves says whether a login at the provider may make credentials
// that approve.
func (s *Server) providerApproves() bool {
	return s.c.sections.OIDC != nil && s.c.sections.OIDC.MayApprove
}
