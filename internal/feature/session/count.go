package session

import "handrail.dev/handrail/internal/foundation/store"

// LiveOn is how many sessions are live on a host, those of other homes too.
func (s *Sessions) LiveOn(host string) int {
	on := func(i Info) bool { return i.Host == host && i.State != StateEnded }
	return len(s.all(on)) + len(s.elsewhere(on))
}

// OthersTx is how many open sessions of anybody else are on a host.
func OthersTx(q store.Queryer, host, person string) (int64, error) {
	return store.One[int64](q, `SELECT COUNT(*) FROM sessions WHERE host = $1 AND person <> $2 AND ended = 0`, host, person)
}
