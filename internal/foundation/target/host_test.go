package target_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/shelf"
)

func open(t *testing.T) (*store.Store, *target.Hosts) {
	t.Helper()
	s := shelf.Open(t, target.Schema())
	return s, target.NewHosts(s)
}

func record(t *testing.T, s *store.Store, fn func(tx *store.Tx) (ledger.Entry, error)) error {
	t.Helper()
	_, err := s.Record(t.Context(), store.NewID('x'), func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := fn(tx)
		return []ledger.Entry{e}, err
	})
	return err
}

func TestTheServersOwnHostIsKnownAndStaysIt(t *testing.T) {
	for name, how := range map[string]struct{ invited, here, server bool }{
		"another machine":                  {},
		"this machine, by its supervisor":  {invited: true, server: true},
		"this machine, by its own address": {here: true, server: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, hosts := open(t)
			var host target.Host
			if err := record(t, s, func(tx *store.Tx) (ledger.Entry, error) {
				secret, _, err := hosts.InviteTx(tx, "system", target.Invite{Server: how.invited})
				if err != nil {
					return ledger.Entry{}, err
				}
				joined, e, err := hosts.RedeemInviteTx(tx, secret, "web-1", how.here)
				host = joined
				return e, err
			}); err != nil || host.Server != how.server {
				t.Fatalf("%+v %v", host, err)
			}
			host.Server = !host.Server
			if err := record(t, s, func(tx *store.Tx) (ledger.Entry, error) { return hosts.SetTx(tx, host) }); err != nil {
				t.Fatal(err)
			}
			if after, err := hosts.Get(t.Context(), "web-1"); err != nil || after.Server != how.server {
				t.Errorf("somebody set it: %+v %v", after, err)
			}
		})
	}
}

func TestAnInviteIsRedeemedOnce(t *testing.T) {
	s, hosts := open(t)
	secret := ""
	err := record(t, s, func(tx *store.Tx) (e ledger.Entry, err error) {
		secret, e, err = hosts.InviteTx(tx, "p-admin", target.Invite{Environment: "production", Scope: "pci", Services: []string{"Pay"}})
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	var host target.Host
	redeem := func(secret, name string) error {
		return record(t, s, func(tx *store.Tx) (ledger.Entry, error) {
			joined, e, err := hosts.RedeemInviteTx(tx, secret, name, false)
			if err == nil {
				host = joined
			}
			return e, err
		})
	}
	if err := redeem("guess", "web-1"); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("a guessed secret: %v", err)
	}
	if err := redeem(secret, "(none)"); fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.From(err).Hint, "--name") {
		t.Errorf("a kernel without a name: %v, %q", err, fault.From(err).Hint)
	}
	if err := redeem(secret, "Web-1"); err != nil {
		t.Fatal(err)
	}
	if host.Name != "web-1" || host.Environment != "production" || host.Scope != "pci" || host.Services[0] != "pay" {
		t.Errorf("the host is not what people decided: %+v", host)
	}
	if err := redeem(secret, "web-2"); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("a used secret: %v", err)
	}
	got, err := hosts.Get(t.Context(), "web-1")
	if err != nil || got.ID != host.ID {
		t.Errorf("Get by name = %v, %v", got, err)
	}
	if got, err = hosts.Get(t.Context(), host.ID[:5]); err != nil || got.Name != "web-1" {
		t.Errorf("Get by the beginning of an id = %v, %v", got, err)
	}
	if rows, err := s.Entries(t.Context(), store.EntryQuery{Action: string(target.HostInvited)}); err != nil || len(rows) != 1 || strings.Contains(string(rows[0].Payload), secret) {
		t.Errorf("the entry of the invite is missing or holds the secret: %v %v", rows, err)
	}
}

func TestAHostIsSetOnlyFromWhatWasRead(t *testing.T) {
	s, hosts := open(t)
	add := target.Host{Name: "db-1"}
	if err := record(t, s, func(tx *store.Tx) (ledger.Entry, error) { return hosts.AddTx(tx, add) }); err != nil {
		t.Fatal(err)
	}
	read, err := hosts.Get(t.Context(), "db-1")
	if err != nil {
		t.Fatal(err)
	}
	set := func(h target.Host) error {
		return record(t, s, func(tx *store.Tx) (ledger.Entry, error) { return hosts.SetByTx(tx, "p-ada", h) })
	}
	first, second := read, read
	first.Environment = "staging"
	second.Environment = "production"
	if err := set(first); err != nil {
		t.Fatal(err)
	}
	if err := set(second); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a write from a stale read: %v", err)
	}
	now, err := hosts.Get(t.Context(), "db-1")
	if err != nil || now.Environment != "staging" || now.Version != 2 {
		t.Errorf("got %+v, %v", now, err)
	}
}

func TestATrialHostIsNeverProduction(t *testing.T) {
	for _, h := range []target.Host{
		{Name: "lab", Environment: "production", Scope: "none", Trial: true},
		{Name: "lab", Environment: "prod", Scope: "none"},
		{Name: "lab", Environment: "dev", Scope: "secret"},
		{Name: "la b", Environment: "dev", Scope: "none"},
		{Name: "h-7k3f9q2m", Environment: "dev", Scope: "none"},
		{Name: "lab+write", Environment: "dev", Scope: "none"},
		{Name: "", Environment: "dev", Scope: "none"},
	} {
		if h.Validate() == nil {
			t.Errorf("%+v is accepted", h)
		}
	}
}

func TestAnInviteExpires(t *testing.T) {
	s, hosts := open(t)
	err := record(t, s, func(tx *store.Tx) (e ledger.Entry, err error) {
		_, e, err = hosts.InviteTx(tx, "p-admin", target.Invite{For: 48 * time.Hour})
		return e, err
	})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("an invite of two days: %v", err)
	}
	secret := ""
	err = record(t, s, func(tx *store.Tx) (e ledger.Entry, err error) {
		secret, e, err = hosts.InviteTx(tx, "p-admin", target.Invite{Name: "web-1", For: time.Microsecond})
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = record(t, s, func(tx *store.Tx) (e ledger.Entry, err error) {
		_, e, err = hosts.RedeemInviteTx(tx, secret, "web-1", false)
		return e, err
	})
	if fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("an expired secret: %v", err)
	}
	if list, err := hosts.List(context.WithoutCancel(t.Context()), ""); err != nil || len(list) != 0 {
		t.Errorf("hosts: %v %v", list, err)
	}
}

func TestWordsThatChooseNothingAreAnError(t *testing.T) {
	s, hosts := open(t)
	for _, name := range []string{"web-1", "web-2", "db-1"} {
		if err := record(t, s, func(tx *store.Tx) (ledger.Entry, error) { return hosts.AddTx(tx, target.Host{Name: name}) }); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(words ...string) (got []target.Host, err error) {
		err = s.View(t.Context(), func(v *store.View) (err error) {
			got, err = hosts.ResolveTx(v, words)
			return err
		})
		return got, err
	}
	if got, err := resolve("web-*", "web-1", "db-1"); err != nil || len(got) != 3 {
		t.Errorf("resolve = %v, %v", got, err)
	}
	if got, err := resolve("web-1", "web-9"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a missing host: %v, %v", got, err)
	}
	if got, err := resolve(""); err == nil {
		t.Errorf("an empty word chose %d hosts", len(got))
	}
}
