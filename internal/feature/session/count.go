package session

// LiveOn is how many sessions this server has live on a host.
func (s *Sessions) LiveOn(host string) int {
	return len(s.all(func(i Info) bool { return i.Host == host && i.State != StateEnded }))
}
