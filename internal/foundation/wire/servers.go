package wire

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"net"
	"strconv"

	"handrail.dev/handrail/internal/foundation/fault"
)

const serversPrefix = "handrail-servers-v1\n"

// Bounds of the list of servers.
const (
	MaxServers = 64
	MaxAddress = 256
	maxList    = 32 << 10
)

// Servers is the list of an installation's servers, signed by the order key. A
// node keeps the highest version and connects to no address that is not in it.
type Servers struct {
	V       int        `json:"v"`
	Origin  string     `json:"origin"`
	Version int64      `json:"version"`
	Servers []ServerAt `json:"servers"`
}

// ServerAt is one server: who its certificate must say it is, and where.
type ServerAt struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Draining bool   `json:"draining,omitempty"` // better another one
}

func (s Servers) check() error {
	if s.V != 1 || s.Origin == "" || s.Version <= 0 || len(s.Servers) == 0 || len(s.Servers) > MaxServers {
		return fault.New(fault.Invalid, "cannot read the list of servers: bad form")
	}
	for _, at := range s.Servers {
		host, port, err := net.SplitHostPort(at.Address)
		n, perr := strconv.ParseUint(port, 10, 16)
		if !ValidID('v', at.ID) || err != nil || perr != nil || n == 0 || host == "" || len(at.Address) > MaxAddress {
			return fault.New(fault.Invalid, "cannot read the list of servers: bad entry %.80q", at.Address)
		}
	}
	return nil
}

// SignServers signs a list with the order key.
func SignServers(s Servers, orderKey crypto.Signer) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode the list of servers")
	}
	sig, err := sign(orderKey, serversPrefix, body)
	if err != nil {
		return nil, err
	}
	return packSigned(body, sig), nil
}

// OpenServers checks a list's signature, origin and form.
func OpenServers(b []byte, orderKey ed25519.PublicKey, origin string) (Servers, error) {
	body, sig, err := unpackSigned(b, maxList)
	if err != nil {
		return Servers{}, err
	}
	if !verify(orderKey, serversPrefix, body, sig) {
		return Servers{}, fault.New(fault.Denied, "cannot accept the list of servers: the order key did not sign it")
	}
	var s Servers
	if err := strict(body, &s); err != nil {
		return Servers{}, fault.Wrap(fault.Invalid, err, "cannot read the list of servers")
	}
	if s.Origin != origin {
		return Servers{}, fault.New(fault.Denied, "cannot accept the list of servers: it is of another installation")
	}
	return s, s.check()
}

// ServersAsk asks for a list that is newer than the one that is known.
type ServersAsk struct {
	V     int   `json:"v"`
	Known int64 `json:"known"`
}

// ServersAnswer carries it; nothing when there is none.
type ServersAnswer struct {
	V    int    `json:"v"`
	List []byte `json:"list,omitempty"`
}
