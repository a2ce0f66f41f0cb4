package roster_test

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/house"
)

func TestNobodyWhoIsLockedHasANodeSent(t *testing.T) {
	h, ada, bob := moved(t)
	var host target.Host
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		added, e, err := h.Hosts.AddSSHTx(tx, "system", target.Host{Name: "db-7", Environment: "dev", SSHAddress: "192.0.2.7:22", SSHUser: "look", SSHNode: true,
			SSHKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(house.NewKey(t).PublicKey())))})
		host = added
		return []ledger.Entry{e}, err
	}))
	if secret, err := h.roster.Call(t.Context(), bob.ID, host.ID, false); err != nil || secret == "" {
		t.Fatal(err)
	}
	_, err := h.roster.Lock(t.Context(), ada.Principal, "bob", "stolen laptop") // while the program is on its way
	house.Must(t, err)
	_, err = h.roster.Call(t.Context(), bob.ID, host.ID, false)
	house.Want(t, err, fault.Denied, "bob is locked")
	if n := h.count(target.HostCalled); n != 1 {
		t.Errorf("%d nodes were sent", n)
	}
}
