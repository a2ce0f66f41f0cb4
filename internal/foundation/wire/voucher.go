package wire

import (
	"encoding/json"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A voucher is an SSH certificate that lets a person in while no server
// answers. What of it is handrail's own stands in one critical option, which a
// plain sshd does not know and therefore refuses.
const (
	VoucherOption    = "voucher@handrail"
	VoucherPrincipal = "bg"
	// VoucherCommand is the certificate's force-command. Nothing runs it: it is
	// there so that an sshd that was told to ignore our option still gives no shell.
	VoucherCommand = "/bin/echo 'a voucher of handrail opens only the entrance of a host'"

	MaxVoucherLife  = 24 * time.Hour
	MaxCeremonyLife = time.Hour
	MaxVoucherHosts = 1024
	MaxVoucherStay  = time.Hour // of one session
	maxTerms        = 128 << 10

	// LeaseLost is how long a node must have been without a lease before it
	// honours vouchers.
	LeaseLost = 120 * time.Second
)

// Kinds of key that a voucher is bound to.
const (
	KeyHardware = "hardware" // FIDO: each use needs a touch
	KeyFile     = "file"
)

// EveryHost in the terms of a ceremony's voucher means all.
const EveryHost = "*"

// VoucherTerms are what a voucher gives, as JSON in its critical option.
// Unknown fields are refused.
type VoucherTerms struct {
	V          int           `json:"v"`
	Person     string        `json:"person"`
	PersonName string        `json:"name"`
	Epoch      int64         `json:"epoch"` // of the person: a lock raises it
	Hosts      []VoucherHost `json:"hosts"`
	Key        string        `json:"key"`
	Minutes    int64         `json:"minutes"`            // the longest session
	Reason     string        `json:"reason,omitempty"`   // of a ceremony
	Officers   []string      `json:"officers,omitempty"` // of a ceremony: whose shares made it
}

// VoucherHost is a host and the account on it.
type VoucherHost struct {
	ID      string `json:"h"`
	Account string `json:"a"`
}

// Marshal checks the terms and returns their JSON.
func (t VoucherTerms) Marshal() (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	b, err := json.Marshal(t)
	return string(b), err
}

// ParseVoucherTerms reads terms strictly.
func ParseVoucherTerms(s string) (VoucherTerms, error) {
	var t VoucherTerms
	if len(s) > maxTerms {
		return t, fault.New(fault.Invalid, "cannot read voucher: its terms have %d bytes", len(s))
	}
	if err := strict([]byte(s), &t); err != nil {
		return VoucherTerms{}, fault.Wrap(fault.Invalid, err, "cannot read voucher")
	}
	return t, t.check()
}

func (t VoucherTerms) check() error {
	bad := func(why string) error { return fault.New(fault.Invalid, "cannot use voucher: %s", why) }
	switch {
	case t.V != 1:
		return bad("it is of a newer kind")
	case !ValidID('p', t.Person) || t.Epoch < 0:
		return bad("bad person")
	case t.PersonName == "" || len(t.PersonName) > 64 || Plain(t.PersonName, 64) != t.PersonName:
		return bad("bad person name")
	case len(t.Hosts) == 0 || len(t.Hosts) > MaxVoucherHosts:
		return bad("it names no hosts, or too many")
	case t.Key != KeyHardware && t.Key != KeyFile:
		return bad("bad kind of key")
	case t.Minutes < 1 || t.Minutes > int64(MaxVoucherStay/time.Minute):
		return bad("bad length of a session")
	case len(t.Reason) > 512 || len(t.Officers) > 8:
		return bad("too many words")
	}
	for _, h := range t.Hosts {
		if !ValidID('h', h.ID) && h.ID != EveryHost || h.Account == "" || len(h.Account) > 32 || Plain(h.Account, 32) != h.Account {
			return bad("bad host or account")
		}
	}
	return nil
}

// On is the account that the terms give on a host.
func (t VoucherTerms) On(host string) (account string, ok bool) {
	for _, h := range t.Hosts {
		if h.ID == host || h.ID == EveryHost {
			return h.Account, true
		}
	}
	return "", false
}

// EntranceKeys are what a node says of its entrance (up.entrance): where it
// would open, the SSH key by which clients know it, and the key with which the
// node signs what it recorded while it was alone.
type EntranceKeys struct {
	V       int    `json:"v"`
	Address string `json:"address,omitempty"` // where it is bound to one
	Port    int    `json:"port"`
	HostKey string `json:"host_key"` // authorized_keys line
	Journal []byte `json:"journal"`  // ed25519
}

// ParseEntranceKeys reads them, bounded.
func ParseEntranceKeys(b []byte) (EntranceKeys, error) {
	var k EntranceKeys
	if len(b) > MaxLine {
		return k, fault.New(fault.Invalid, "cannot read the keys of an entrance: %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, fault.Wrap(fault.Invalid, err, "cannot read the keys of an entrance")
	}
	if k.V != 1 || k.Port < 0 || k.Port > 65535 || len(k.Journal) != 32 || len(k.HostKey) > 1024 || len(k.Address) > 64 || Plain(k.Address, 64) != k.Address || Plain(k.HostKey, 1024) != k.HostKey {
		return k, fault.New(fault.Invalid, "cannot read the keys of an entrance: bad form")
	}
	return k, nil
}
