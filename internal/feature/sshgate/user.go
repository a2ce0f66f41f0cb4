package sshgate

import (
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// ParseUser reads the user part of `ssh USER@gateway`: HOST, HOST+read or
// HOST+write.
func ParseUser(user string) (host, level string, err error) {
	host, level, chosen := strings.Cut(user, "+")
	if !chosen {
		level = wire.LevelRead
	}
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, bad) || host[0] == '-' || host[0] == '.' {
		return "", "", fault.New(fault.Invalid, "cannot tell the host: the part before @ is HOST to read, or HOST+write").
			WithHint("ssh HOST@gateway")
	}
	if level != wire.LevelRead && level != wire.LevelWrite {
		return "", "", fault.New(fault.Invalid, "cannot open a session of that level: after the + stands read or write").
			WithHint("ssh %s+write@gateway", host)
	}
	return host, level, nil
}
