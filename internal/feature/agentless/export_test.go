package agentless

// Streams are those that are open.
func (r *Reach) Streams() []*Stream { return r.where(func(*Stream) bool { return true }) }

// ParseSwept is parseSwept.
var ParseSwept = parseSwept
