package warden

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

// hostPolicy is policy.json in the warden's folder: what this host's own
// administrator allows at most, whatever a server says. All of it is optional.
//
//	{"least_floor": "full", "accounts": ["app"], "no_write": false,
//	 "approvers": ["ssh-ed25519 AAAA… ada's laptop", "base64 PKIX of a passkey"],
//	 "approvals": 1, "uid_first": 1879048192, "uid_count": 65536}
type hostPolicy struct {
	LeastFloor string   `json:"least_floor,omitempty"`
	Accounts   []string `json:"accounts,omitempty"` // for write; empty: as the server says
	NoWrite    bool     `json:"no_write,omitempty"`
	NoRoot     bool     `json:"no_root,omitempty"`
	NoInspect  bool     `json:"no_inspect,omitempty"` // no brokered reads
	Approvers  []string `json:"approvers,omitempty"`  // keys of which write orders must carry signatures
	Approvals  int      `json:"approvals,omitempty"`  // how many of them; 0 is 1
	UIDFirst   uint32   `json:"uid_first,omitempty"`
	UIDCount   uint32   `json:"uid_count,omitempty"`
	Vouchers   string   `json:"vouchers,omitempty"` // "no", "hardware" (keys that want a touch), "yes"; empty: see vouchers

	keys      [][]byte             // approvers' keys: SSH wire format or PKIX DER
	witnesses ledger.WitnessPolicy // of a file beside it; see cosigned.go
}

const (
	policyName      = "policy.json"
	defaultUIDFirst = 1_879_048_192
	defaultUIDCount = 65_536
	// In a container that has no such numbers: a gap that neither login.defs(5)
	// nor systemd gives to anybody.
	containerUIDFirst = 60_600
	containerUIDCount = 500
)

// readPolicy reads the host's policy. A file that cannot be understood stops
// the warden: it was written to forbid something.
func readPolicy(dir string) (hostPolicy, error) {
	p := hostPolicy{UIDFirst: defaultUIDFirst, UIDCount: defaultUIDCount}
	if !sandbox.Mapped(defaultUIDFirst + defaultUIDCount - 1) {
		p.UIDFirst, p.UIDCount = containerUIDFirst, containerUIDCount
	}
	least := min(p.UIDFirst, 100_000)
	var err error
	if p.witnesses, err = readWitnesses(dir); err != nil {
		return p, err
	}
	path := filepath.Join(dir, policyName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, fault.Wrap(fault.Unavailable, err, "cannot read the host's policy")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fault.Wrap(fault.Invalid, err, "cannot read %s", path)
	}
	if p.UIDFirst < least || p.UIDCount < 16 || p.UIDFirst > 1<<32-2-p.UIDCount {
		return p, fault.New(fault.Invalid, "cannot use %s: the range of session uids is out of bounds", path)
	}
	if err := checkVouchersWord(p.Vouchers); err != nil {
		return p, fault.Wrap(fault.Invalid, err, "cannot use %s", path)
	}
	for _, line := range p.Approvers {
		key, err := parseApprover(line)
		if err != nil {
			return p, fault.Wrap(fault.Invalid, err, "cannot read approver %q in %s", line, path)
		}
		p.keys = append(p.keys, key)
	}
	return p, nil
}

func parseApprover(line string) ([]byte, error) {
	if pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
		return pub.Marshal(), nil
	}
	der, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		return nil, err
	}
	_, err = x509.ParsePKIXPublicKey(der)
	return der, err
}

func (h hostPolicy) check(p wire.OrderPayload) error {
	if p.Kind == wire.KindInspect && h.NoInspect {
		return refuse(RulePolicy, "cannot accept order %s: this host allows no brokered reads", p.Order)
	}
	if p.Kind == wire.KindInspect && p.Inspect.Agreed() && len(h.keys) > 0 {
		return h.checkAgreed(p)
	}
	if p.Kind != wire.KindSessionStart || p.Session.Level != wire.LevelWrite {
		return nil
	}
	s := p.Session
	switch {
	case h.NoWrite:
		return refuse(RulePolicy, "cannot accept order %s: this host allows no write", p.Order)
	case len(h.Accounts) > 0 && !slices.Contains(h.Accounts, s.Account):
		return refuse(RulePolicy, "cannot accept order %s: this host does not allow account %s", p.Order, s.Account)
	case h.NoRoot && (s.Root || s.Sudo || s.Account == "root"):
		return refuse(RulePolicy, "cannot accept order %s: this host does not allow root", p.Order)
	case s.Account == "root" && !s.Root:
		return refuse(RulePolicy, "cannot accept order %s: account root without the right to be root", p.Order)
	}
	if len(h.keys) == 0 {
		return nil
	}
	return h.checkAuthority(p)
}

