package session

// LiveOn is how many sessions are live on a host, those of other homes too.
func (s *Sessions) LiveOn(host string) int {
	on := func(i Info) bool { return i.Host == host && i.State != StateEnded }
	return len(s.all(on)) + len(s.elsewhere(on))
}
