package identity

import (
	"bytes"
	"context"
	"math"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	maxCredentials = 32 // of each kind, a person
	maxKeyBytes    = 4 << 10

	// soberingUp is how long a new credential cannot approve, outside of
	// bootstrap: a stolen login must not make itself a second person.
	soberingUp = 24 * time.Hour
)

// The kinds of credential.
const (
	CredentialDevice  = "device"
	CredentialPasskey = "passkey"
)

// Credential is a device key or a passkey.
type Credential struct {
	ID             string `db:"id"` // d-… or k-…
	Person         string `db:"person"`
	Kind           string `db:"kind"` // device, passkey
	Name           string `db:"name"`
	Fingerprint    string `db:"fingerprint"`
	PublicKey      []byte `db:"public_key"` // SSH wire format, or COSE
	Created        int64  `db:"created"`
	MayApproveFrom int64  `db:"may_approve_from"`
	Revoked        int64  `db:"revoked"`
	Born           string `db:"born"` // of a device: token, provider
	Version        int64  `db:"version"`
}

// NeverApproves says that the credential logs in and signs no approval, as it
// was made by a login at a provider that is not trusted that far.
func (c Credential) NeverApproves() bool { return c.MayApproveFrom == never }

// never is a time that does not come.
const never = math.MaxInt64

const selectDevice = `SELECT id, person, 'device' AS kind, name, fingerprint, public_key, created, may_approve_from, revoked, born, version FROM devices `

// parseDeviceKey reads an SSH public key in wire format. Device keys are
// Ed25519, in software or on a security key: one algorithm to get right.
func parseDeviceKey(wire []byte) (ssh.PublicKey, error) {
	if len(wire) == 0 {
		return nil, nil
	}
	if len(wire) > maxKeyBytes {
		return nil, fault.New(fault.Invalid, "cannot use a device key of %d bytes", len(wire))
	}
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the device key: it is no SSH public key")
	}
	if t := key.Type(); t != ssh.KeyAlgoED25519 && t != ssh.KeyAlgoSKED25519 {
		return nil, fault.New(fault.Invalid, "cannot use a device key of type %.40q: it must be Ed25519", t).WithHint("ssh-keygen -t ed25519")
	}
	return key, nil
}

// enrolDevice makes the key a device of the person, or finds it as one. A key
// that is somebody else's, or was revoked, is refused.
func (p *People) enrolDevice(tx *store.Tx, who Person, key ssh.PublicKey, name, born string) (string, []ledger.Entry, error) {
	print := ssh.FingerprintSHA256(key)
	found, err := store.All[Credential](tx, selectDevice+`WHERE fingerprint = $1`, print)
	if err != nil {
		return "", nil, err
	}
	if len(found) > 0 {
		d := found[0]
		switch {
		case d.Person != who.ID:
			return "", nil, fault.New(fault.Conflict, "cannot enrol device key %s: it belongs to somebody else", print).WithHint("make another key for %s", who.Name)
		case d.Revoked != 0:
			return "", nil, fault.New(fault.Denied, "cannot use device key %s: it was revoked", print).WithHint("make another key and log in with a new link")
		case born == bornToken && d.Born == bornProvider:
			entries, err := p.stoodFor(tx, d)
			return d.ID, entries, err
		}
		return d.ID, nil, nil
	}
	if born != bornToken && born != bornProvider {
		return "", nil, unknownDevice()
	}
	count, err := store.One[int64](tx, `SELECT COUNT(*) FROM devices WHERE person = $1 AND revoked = 0`, who.ID)
	if err != nil {
		return "", nil, err
	}
	if count >= maxCredentials {
		return "", nil, fault.New(fault.Exhausted, "cannot enrol another device for %s: there are %d", who.Name, count)
	}
	from, err := p.approveFrom(tx)
	if err != nil {
		return "", nil, err
	}
	if born == bornProvider {
		from = p.providerFrom(tx)
	}
	if name = label(name, maxLabel); name == "" {
		name = "device"
	}
	id := store.NewID('d')
	if _, err := tx.Exec(`INSERT INTO devices (id, person, name, public_key, fingerprint, created, may_approve_from, revoked, born, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, 1)`, id, who.ID, name, key.Marshal(), print, micros(tx.Now()), from, born); err != nil {
		return "", nil, err
	}
	return id, []ledger.Entry{{
		Action: DeviceEnrolled, Subjects: []string{who.ID}, Object: id, Version: 1,
		Payload: CredentialPayload{V: 1, Person: who.ID, Name: name, Fingerprint: print, PublicKey: key.Marshal(), MayApproveFrom: from},
	}}, nil
}

// approveFrom is from when a credential made now may approve: at once during
// bootstrap, else a day later.
func (p *People) approveFrom(tx *store.Tx) (int64, error) {
	state, err := p.BootstrapTx(tx, tx.Now())
	if err != nil {
		return 0, err
	}
	if state.Active {
		return micros(tx.Now()), nil
	}
	return micros(tx.Now().Add(soberingUp)), nil
}

