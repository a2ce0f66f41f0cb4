package wire

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A forwarded port is reached from the host, by a session of its own: its kind
// is SessionForward, its command the destination, "address:port". What a grant
// allows is written the same, and "address:*" is every port of an address.

// ForwardConnected is the first error output of a forwarded port's session, once
// its other end has answered; anything else says why it has not.
const ForwardConnected = "connected\n"

// MaxForwards bounds the destinations of one grant.
const MaxForwards = 16

const (
	anyPort    = "*"
	maxAddress = 253 // RFC 1035, 2.3.4, as text
)

// ForwardDestination is the one spelling of a destination. wild allows "*" for
// the port.
func ForwardDestination(s string, wild bool) (string, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "cannot forward to %.100q: %s", s, why).WithHint("write address:port, such as 127.0.0.1:5432")
	}
	address, port, err := net.SplitHostPort(s)
	switch {
	case err != nil:
		return "", bad("it is not an address and a port")
	case address == "" || len(address) > maxAddress:
		return "", bad("no address of up to " + strconv.Itoa(maxAddress) + " characters")
	case strings.ContainsFunc(address, func(r rune) bool { return !addressLetter(r) }):
		return "", bad("the address has a character that none has")
	case port == anyPort && wild:
	default:
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", bad("the port is from 1 to 65535")
		}
		port = strconv.FormatUint(n, 10)
	}
	address = strings.ToLower(address)
	if address == "localhost" || address == "::1" {
		address = "127.0.0.1"
	}
	return net.JoinHostPort(address, port), nil
}

// addressLetter is of a DNS name, or of an IP address without a zone.
func addressLetter(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_' || r == ':'
}

// ForwardAllowed says whether destinations as a grant lists them hold this one.
func ForwardAllowed(granted []string, destination string) bool {
	address, _, err := net.SplitHostPort(destination)
	return err == nil && (slices.Contains(granted, destination) || slices.Contains(granted, net.JoinHostPort(address, anyPort)))
}

func isDestination(s string) bool {
	one, err := ForwardDestination(s, false)
	return err == nil && one == s
}
