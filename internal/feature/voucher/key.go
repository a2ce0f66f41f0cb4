package voucher

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// A voucher goes onto a key that its person has stood for, and not just now: a
// login that was stolen must not make a day of break-glass for a key of the
// thief's. A key stands when it is
//
//	a device of theirs, from a login link, for as long as such a key has to wait
//	  before it may approve, or
//	one that they named with a passkey that may approve.
//
// While the installation is in bootstrap any key will do, as every new
// credential counts at once then.

// keyRule is what a refusal names.
const keyRule = "voucher-keys-are-known"

// keptKey is a key that somebody named with a passkey.
type keptKey struct {
	Print      string `db:"print"`
	Person     string `db:"person"`
	Credential string `db:"credential"` // k-…
}

// keysSchema is the keys that people named with a passkey.
var keysSchema = store.Migration{Name: "voucher-10-keys", SQL: `CREATE TABLE voucher_keys (
	print TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	credential TEXT NOT NULL,
	at BIGINT NOT NULL
)`}

// standsTx says what makes a key one that its person stood for, or refuses.
func (x *Vouchers) standsTx(tx *store.Tx, person identity.Person, print string) (how string, err error) {
	state, err := x.d.People.BootstrapTx(tx, tx.Now())
	if err != nil || state.Active {
		return "bootstrap", err
	}
	all, err := x.d.People.Credentials(tx, person.ID)
	if err != nil {
		return "", err
	}
	no := fault.New(fault.Denied, "cannot give a voucher on key %s: nobody has stood for it; it is no device of yours", print).WithRule(keyRule).WithHint("handrail voucher key FILE.pub (names it with your passkey)")
	for _, c := range all {
		if c.Kind != identity.CredentialDevice || c.Fingerprint != print || c.Revoked != 0 {
			continue
		}
		if !c.NeverApproves() && c.MayApproveFrom <= tx.Now().UnixMicro() {
			return c.ID, nil
		}
		no = fault.New(fault.Denied, "cannot give a voucher on key %s: it is too new, or was made by a login that counts for less", print).WithRule(keyRule).
			WithHint("handrail voucher key FILE.pub (names it with your passkey), or wait until %s", time.UnixMicro(c.MayApproveFrom).UTC().Format("2006-01-02 15:04 MST"))
		if c.NeverApproves() {
			no = no.WithHint("handrail voucher key FILE.pub (names it with your passkey)")
		}
	}
	kept, err := store.All[keptKey](tx, `SELECT print, person, credential FROM voucher_keys WHERE print = $1 AND person = $2`, print, person.ID)
	if err != nil {
		return "", err
	}
	for _, k := range kept {
		if slices.ContainsFunc(all, func(c identity.Credential) bool { return c.ID == k.Credential && c.Revoked == 0 }) {
			return k.Credential, nil
		}
	}
	return "", no
}

// keyHash is what a passkey signs to name a key: the person and the key are in it.
func keyHash(person, print string) []byte {
	sum := sha256.Sum256([]byte("handrail voucher key v1\n" + person + "\n" + print))
	return sum[:]
}

// KeyBegin returns what the caller's passkey signs to name a key.
func (x *Vouchers) KeyBegin(ctx context.Context, by identity.Principal, keyLine string) (options, ceremony, print string, err error) {
	key, err := parseKey(keyLine)
	if err != nil {
		return "", "", "", err
	}
	print = ssh.FingerprintSHA256(key)
	options, ceremony, err = x.d.People.ApprovalBegin(ctx, by, keyHash(by.ID, print))
	return options, ceremony, print, err
}

// named is the payload of voucher.keyed.
type named struct {
	V          int    `json:"v"`
	Print      string `json:"fingerprint"`
	Key        string `json:"key"` // hardware, file
	Credential string `json:"credential"`
}

// maxKeys bounds the keys that one person has named.
const maxKeys = 16