// providerFrom is from when a credential may approve that a login at the
// provider made: a day later, bootstrap or not, or never.
func (p *People) providerFrom(tx *store.Tx) int64 {
	if !p.providerApproves {
		return never
	}
	return micros(tx.Now().Add(soberingUp))
}

// stoodFor makes a device that the provider vouched for one that a login link
// did: somebody else agreed to that link.
func (p *People) stoodFor(tx *store.Tx, d Credential) ([]ledger.Entry, error) {
	from, err := p.approveFrom(tx)
	if err != nil {
		return nil, err
	}
	n, err := tx.Exec(`UPDATE devices SET born = $1, may_approve_from = $2, version = $3 WHERE id = $4 AND version = $5`,
		bornToken, min(from, d.MayApproveFrom), d.Version+1, d.ID, d.Version)
	if err != nil {
		return nil, err
	}
	if n != 1 {
		return nil, fault.New(fault.Conflict, "cannot enrol %s: it changed meanwhile", d.ID).WithHint("try again")
	}
	return []ledger.Entry{{
		Action: DeviceEnrolled, Subjects: []string{d.Person}, Object: d.ID, Version: d.Version + 1,
		Payload: CredentialPayload{V: 1, Person: d.Person, Name: d.Name, Fingerprint: d.Fingerprint, PublicKey: d.PublicKey, MayApproveFrom: min(from, d.MayApproveFrom)},
	}}, nil
}

func unknownDevice() error {
	return fault.New(fault.Unauthenticated, "cannot log in: this device is not enrolled").
		WithHint("ask for a login link: handrail login-link NAME")
}

// Credentials lists a person's device keys and passkeys that are not revoked,
// the oldest first.
func (p *People) Credentials(q store.Queryer, person string) ([]Credential, error) {
	devices, err := store.All[Credential](q, selectDevice+`WHERE person = $1 AND revoked = 0 ORDER BY created, id`, person)
	if err != nil {
		return nil, err
	}
	keys, err := passkeysOf(q, person)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		devices = append(devices, k.credential())
	}
	return devices, nil
}

// nonceState is what the nonce of a renewal remembers.
type nonceState struct {
	Fingerprint string `json:"fingerprint"`
}

const purposeRenew = "renew"

// RenewMessage is what the device signs to renew its login.
func RenewMessage(nonce []byte) []byte { return append([]byte("handrail-login-v1\n"), nonce...) }

// RenewBegin returns a nonce for the device to sign. It says nothing about
// whether the device is known.
func (p *People) RenewBegin(_ context.Context, deviceKey []byte) ([]byte, error) {
	key, err := parseDeviceKey(deviceKey)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, fault.New(fault.Invalid, "cannot renew a login without a device key")
	}
	return p.sealTicket(purposeRenew, nonceState{Fingerprint: ssh.FingerprintSHA256(key)})
}

// Renew gives an enrolled device a new login and certificate. signature is
// ssh.Marshal(*ssh.Signature) over RenewMessage(nonce).
func (p *People) Renew(ctx context.Context, deviceKey, nonce, signature []byte, source string) (Login, Person, *ssh.Certificate, error) {
	login, who, key, err := p.renew(ctx, deviceKey, nonce, signature, source)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Denied {
			p.FailedLogin(source, "device refused")
		}
		return Login{}, Person{}, nil, err
	}
	cert, err := p.certify(key, login)
	return login, who, cert, err
}

func (p *People) renew(ctx context.Context, deviceKey, nonce, signature []byte, source string) (Login, Person, ssh.PublicKey, error) {
	key, err := parseDeviceKey(deviceKey)
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	if key == nil {
		return Login{}, Person{}, nil, unknownDevice()
	}
	var state nonceState
	if err := p.openTicket(purposeRenew, nonce, &state); err != nil {
		return Login{}, Person{}, nil, err
	}
	if state.Fingerprint != ssh.FingerprintSHA256(key) || verifySSH(key, RenewMessage(nonce), signature) != nil {
		return Login{}, Person{}, nil, fault.New(fault.Unauthenticated, "cannot log in: the device did not sign the challenge").WithHint("handrail login")
	}
	err = p.store.View(ctx, func(v *store.View) error { // a stranger's key does not take the writer
		_, err := liveDevice(v, key)
		return err
	})
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	var login Login
	var who Person
	err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
		device, err := liveDevice(tx, key)
		if err != nil {
			return nil, err
		}
		if device.Born == bornProvider {
			return nil, fault.New(fault.Unauthenticated, "cannot renew this login: it was made at your provider, which must say again who you are").
				WithHint("handrail login --provider")
		}
		if who, err = byID(tx, device.Person); err != nil {
			return nil, err
		}
		if err := p.admit(who); err != nil {
			return nil, err
		}
		login, who, entries, err = p.open(tx, opening{
			who: who, key: key, via: ViaDevice, born: bornDevice, source: source, proof: hashOf(kindProof, string(nonce)),
		})
		return entries, err
	})
	return login, who, key, err
}

