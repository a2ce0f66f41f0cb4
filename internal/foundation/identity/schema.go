package identity

import (
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// The ledger actions of identity.
const (
	PersonAdded      ledger.Action = "person.added"
	PersonNamed      ledger.Action = "person.named"
	PersonRegrouped  ledger.Action = "person.regrouped"
	PersonEnrolled   ledger.Action = "person.enrolled"
	PersonLocked     ledger.Action = "person.locked"
	PersonUnlocked   ledger.Action = "person.unlocked"
	PersonBound      ledger.Action = "person.bound"
	RobotSet         ledger.Action = "robot.set"
	RobotRemoved     ledger.Action = "robot.removed"
	TokenMade        ledger.Action = "token.made"
	TokenRedeemed    ledger.Action = "token.redeemed"
	TokenReplayed    ledger.Action = "token.replayed"
	LoginOpened      ledger.Action = "login.opened"
	LoginEnded       ledger.Action = "login.ended"
	LoginFailed      ledger.Action = "login.failed"
	DeviceEnrolled   ledger.Action = "device.enrolled"
	PasskeyEnrolled  ledger.Action = "passkey.enrolled"
	CredentialLost   ledger.Action = "credential.revoked"
	CodeConfirmed    ledger.Action = "code.confirmed"
	BootstrapBegun   ledger.Action = "bootstrap.begun"
	BootstrapLimited ledger.Action = "bootstrap.limited"
	BootstrapEnded   ledger.Action = "bootstrap.ended"
)

// Actions are the ledger actions of identity.
func Actions() []ledger.Action {
	return []ledger.Action{
		PersonAdded, PersonNamed, PersonRegrouped, PersonEnrolled, PersonLocked, PersonUnlocked, PersonBound, RobotSet, RobotRemoved,
		TokenMade, TokenRedeemed, TokenReplayed, LoginOpened, LoginEnded, LoginFailed,
		DeviceEnrolled, PasskeyEnrolled, CredentialLost, CodeConfirmed,
		BootstrapBegun, BootstrapLimited, BootstrapEnded,
		PersonJoined, PeopleJoined, PeopleRegrouped, PeopleReturned,
	}
}

// Schema is the tables of identity. Times are µs; 0 is never. Hashes are hex.
func Schema() []store.Migration {
	return []store.Migration{
		{Name: "identity-1-people", SQL: `CREATE TABLE people (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL UNIQUE,
	kind TEXT NOT NULL,
	owner TEXT NOT NULL,
	member_of TEXT NOT NULL,
	named BOOLEAN NOT NULL,
	created BIGINT NOT NULL,
	enrolled BIGINT NOT NULL,
	locked_at BIGINT NOT NULL,
	locked_reason TEXT NOT NULL,
	epoch BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "identity-2-devices", SQL: `CREATE TABLE devices (
	id TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	name TEXT NOT NULL,
	public_key {{BLOB}} NOT NULL,
	fingerprint TEXT NOT NULL UNIQUE,
	created BIGINT NOT NULL,
	may_approve_from BIGINT NOT NULL,
	revoked BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "identity-3-devices-of", SQL: `CREATE INDEX devices_of ON devices (person)`},
		{Name: "identity-4-passkeys", SQL: `CREATE TABLE passkeys (
	id TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	name TEXT NOT NULL,
	credential TEXT NOT NULL UNIQUE,
	record {{BLOB}} NOT NULL,
	created BIGINT NOT NULL,
	may_approve_from BIGINT NOT NULL,
	revoked BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "identity-5-passkeys-of", SQL: `CREATE INDEX passkeys_of ON passkeys (person)`},
		{Name: "identity-6-tokens", SQL: `CREATE TABLE login_tokens (
	id TEXT PRIMARY KEY,
	hash TEXT NOT NULL UNIQUE,
	person TEXT NOT NULL,
	made_by TEXT NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL,
	replays BIGINT NOT NULL,
	epoch BIGINT NOT NULL
)`},
		// proof is the hash of what the login was opened with. It is unique: no
		// token, nonce or assertion opens a second login, on whatever server.
		{Name: "identity-7-logins", SQL: `CREATE TABLE logins (
	id TEXT PRIMARY KEY,
	hash TEXT NOT NULL UNIQUE,
	proof TEXT NOT NULL UNIQUE,
	person TEXT NOT NULL,
	device TEXT NOT NULL,
	via TEXT NOT NULL,
	born TEXT NOT NULL,
	source TEXT NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	ended BIGINT NOT NULL,
	epoch BIGINT NOT NULL
)`},
		{Name: "identity-8-logins-of", SQL: `CREATE INDEX logins_of ON logins (device, expires)`},
		{Name: "identity-9-bootstrap", SQL: `CREATE TABLE bootstrap (
	id TEXT PRIMARY KEY,
	first_person TEXT NOT NULL,
	begun BIGINT NOT NULL,
	second BIGINT NOT NULL,
	ended BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "identity-10-devices-born", SQL: `ALTER TABLE devices ADD COLUMN born TEXT NOT NULL DEFAULT 'token'`},
		{Name: "identity-11-bindings", SQL: `CREATE TABLE bindings (
	issuer TEXT NOT NULL,
	subject TEXT NOT NULL,
	person TEXT NOT NULL,
	given TEXT NOT NULL,
	created BIGINT NOT NULL,
	version BIGINT NOT NULL,
	PRIMARY KEY (issuer, subject),
	UNIQUE (issuer, person)
)`},
		{Name: "identity-12-robots", SQL: `CREATE TABLE robots (
	id TEXT PRIMARY KEY,
	may TEXT NOT NULL,
	hosts TEXT NOT NULL,
	expires BIGINT NOT NULL,
	proof TEXT NOT NULL,
	proof_key TEXT NOT NULL,
	removed BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
	}
}

// The payloads of the entries, readable for ever: a field keeps its meaning,
// and what changes meaning gets another version.

// PersonPayload is the payload of the person.* entries.
type PersonPayload struct {
	V      int      `json:"v"`
	Person string   `json:"person"`
	Name   string   `json:"name,omitempty"`
	Kind   string   `json:"kind,omitempty"`
	Owner  string   `json:"owner,omitempty"`
	Groups []string `json:"groups,omitempty"`
	Before []string `json:"before,omitempty"` // groups before, or the name before
	Reason string   `json:"reason,omitempty"`
	Epoch  int64    `json:"epoch,omitempty"`
}

// TokenPayload is the payload of the token.* entries; never the secret.
type TokenPayload struct {
	V       int    `json:"v"`
	Person  string `json:"person"`
	By      string `json:"by,omitempty"`
	Expires int64  `json:"expires,omitempty"`
	Source  string `json:"source,omitempty"`
}

// LoginPayload is the payload of login.opened and login.ended.
type LoginPayload struct {
	V       int    `json:"v"`
	Person  string `json:"person"`
	Device  string `json:"device,omitempty"`
	Via     string `json:"via"`
	Born    string `json:"born,omitempty"` // token, device, passkey, provider
	Source  string `json:"source,omitempty"`
	Expires int64  `json:"expires,omitempty"`
}

// CredentialPayload is the payload of device.enrolled, passkey.enrolled and
// credential.revoked.
type CredentialPayload struct {
	V              int    `json:"v"`
	Person         string `json:"person"`
	Name           string `json:"name,omitempty"`
	Fingerprint    string `json:"fingerprint,omitempty"`
	PublicKey      []byte `json:"public_key,omitempty"`
	MayApproveFrom int64  `json:"may_approve_from,omitempty"`
	Reason         string `json:"reason,omitempty"`
}

// FailuresPayload is the payload of login.failed: one minute of failures of
// people without a login.
type FailuresPayload struct {
	V       int             `json:"v"`
	Minute  int64           `json:"minute"`
	Sources []SourceFailure `json:"sources"`
	Others  int64           `json:"others,omitempty"` // beyond the bound, counted only
}

// SourceFailure is how often one address failed in that minute, and how.
type SourceFailure struct {
	Source string           `json:"source"`
	Counts map[string]int64 `json:"counts"`
}

// CodePayload is the payload of code.confirmed.
type CodePayload struct {
	V           int    `json:"v"`
	Source      string `json:"source"`
	Target      string `json:"target"`
	Level       string `json:"level"`
	Fingerprint string `json:"fingerprint,omitempty"`
}

// BootstrapPayload is the payload of the bootstrap.* entries.
type BootstrapPayload struct {
	V      int    `json:"v"`
	Ends   int64  `json:"ends,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(µs int64) time.Time {
	if µs == 0 {
		return time.Time{}
	}
	return time.UnixMicro(µs).UTC()
}
