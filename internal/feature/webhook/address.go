package webhook

import (
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
)

const maxURL = 2048

// checkURL takes what a hook may be: HTTPS to anywhere, HTTP to this machine.
func checkURL(text string) (*url.URL, error) {
	no := func(why string) (*url.URL, error) {
		return nil, fault.New(fault.Invalid, "cannot use %.100q as the address of a webhook: %s", text, why).WithHint("handrail webhook add siem https://siem.example.org/in --actions 'grant.*'")
	}
	if len(text) > maxURL || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return no("it is too long, or has letters that a URL cannot have")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return no("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "" || u.Hostname() == "":
		return no("it is not https://HOST/…")
	case u.User != nil:
		return no("it holds a password, which everybody who lists webhooks would see; the signature proves who sends")
	case u.Fragment != "":
		return no("what follows # is never sent")
	case u.Scheme == "http" && !ownName(u.Hostname()):
		return no("without TLS only this machine can be reached: use https")
	}
	return u, nil
}

// ownName says whether a name in a URL is this machine's own.
func ownName(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// refused are networks that nobody runs a receiver in: what answers there is
// the machine itself, its cloud, or nobody.
var refused = prefixes(
	"0.0.0.0/8", "100.100.100.200/32", "169.254.0.0/16", "192.0.0.192/32", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "ff00::/8",
)

// embedding are networks of IPv6 whose addresses mean one of IPv4, and where in
// them it stands.
var embedding = []struct {
	net netip.Prefix
	at  int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12}, {netip.MustParsePrefix("64:ff9b:1::/48"), 12},
	{netip.MustParsePrefix("2002::/16"), 2}, {netip.MustParsePrefix("::/96"), 12},
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// checkAddress says whether a hook may be dialled at an address that its name
// was resolved to: own says that the URL names this machine.
func checkAddress(ip netip.Addr, own bool, allow []netip.Prefix) error {
	ip = ip.Unmap().WithZone("")
	if own {
		if ip.IsLoopback() {
			return nil
		}
		return fault.New(fault.Denied, "cannot send to %s: the address of the webhook says that it is this machine", ip)
	}
	for _, p := range allow {
		if p.Contains(ip) {
			return nil
		}
	}
	no := fault.New(fault.Denied, "cannot send to %s: an address of this machine, its link or its cloud", ip).WithHint("handrail config explain --help (allow, in [webhooks])")
	if ip.IsLoopback() {
		return no
	}
	for _, p := range refused {
		if p.Contains(ip) {
			return no
		}
	}
	for _, e := range embedding {
		if raw := ip.As16(); ip.Is6() && e.net.Contains(ip) {
			return checkAddress(netip.AddrFrom4([4]byte(raw[e.at:e.at+4])), false, allow)
		}
	}
	return nil
}

// guard is a dialer's last look, at the very address that it is about to use:
// what a name resolves to may change between any two questions.
func guard(own bool, allow []netip.Prefix) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return err
		}
		return checkAddress(ip, own, allow)
	}
}