// liveDevice finds the enrolled device of a key.
func liveDevice(q store.Queryer, key ssh.PublicKey) (Credential, error) {
	found, err := store.All[Credential](q, selectDevice+`WHERE fingerprint = $1`, ssh.FingerprintSHA256(key))
	if err != nil {
		return Credential{}, err
	}
	if len(found) == 0 || found[0].Revoked != 0 || !bytes.Equal(found[0].PublicKey, key.Marshal()) {
		return Credential{}, unknownDevice()
	}
	return found[0], nil
}

// RevokedKey says whether a fingerprint is of a device that was revoked.
func (p *People) RevokedKey(q store.Queryer, print string) (bool, error) {
	n, err := store.One[int64](q, `SELECT COUNT(*) FROM devices WHERE fingerprint = $1 AND revoked <> 0`, print)
	return n > 0, err
}

func verifySSH(key ssh.PublicKey, message, signature []byte) error {
	if len(signature) > maxKeyBytes {
		return fault.New(fault.Invalid, "cannot read a signature of %d bytes", len(signature))
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(signature, &sig); err != nil {
		return fault.New(fault.Invalid, "cannot read the signature: it is no SSH signature")
	}
	return key.Verify(message, &sig)
}

// ApprovalMessage is what a device key signs to approve.
func ApprovalMessage(subjectHash []byte) []byte {
	return append([]byte("handrail-approve-v1\n"), subjectHash...)
}

// RequestMessage is what a device key signs to stand by a request of its own. It
// is no approval: a server that is not honest cannot pass it off as somebody's.
func RequestMessage(subjectHash []byte) []byte {
	return append([]byte("handrail-request-v1\n"), subjectHash...)
}

// VerifyDeviceSignature checks that one of the person's device keys signed
// message (signature: ssh.Marshal(*ssh.Signature)), and says which, and from
// when on it may approve. A robot's keys approve nothing.
func (p *People) VerifyDeviceSignature(q store.Queryer, person string, message, signature []byte) (string, time.Time, error) {
	if err := p.mayApprove(q, person); err != nil {
		return "", time.Time{}, err
	}
	devices, err := store.All[Credential](q, selectDevice+`WHERE person = $1 AND revoked = 0 ORDER BY created, id`, person)
	if err != nil {
		return "", time.Time{}, err
	}
	for _, d := range devices {
		key, err := ssh.ParsePublicKey(d.PublicKey)
		if err == nil && verifySSH(key, message, signature) == nil {
			if d.NeverApproves() {
				return "", time.Time{}, fault.New(fault.Denied, "cannot approve with %s: it was enrolled by a login at your provider, and nobody here stood for it", d.Name).
					WithRule("provider-never-approves").WithHint("handrail login-link NAME, have it approved, then handrail login --token-file FILE on this device")
			}
			return d.ID, fromMicros(d.MayApproveFrom), nil
		}
	}
	return "", time.Time{}, fault.New(fault.Denied, "cannot approve: no device of yours made this signature").WithHint("handrail login, then approve again")
}

func (p *People) mayApprove(q store.Queryer, person string) error {
	who, err := byID(q, person)
	if err != nil {
		return err
	}
	if err := p.admit(who); err != nil {
		return err
	}
	if who.Kind != KindPerson {
		return fault.New(fault.Denied, "cannot approve as %s: a robot never approves", who.Name).WithRule("robots-never-approve")
	}
	return nil
}

// RevokeCredentialTx takes a device key or passkey away, and the logins of
// that device with it.
func (p *People) RevokeCredentialTx(tx *store.Tx, by, credential, reason string) ([]ledger.Entry, error) {
	table, query := "devices", selectDevice
	if strings.HasPrefix(credential, "k-") {
		table, query = "passkeys", selectPasskey
	}
	found, err := store.All[Credential](tx, query+`WHERE id = $1 AND revoked = 0`, credential)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "cannot find credential %.40q", credential).WithHint("handrail person show NAME")
	}
	c := found[0]
	n, err := tx.Exec(`UPDATE `+table+` SET revoked = $1, version = $2 WHERE id = $3 AND version = $4`, micros(tx.Now()), c.Version+1, c.ID, c.Version)
	if err != nil {
		return nil, err
	}
	if n != 1 {
		return nil, fault.New(fault.Conflict, "cannot revoke %s: it changed meanwhile", c.ID).WithHint("try again")
	}
	p.cache.disturb()
	return []ledger.Entry{{
		Action: CredentialLost, Subjects: subjects(by, c.Person), Object: c.ID, Version: c.Version + 1, SealTo: c.Person,
		Payload: CredentialPayload{V: 1, Person: c.Person, Name: c.Name, Fingerprint: c.Fingerprint, Reason: label(reason, maxReason)},
	}}, nil
}
