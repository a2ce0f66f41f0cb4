package identity

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// The purposes of a passkey ceremony. The person is part of the first and the
// last, so that nobody can finish what somebody else began.
const (
	purposeEnrol   = "passkey-enrol:"
	purposeLogin   = "passkey-login"
	purposeApprove = "passkey-approve:"
)

const (
	subjectHashBytes = 32
	maxResponse      = 64 << 10
)

// newPasskeys returns nil where passkeys cannot work: browsers bind them to a
// host name, and an address is none.
func newPasskeys(rpID string, origins []string) *webauthn.WebAuthn {
	if rpID == "" || net.ParseIP(rpID) != nil || len(origins) == 0 {
		return nil
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: rpID, RPDisplayName: "handrail", RPOrigins: origins,
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired,
		},
	})
	if err != nil {
		return nil
	}
	return w
}

// PasskeysWork says whether this installation has a name that passkeys work with.
func (p *People) PasskeysWork() bool { return p.passkeys != nil }

func (p *People) needPasskeys() error {
	if p.passkeys == nil {
		return fault.New(fault.Unavailable, "cannot use passkeys: browsers tie them to a host name, and this page is served without one").
			WithHint("open the page as http://localhost:PORT, or give the server a name")
	}
	return nil
}

type passkeyRow struct {
	ID             string `db:"id"`
	Person         string `db:"person"`
	Name           string `db:"name"`
	Credential     string `db:"credential"` // base64url of the authenticator's id for it
	Record         []byte `db:"record"`     // webauthn.Credential as JSON
	Created        int64  `db:"created"`
	MayApproveFrom int64  `db:"may_approve_from"`
	Revoked        int64  `db:"revoked"`
	Version        int64  `db:"version"`
}

const (
	selectPasskeyRow = `SELECT id, person, name, credential, record, created, may_approve_from, revoked, version FROM passkeys `
	selectPasskey    = `SELECT id, person, 'passkey' AS kind, name, credential AS fingerprint, created, may_approve_from, revoked, version FROM passkeys `
)

func passkeysOf(q store.Queryer, person string) ([]passkeyRow, error) {
	return store.All[passkeyRow](q, selectPasskeyRow+`WHERE person = $1 AND revoked = 0 ORDER BY created, id`, person)
}

func (r passkeyRow) credential() Credential {
	c := Credential{
		ID: r.ID, Person: r.Person, Kind: CredentialPasskey, Name: r.Name, Created: r.Created,
		MayApproveFrom: r.MayApproveFrom, Revoked: r.Revoked, Version: r.Version,
	}
	var w webauthn.Credential
	if json.Unmarshal(r.Record, &w) == nil {
		c.PublicKey = w.PublicKey
	}
	if c.Fingerprint = r.Credential; len(c.Fingerprint) > 16 {
		c.Fingerprint = c.Fingerprint[:16]
	}
	return c
}

// holder is a person as the library wants to see them. The user handle is the
// random id, so an authenticator learns nothing more than it shows.
type holder struct {
	who  Person
	keys []webauthn.Credential
}

func (h holder) WebAuthnID() []byte                         { return []byte(h.who.ID) }
func (h holder) WebAuthnName() string                       { return h.who.Name }
func (h holder) WebAuthnDisplayName() string                { return h.who.Name }
func (h holder) WebAuthnCredentials() []webauthn.Credential { return h.keys }

// holder is a person who is not locked, with their passkeys.
func (p *People) holder(q store.Queryer, person string) (holder, []passkeyRow, error) {
	h, rows, err := anyHolder(q, person)
	if err == nil {
		err = p.admit(h.who)
	}
	return h, rows, err
}

func anyHolder(q store.Queryer, person string) (holder, []passkeyRow, error) {
	who, err := byID(q, person)
	if err != nil {
		return holder{}, nil, err
	}
	rows, err := passkeysOf(q, person)
	if err != nil {
		return holder{}, nil, err
	}
	h := holder{who: who}
	for _, r := range rows {
		var w webauthn.Credential
		if err := json.Unmarshal(r.Record, &w); err != nil {
			return holder{}, nil, fault.Wrap(fault.Internal, err, "cannot read passkey %s", r.ID)
		}
		h.keys = append(h.keys, w)
	}
	return h, rows, nil
}

