package target

import (
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// ModeAgentless is the mode of a host that has no node: the server reaches it
// through the host's own sshd. No node can say it of itself; while a host is
// being adopted its mode is not known, and SSH still reaches it.
const ModeAgentless = "agentless"

// SourceAny as SSHSource lets certificates be used from any address, for hosts
// behind a translation of addresses.
const SourceAny = "any"

// Agentless says whether sessions reach the host through its own sshd.
func (h Host) Agentless() bool {
	return h.SSHAddress != "" && (h.Mode == ModeAgentless || h.Mode == "")
}

// Principal is the name that a certificate for a level on this host carries,
// so that a host can trust our authority for nothing but itself.
func (h Host) Principal(level string) string { return "handrail-" + h.ID + "-" + level }

const (
	defaultSSHPort = "22"
	maxSSHText     = 255
)

var accountForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_.-]{0,63}$`) })

// ParseSSH reads user@address, with a port where it is not 22.
func ParseSSH(text string) (user, address string, err error) {
	user, place, ok := strings.Cut(strings.TrimSpace(text), "@")
	if !ok {
		return "", "", fault.New(fault.Invalid, "cannot reach a host at %.80q: say user@address or user@address:port", text).
			WithHint("handrail host add NAME --ssh user@address")
	}
	if !accountForm().MatchString(user) {
		return "", "", fault.New(fault.Invalid, "cannot log in as %.80q: that is no account name", user)
	}
	address, err = sshAddress(place)
	return user, address, err
}

// sshAddress completes an address with its port.
func sshAddress(place string) (string, error) {
	host, port, err := net.SplitHostPort(place)
	if err != nil {
		host, port = strings.Trim(place, "[]"), defaultSSHPort
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || !hostForm().MatchString(host) || len(host) > maxSSHText {
		return "", fault.New(fault.Invalid, "cannot reach a host at %.80q: that is no address", place)
	}
	return net.JoinHostPort(strings.ToLower(host), port), nil
}

var hostForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?|[0-9a-fA-F:.]+(%[a-zA-Z0-9]+)?)$`)
})

// HostKey reads a public host key as files hold it and returns its one form,
// without a comment. A certificate is refused: what is pinned is the key.
func HostKey(text string) (string, ssh.PublicKey, error) {
	refuse := func(why string) (string, ssh.PublicKey, error) {
		return "", nil, fault.New(fault.Invalid, "cannot pin this host key: %s", why).
			WithHint("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the host")
	}
	if len(text) > 16<<10 {
		return refuse("it is too long")
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(strings.TrimSpace(text)))
	if err != nil || len(options) > 0 || len(strings.TrimSpace(string(rest))) > 0 {
		return refuse("it is not one line like \"ssh-ed25519 AAAA…\"")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
	default:
		return refuse("its kind " + key.Type() + " is not one that handrail checks")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), key, nil
}

// Fingerprint is a pinned key as people compare it; "" for one that cannot be read.
func Fingerprint(key string) string {
	_, k, err := HostKey(key)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(k)
}

// validSSH says what is wrong with how a host is reached over SSH.
func (h Host) validSSH() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "cannot reach host "+h.Name+" over SSH: "+format, args...).WithHint("handrail host add --help")
	}
	if h.SSHAddress == "" {
		if h.Mode == ModeAgentless || h.SSHUser+h.SSHWrite+h.SSHKey+h.SSHSource != "" || h.SSHNode {
			return bad("it has no address")
		}
		return nil
	}
	address, err := sshAddress(h.SSHAddress)
	switch {
	case err != nil || address != h.SSHAddress:
		return bad("%.80q is no address and port", h.SSHAddress)
	case !accountForm().MatchString(h.SSHUser):
		return bad("%.80q is no account to read as", h.SSHUser)
	case h.SSHWrite != "" && !accountForm().MatchString(h.SSHWrite):
		return bad("%.80q is no account to write as", h.SSHWrite)
	case h.SSHUser == "root" || h.SSHWrite == "root":
		return bad("root is not an account of it: nothing there could hold root back")
	case h.SSHWrite == h.SSHUser && !h.SSHNode:
		return bad("reading and writing need two accounts, or reading is writing: both are %s", h.SSHUser)
	}
	if key, _, err := HostKey(h.SSHKey); err != nil || key != h.SSHKey {
		return bad("its host key is not pinned")
	}
	if h.SSHSource != "" && h.SSHSource != SourceAny {
		for _, network := range strings.Split(h.SSHSource, ",") {
			if _, err := netip.ParsePrefix(network); err != nil {
				if _, err := netip.ParseAddr(network); err != nil {
					return bad("%.80q is no address or network", network)
				}
			}
		}
	}
	return nil
}

// AddSSHTx adds a host that has no node, as a person described it.
func (h *Hosts) AddSSHTx(tx *store.Tx, by string, host Host) (Host, ledger.Entry, error) {
	host.Mode, host.Trial = ModeAgentless, false
	entry, host, err := h.addTx(tx, host, by)
	entry.Action = HostAdded
	return host, entry, err
}

// Normal is the host in its one form, if it can be.
func (h Host) Normal() (Host, error) {
	h = h.normal()
	return h, h.Validate()
}

// FreeTx says that no host has that name yet.
func (h *Hosts) FreeTx(q store.Queryer, name string) error {
	same, err := store.All[Host](q, selectHost+`WHERE name = $1`, name)
	if err == nil && len(same) > 0 {
		err = fault.New(fault.Conflict, "cannot add host %q: there is one of that name, %s", name, same[0].ID).WithHint("handrail host show %s", name)
	}
	return err
}