// KeyFinish keeps that the caller named the key with their passkey.
func (x *Vouchers) KeyFinish(ctx context.Context, by identity.Principal, keyLine, ceremony, response string) (print string, err error) {
	key, err := parseKey(keyLine)
	if err != nil {
		return "", err
	}
	print = ssh.FingerprintSHA256(key)
	_, err = x.d.Door.Do(ctx, doorway.Act{Action: "logins.self", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		credential, from, err := x.d.People.VerifyPasskeyAssertion(tx, by.ID, ceremony, response, keyHash(by.ID, print))
		if err != nil {
			return nil, err
		}
		if from.After(tx.Now()) {
			return nil, fault.New(fault.Denied, "cannot name a key with this passkey: it is too new").WithRule(keyRule).WithHint("it may from %s on", from.UTC().Format("2006-01-02 15:04 MST"))
		}
		lost, err := x.d.People.RevokedKey(tx, print)
		if err != nil {
			return nil, err
		}
		if lost {
			return nil, fault.New(fault.Denied, "cannot name key %s: it was revoked", print).WithRule(keyRule).WithHint("ssh-keygen -t ed25519-sk -O verify-required")
		}
		rows, err := store.All[keptKey](tx, `SELECT print, person, credential FROM voucher_keys WHERE person = $1 OR print = $2`, by.ID, print)
		if err != nil {
			return nil, err
		}
		for _, k := range rows {
			if k.Person != by.ID {
				return nil, fault.New(fault.Conflict, "cannot name key %s: it is somebody else's", print).WithHint("ssh-keygen -t ed25519-sk -O verify-required")
			}
		}
		if len(rows) >= maxKeys && !slices.ContainsFunc(rows, func(k keptKey) bool { return k.Print == print }) {
			return nil, fault.New(fault.Exhausted, "cannot name another key: you named %d", len(rows))
		}
		if _, err := tx.Exec(`INSERT INTO voucher_keys (print, person, credential, at) VALUES ($1, $2, $3, $4) ON CONFLICT (print) DO UPDATE SET credential = $3, at = $4`,
			print, by.ID, credential, tx.Now().UnixMicro()); err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: Named, Subjects: []string{by.ID}, Payload: named{V: 1, Print: print, Key: kindOf(key), Credential: credential}}}, nil
	}}, nil)
	return print, err
}

// revoked is the payload of voucher.revoked.
type revoked struct {
	V      int    `json:"v"`
	Serial uint64 `json:"serial"`
	Known  bool   `json:"known"` // this installation made it; else officers did, or nobody
	Reason string `json:"reason"`
}

// Bounds of what is said of a revoked voucher.
const maxReason = 300

// Revoke makes a voucher void before its time, also one that officers made and
// that no server knows. Hosts hear of it with their next lease.
func (x *Vouchers) Revoke(ctx context.Context, by identity.Principal, serial uint64, reason string) error {
	if serial == 0 || serial > 1<<63-1 {
		return fault.New(fault.Invalid, "cannot revoke voucher %d: there is no such serial", serial).WithHint("handrail voucher list")
	}
	if reason == "" || len(reason) > maxReason {
		return fault.New(fault.Invalid, "cannot revoke voucher %d: say why, in at most %d letters", serial, maxReason).WithHint("handrail voucher revoke %d --reason \"…\"", serial)
	}
	var owner string
	act := doorway.Act{Action: "grants.revoke", By: by,
		Facts: func(q store.Queryer, c *policy.Context) error {
			rows, err := store.All[outRow](q, `SELECT serial, person, void, member_of, print FROM vouchers WHERE serial = $1`, int64(serial))
			owner = ""
			if err == nil && len(rows) > 0 {
				owner = rows[0].Person
			}
			c.Self = owner != "" && owner == by.ID
			return err
		},
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			now := tx.Now()
			if owner == "" {
				unknown, err := store.One[int64](tx, `SELECT COUNT(*) FROM vouchers WHERE person = '' AND expires > $1`, now.UnixMicro())
				if err != nil {
					return nil, err
				}
				if unknown >= maxOfPerson {
					return nil, fault.New(fault.Exhausted, "cannot revoke voucher %d: %d that nobody here made were revoked within a day", serial, unknown)
				}
				if _, err := tx.Exec(`INSERT INTO vouchers (serial, person, person_name, key_kind, hosts, issued, expires, void) VALUES ($1, '', '', '', 0, $2, $3, $2)`,
					int64(serial), now.UnixMicro(), now.Add(life).UnixMicro()); err != nil {
					return nil, err
				}
			} else if _, err := tx.Exec(`UPDATE vouchers SET void = $1 WHERE serial = $2`, now.UnixMicro(), int64(serial)); err != nil {
				return nil, err
			}
			subjects := []string{by.ID}
			if owner != "" && owner != by.ID {
				subjects = append(subjects, owner)
			}
			return []ledger.Entry{{Action: Revoked, Subjects: subjects, Payload: revoked{V: 1, Serial: serial, Known: owner != "", Reason: reason}}}, nil
		},
	}
	_, err := x.d.Door.Do(ctx, act, nil)
	if err == nil {
		x.leases.Lock()
		x.asked = time.Time{} // the next lease says it
		x.leases.Unlock()
	}
	return err
}