// mayEnrol refuses a credential that nobody else stood for: after bootstrap a
// second person approves each login link, and only a login born of one enrols.
func (p *People) mayEnrol(q store.Queryer, by Principal, now time.Time) error {
	if by.Kind != KindPerson || by.Login == "" {
		return fault.New(fault.Denied, "cannot enrol a passkey: only a logged-in person can").WithHint("open the page with a login link")
	}
	login, err := loginByID(q, by.Login)
	if err != nil {
		return err
	}
	state, err := p.BootstrapTx(q, now)
	if err != nil || state.Active && login.Born != bornProvider {
		return err
	}
	if login.Person != by.ID || login.Born != bornToken && !(login.Born == bornProvider && p.providerApproves) {
		return fault.New(fault.NeedsApproval, "cannot enrol a passkey from this login: a new credential needs a second person").
			WithRule("credentials-need-two").WithHint("handrail login-link %s, have it approved, and open the link", by.Name)
	}
	return nil
}

// PasskeyBegin starts to enrol a passkey. The options are for
// PublicKeyCredential.parseCreationOptionsFromJSON.
func (p *People) PasskeyBegin(ctx context.Context, by Principal) (optionsJSON, ceremony string, err error) {
	if err := p.needPasskeys(); err != nil {
		return "", "", err
	}
	var h holder
	err = p.store.View(ctx, func(v *store.View) (err error) {
		if err := p.mayEnrol(v, by, time.Now()); err != nil {
			return err
		}
		h, _, err = p.holder(v, by.ID)
		return err
	})
	if err != nil {
		return "", "", err
	}
	if len(h.keys) >= maxCredentials {
		return "", "", fault.New(fault.Exhausted, "cannot enrol another passkey for %s: there are %d", h.who.Name, len(h.keys))
	}
	options, session, err := p.passkeys.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.keys).CredentialDescriptors()))
	if err != nil {
		return "", "", fault.Wrap(fault.Internal, err, "cannot begin to enrol a passkey")
	}
	return p.handOut(purposeEnrol+by.ID, options.Response, session)
}

func (p *People) handOut(purpose string, options any, session *webauthn.SessionData) (string, string, error) {
	text, err := json.Marshal(options)
	if err != nil {
		return "", "", fault.Wrap(fault.Internal, err, "cannot begin a ceremony")
	}
	sealed, err := p.sealTicket(purpose, session)
	return string(text), base64.RawURLEncoding.EncodeToString(sealed), err
}

func (p *People) takeBack(purpose, ceremony string) (webauthn.SessionData, error) {
	var session webauthn.SessionData
	sealed, err := base64.RawURLEncoding.DecodeString(ceremony)
	if err != nil {
		sealed = nil // refused below, in the same words as any other
	}
	return session, p.openTicket(purpose, sealed, &session)
}

func parseable(response string) error {
	if len(response) > maxResponse {
		return fault.New(fault.Invalid, "cannot read the passkey's answer: it has %d bytes", len(response))
	}
	return nil
}

func refusedPasskey(kind fault.Kind, cause error) error {
	return fault.Wrap(kind, cause, "cannot accept the passkey").WithHint("try again, with the passkey of this installation")
}

// PasskeyFinish enrols the passkey. It answers for itself that a person was
// verified (by PIN or touch), since it will sign approvals.
func (p *People) PasskeyFinish(ctx context.Context, by Principal, ceremony, responseJSON, name string) (Credential, error) {
	if err := p.needPasskeys(); err != nil {
		return Credential{}, err
	}
	if err := parseable(responseJSON); err != nil {
		return Credential{}, err
	}
	session, err := p.takeBack(purposeEnrol+by.ID, ceremony)
	if err != nil {
		return Credential{}, err
	}
	answer, err := protocol.ParseCredentialCreationResponseBytes([]byte(responseJSON))
	if err != nil {
		return Credential{}, refusedPasskey(fault.Invalid, err)
	}
	made, err := p.passkeys.CreateCredential(holder{who: Person{ID: by.ID, Name: by.Name}}, session, answer)
	if err != nil {
		return Credential{}, refusedPasskey(fault.Invalid, err)
	}
	record, err := json.Marshal(made)
	if err != nil {
		return Credential{}, fault.Wrap(fault.Internal, err, "cannot keep the passkey")
	}
	if name = label(name, maxLabel); name == "" {
		name = "passkey"
	}
	row := passkeyRow{Person: by.ID, Name: name, Credential: base64.RawURLEncoding.EncodeToString(made.ID), Record: record, Version: 1}
	err = p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return p.enrolPasskey(tx, by, &row, made.PublicKey) })
	return row.credential(), err
}

