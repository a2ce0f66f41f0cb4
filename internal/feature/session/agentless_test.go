package session_test

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

func TestAnOrderWaitsForTheNodeThatComesForIt(t *testing.T) {
	w := newWorld(t, recording.Deps{}, session.Bounds{})
	ada := w.person("ada", "developer")
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := w.Hosts.AddSSHTx(tx, "system", target.Host{Name: "db-7", Environment: "dev", SSHAddress: "192.0.2.7:22", SSHUser: "look", SSHNode: true,
			SSHKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(house.NewKey(t).PublicKey())))})
		return []ledger.Entry{e}, err
	})
	l, err := w.sessions.Open(ctx, ada, session.OpenRequest{Host: "db-7", Command: "true"})
	fatal(t, err)
	fatal(t, l.Own(&owner{}))
	if o := w.nodes.orders[0]; o.ValidMS != wire.MaxOrderAge {
		t.Errorf("the order is good for %d ms, and its node has yet to come", o.ValidMS)
	}
	w.nodes.last().exits(wire.Exit{})
	<-l.Done()
}