// request is what of an approved request the host compares with the order.
// Its other fields are the server's business.
type request struct {
	Person  string `json:"person"`
	Targets []struct {
		ID string `json:"id"`
	} `json:"targets"`
	Sudo     bool     `json:"sudo"`
	Root     bool     `json:"root"`
	Forwards []string `json:"forwards"`
	ForMS    int64    `json:"for_ms"`
}

func (r request) covers(p wire.OrderPayload) bool {
	s := p.Session
	here := false
	for _, t := range r.Targets {
		here = here || t.ID == p.Node
	}
	return here && r.Person == s.Person && (r.Sudo || !s.Sudo) && (r.Root || !s.Root) &&
		(s.Kind != wire.SessionForward || wire.ForwardAllowed(r.Forwards, s.Command)) && s.RemainingMS <= r.ForMS
}

// checkAuthority counts the approvers of this host who signed the request, and
// that the request is for this person on this host. It holds when the server's
// keys are stolen: the order key alone then starts no write session here.
// Whose key it is, only the server says: a host that lists people who also ask
// for themselves wants "approvals": 2.
func (h hostPolicy) checkAuthority(p wire.OrderPayload) error {
	a := p.Authority
	if a == nil {
		return refuse(RuleAuthority, "cannot accept order %s: this host wants the approvers' own signatures", p.Order)
	}
	var r request
	if err := json.Unmarshal(a.Request, &r); err != nil || !r.covers(p) {
		return refuse(RuleAuthority, "cannot accept order %s: what was approved is not this, for this person on this host", p.Order)
	}
	return h.checkSigners(p, p.Session.Person)
}

// checkSigners counts the approvers of this host who signed what the order
// carries, other than who asks.
func (h hostPolicy) checkSigners(p wire.OrderPayload, asks string) error {
	a := p.Authority
	subject := SubjectHash(a.Kind, a.Request)
	signers := map[string]bool{}
	for _, s := range a.Signatures {
		known := slices.ContainsFunc(h.keys, func(k []byte) bool { return bytes.Equal(k, s.PublicKey) })
		if known && s.Person != asks && verifyApproval(s, subject) {
			signers[string(s.PublicKey)] = true // a key counts once, whatever name the server puts beside it
		}
	}
	if need := max(h.Approvals, 1); len(signers) < need {
		return refuse(RuleAuthority, "cannot accept order %s: %d of the %d signatures that this host wants", p.Order, len(signers), need)
	}
	return nil
}

// SubjectHash is what approvers sign: the kind and the exact request bytes.
func SubjectHash(kind string, request []byte) [32]byte {
	return sha256.Sum256(append([]byte("handrail-approval-v1\n"+kind+"\n"), request...))
}

func verifyApproval(s wire.Signature, subject [32]byte) bool {
	switch s.Kind {
	case "device":
		pub, err := ssh.ParsePublicKey(s.PublicKey)
		if err != nil {
			return false
		}
		var sig ssh.Signature
		if ssh.Unmarshal(s.Signature, &sig) != nil {
			return false
		}
		return pub.Verify(append([]byte("handrail-approve-v1\n"), subject[:]...), &sig) == nil
	case "passkey":
		return verifyPasskey(s, subject)
	}
	return false
}

// verifyPasskey checks a WebAuthn assertion: the challenge is the subject hash,
// a person was present and verified.
func verifyPasskey(s wire.Signature, subject [32]byte) bool {
	var client struct {
		Type      string `json:"type"`
		Challenge string `json:"challenge"`
	}
	const upAndUV = 0x05
	if json.Unmarshal(s.ClientData, &client) != nil || client.Type != "webauthn.get" ||
		client.Challenge != base64.RawURLEncoding.EncodeToString(subject[:]) ||
		len(s.AuthenticatorData) < 37 || s.AuthenticatorData[32]&upAndUV != upAndUV {
		return false
	}
	pub, err := x509.ParsePKIXPublicKey(s.PublicKey)
	if err != nil {
		return false
	}
	hash := sha256.Sum256(s.ClientData)
	signed := append(slices.Clone(s.AuthenticatorData), hash[:]...)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(signed)
		return ecdsa.VerifyASN1(k, sum[:], s.Signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, signed, s.Signature)
	}
	return false
}