func (p *People) enrolPasskey(tx *store.Tx, by Principal, row *passkeyRow, public []byte) ([]ledger.Entry, error) {
	if err := p.mayEnrol(tx, by, tx.Now()); err != nil {
		return nil, err
	}
	h, _, err := p.holder(tx, by.ID)
	if err != nil {
		return nil, err
	}
	taken, err := store.One[int64](tx, `SELECT COUNT(*) FROM passkeys WHERE credential = $1`, row.Credential)
	if err != nil {
		return nil, err
	}
	if taken != 0 || len(h.keys) >= maxCredentials {
		return nil, fault.New(fault.Conflict, "cannot enrol this passkey: it is enrolled already, or there are too many")
	}
	from, err := p.approveFrom(tx)
	if err != nil {
		return nil, err
	}
	row.ID, row.Created, row.MayApproveFrom = store.NewID('k'), micros(tx.Now()), from
	if _, err := tx.Exec(`INSERT INTO passkeys (id, person, name, credential, record, created, may_approve_from, revoked, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 1)`, row.ID, row.Person, row.Name, row.Credential, row.Record, row.Created, row.MayApproveFrom); err != nil {
		return nil, err
	}
	return []ledger.Entry{{
		Action: PasskeyEnrolled, Subjects: []string{by.ID}, Object: row.ID, Version: 1,
		Payload: CredentialPayload{V: 1, Person: by.ID, Name: row.Name, Fingerprint: row.Credential, PublicKey: public, MayApproveFrom: from},
	}}, nil
}

// PasskeyLoginBegin starts a login by passkey; who it is, the passkey says.
func (p *People) PasskeyLoginBegin(context.Context) (optionsJSON, ceremony string, err error) {
	if err := p.needPasskeys(); err != nil {
		return "", "", err
	}
	options, session, err := p.passkeys.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return "", "", fault.Wrap(fault.Internal, err, "cannot begin a login by passkey")
	}
	return p.handOut(purposeLogin, options.Response, session)
}

// PasskeyLoginFinish opens a login of the browser.
func (p *People) PasskeyLoginFinish(ctx context.Context, ceremony, responseJSON, source string) (Login, Person, error) {
	login, who, err := p.passkeyLogin(ctx, ceremony, responseJSON, source)
	if k := fault.KindOf(err); err != nil && (k == fault.Unauthenticated || k == fault.Denied) {
		p.FailedLogin(source, "passkey refused")
	}
	return login, who, err
}

func (p *People) passkeyLogin(ctx context.Context, ceremony, responseJSON, source string) (Login, Person, error) {
	if err := p.needPasskeys(); err != nil {
		return Login{}, Person{}, err
	}
	if err := parseable(responseJSON); err != nil {
		return Login{}, Person{}, err
	}
	session, err := p.takeBack(purposeLogin, ceremony)
	if err != nil {
		return Login{}, Person{}, err
	}
	answer, err := protocol.ParseCredentialRequestResponseBytes([]byte(responseJSON))
	if err != nil {
		return Login{}, Person{}, refusedPasskey(fault.Invalid, err)
	}
	// Verified before the writer is taken, and before anything is said about the
	// person: until here this is a stranger.
	var used *webauthn.Credential
	var who Person
	err = p.store.View(ctx, func(v *store.View) (err error) {
		_, used, err = p.passkeys.ValidatePasskeyLogin(func(_, handle []byte) (webauthn.User, error) {
			h, _, err := anyHolder(v, string(handle))
			who = h.who
			return h, err
		}, session, answer)
		return err
	})
	if err != nil {
		return Login{}, Person{}, refusedPasskey(fault.Unauthenticated, err)
	}
	var login Login
	err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
		h, rows, err := p.holder(tx, who.ID)
		if err != nil {
			return nil, err
		}
		if err := keepCounter(tx, rows, used); err != nil {
			return nil, err
		}
		login, who, entries, err = p.open(tx, opening{
			who: h.who, via: ViaBrowser, born: bornPasskey, source: source, proof: hashOf(kindProof, ceremony),
		})
		return entries, err
	})
	return login, who, err
}

