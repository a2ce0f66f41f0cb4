package approval

import (
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// As what somebody signs.
const (
	requester = "requester"
	approver  = "approver"
)

// verifyTx checks the evidence and keeps what a host needs to check it again:
// signature and public key. No evidence at all is no error here: Step decides
// whether that may be.
func (s *Approvals) verifyTx(q store.Queryer, person, role string, hash []byte, ev Evidence) (*wire.Signature, time.Time, error) {
	var sig *wire.Signature
	var credential string
	var from time.Time
	var err error
	switch {
	case len(ev.DeviceSignature) > 0:
		message := identity.ApprovalMessage(hash)
		if role == requester {
			message = identity.RequestMessage(hash)
		}
		sig = &wire.Signature{Kind: "device", Signature: ev.DeviceSignature}
		credential, from, err = s.people.VerifyDeviceSignature(q, person, message, ev.DeviceSignature)
	case role == requester: // a passkey signs the hash alone, and that is an approval
	case ev.Ceremony != "" || ev.Response != "":
		if sig, err = assertion(ev.Response); err == nil {
			credential, from, err = s.people.VerifyPasskeyAssertion(q, person, ev.Ceremony, ev.Response, hash)
		}
	default:
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	sig.Person, sig.Role, sig.Credential = person, role, credential
	sig.PublicKey, err = s.publicKey(q, person, sig)
	return sig, from, err
}

// publicKey is the key of the credential that signed: as SSH has it for a
// device, as PKIX for a passkey.
func (s *Approvals) publicKey(q store.Queryer, person string, sig *wire.Signature) ([]byte, error) {
	list, err := s.people.Credentials(q, person)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		switch {
		case c.ID != sig.Credential:
		case sig.Kind == "device":
			return c.PublicKey, nil
		default:
			return pkix(c.PublicKey)
		}
	}
	return nil, fault.New(fault.Internal, "cannot find the key of credential %s", sig.Credential)
}

// SignTx adds the requester's own signature over the hash, which a write order
// carries beside those of the approvers. It may come after their approval, since
// a requester sees the hash only when everybody does.
func (s *Approvals) SignTx(tx *store.Tx, by identity.Principal, id string, ev Evidence) (Approval, []ledger.Entry, error) {
	a, err := s.GetTx(tx, id)
	if err != nil {
		return Approval{}, nil, err
	}
	if a.Requester != by.ID || a.State != Requested && a.State != Approved || a.Signed != nil {
		return Approval{}, nil, fault.New(fault.Conflict, "cannot sign request %s: it is not yours, has ended, or is signed already", a.ID)
	}
	sig, _, err := s.verifyTx(tx, by.ID, requester, a.Hash, ev)
	if err != nil {
		return Approval{}, nil, err
	}
	if sig == nil {
		return Approval{}, nil, fault.New(fault.Invalid, "cannot sign request %s: there is no signature", a.ID)
	}
	a.Signed = sig
	a.Version++
	if err := s.saveTx(tx, a); err != nil {
		return Approval{}, nil, err
	}
	return a, []ledger.Entry{a.entry(ActionSigned, by.ID)}, nil
}
