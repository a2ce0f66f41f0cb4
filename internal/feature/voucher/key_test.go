package voucher_test

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// device logs somebody in on a new device, by a link.
func (w *world) device(of identity.Principal) (line string) {
	w.t.Helper()
	var secret string
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		made, e, err := w.People.LoginTokenTx(tx, of.ID, ledger.System, time.Hour)
		secret = made
		return []ledger.Entry{e}, err
	})
	pub, _ := key()
	_, _, _, err := w.People.Redeem(w.t.Context(), secret, pub.Marshal(), "laptop", identity.ViaDevice, "192.0.2.9")
	fatal(w.t, err)
	return string(ssh.MarshalAuthorizedKey(pub))
}

func TestAStolenLoginGetsNoVoucherOnAKeyOfItsOwn(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "operator")
	old := w.device(ada) // in bootstrap, where a device counts at once
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.People.EndBootstrapTx(tx, ada.ID) })
	if _, err := w.fetch(ada); fault.KindOf(err) != fault.Denied {
		t.Errorf("a key that nobody knows: %v", err)
	}
	fresh := w.device(ada)
	if _, err := w.vouchers.Fetch(t.Context(), ada, fresh, nil); fault.KindOf(err) != fault.Denied {
		t.Errorf("a device from a minute ago: %v", err)
	}
	ben := w.person("ben", "operator")
	if _, err := w.vouchers.Fetch(t.Context(), ben, old, nil); fault.KindOf(err) != fault.Denied {
		t.Errorf("somebody else's device: %v", err)
	}
	if n := len(w.entries(voucher.Issued)); n != 0 {
		t.Errorf("%d were issued", n)
	}
	_, err := w.vouchers.Fetch(t.Context(), ada, old, nil)
	fatal(t, err)
}

func TestARevokedVoucherIsVoidAlsoOneThatOfficersMade(t *testing.T) {
	w := newWorld(t)
	ada, ben, eve := w.person("ada", "operator"), w.person("ben"), w.person("eve")
	made, err := w.fetch(ada)
	fatal(t, err)
	if err := w.vouchers.Revoke(t.Context(), eve, made.Serial, "no"); fault.KindOf(err) != fault.Denied {
		t.Errorf("somebody else's: %v", err)
	}
	if err := w.vouchers.Revoke(t.Context(), ben, 77, "no"); fault.KindOf(err) != fault.Denied {
		t.Errorf("one of a ceremony, by nobody in particular: %v", err)
	}
	fatal(t, w.vouchers.Revoke(t.Context(), ada, made.Serial, "laptop lost"))
	fatal(t, w.vouchers.Revoke(t.Context(), ada, 77, "ceremony over"))
	void := must(w.vouchers.Revoked(t.Context()))
	slices.Sort(void)
	if !slices.Equal(void, []uint64{77, made.Serial}) {
		t.Errorf("void are %v, want 77 and %d", void, made.Serial)
	}
	if out := must(w.vouchers.List(t.Context(), ada, false)); len(out) != 0 {
		t.Errorf("%d are out", len(out))
	}
}