// keepCounter keeps the authenticator's counter; one that went backwards means
// that somebody copied the key.
func keepCounter(tx *store.Tx, rows []passkeyRow, used *webauthn.Credential) error {
	if used.Authenticator.CloneWarning {
		return fault.New(fault.Denied, "cannot accept the passkey: its counter went backwards, somebody may have copied it").
			WithHint("have it revoked and enrol another")
	}
	record, err := json.Marshal(used)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot keep the passkey")
	}
	id := base64.RawURLEncoding.EncodeToString(used.ID)
	for _, r := range rows {
		if r.Credential == id {
			_, err := tx.Exec(`UPDATE passkeys SET record = $1 WHERE id = $2`, record, r.ID)
			return err
		}
	}
	return fault.New(fault.Unauthenticated, "cannot accept the passkey: it was revoked").WithHint("log in another way")
}

// ApprovalBegin returns what the approver's passkey signs: a request for
// PublicKeyCredential.parseRequestOptionsFromJSON whose challenge is the
// approval's subject hash. The signature is thus over exactly what is approved.
func (p *People) ApprovalBegin(ctx context.Context, by Principal, subjectHash []byte) (optionsJSON, ceremony string, err error) {
	if err := p.needPasskeys(); err != nil {
		return "", "", err
	}
	if len(subjectHash) != subjectHashBytes {
		return "", "", fault.New(fault.Invalid, "cannot sign a hash of %d bytes", len(subjectHash))
	}
	var h holder
	err = p.store.View(ctx, func(v *store.View) (err error) {
		if err := p.mayApprove(v, by.ID); err != nil {
			return err
		}
		h, _, err = p.holder(v, by.ID)
		return err
	})
	if err != nil {
		return "", "", err
	}
	if len(h.keys) == 0 {
		return "", "", fault.New(fault.NotFound, "cannot sign with a passkey: %s has none", h.who.Name).WithHint("enrol one on your page, or use handrail approve")
	}
	options, session, err := p.passkeys.BeginLogin(h, webauthn.WithChallenge(subjectHash), webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return "", "", fault.Wrap(fault.Internal, err, "cannot begin to sign an approval")
	}
	return p.handOut(purposeApprove+by.ID, options.Response, session)
}

// VerifyPasskeyAssertion checks that a passkey of the person signed exactly
// subjectHash, and says which, and from when on it may approve.
func (p *People) VerifyPasskeyAssertion(q store.Queryer, person, ceremony, responseJSON string, subjectHash []byte) (string, time.Time, error) {
	if err := p.needPasskeys(); err != nil {
		return "", time.Time{}, err
	}
	if err := parseable(responseJSON); err != nil {
		return "", time.Time{}, err
	}
	if err := p.mayApprove(q, person); err != nil {
		return "", time.Time{}, err
	}
	session, err := p.takeBack(purposeApprove+person, ceremony)
	if err != nil {
		return "", time.Time{}, err
	}
	if begun, err := base64.RawURLEncoding.DecodeString(session.Challenge); err != nil || len(subjectHash) != subjectHashBytes || !bytes.Equal(begun, subjectHash) {
		return "", time.Time{}, fault.New(fault.Conflict, "cannot approve: what was signed is not what is asked for now").WithHint("look at the request again")
	}
	answer, err := protocol.ParseCredentialRequestResponseBytes([]byte(responseJSON))
	if err != nil {
		return "", time.Time{}, refusedPasskey(fault.Invalid, err)
	}
	h, rows, err := p.holder(q, person)
	if err != nil {
		return "", time.Time{}, err
	}
	used, err := p.passkeys.ValidateLogin(h, session, answer)
	if err != nil {
		return "", time.Time{}, refusedPasskey(fault.Denied, err)
	}
	if used.Authenticator.CloneWarning {
		return "", time.Time{}, fault.New(fault.Denied, "cannot accept the passkey: its counter went backwards, somebody may have copied it")
	}
	id := base64.RawURLEncoding.EncodeToString(used.ID)
	for _, r := range rows {
		if r.Credential == id {
			return r.ID, fromMicros(r.MayApproveFrom), nil
		}
	}
	return "", time.Time{}, fault.New(fault.Internal, "cannot find the passkey that was just used")
}
