package servers_test

import (
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/postgres"
)

// The database fails over to a standby that lags: what three servers' people were
// told of is not on it. Nobody goes on as if nothing had been: neither who saw it
// nor a server that was away, since the others have signed it.
func TestAStandbyThatLagsIsPromotedUnderServers(t *testing.T) {
	long(t)
	needRoot(t)
	primary := postgres.Start() // of its own: it dies here
	t.Cleanup(primary.Stop)
	dsn := primary.Database(t)
	standby := primary.Standby(t)
	h := enter(t, place(t, "a", primary.Or(standby, dsn)), func(string) string { return "" })
	c := h.ada.another(t, "c", h.ben).start()
	all := []person{h.ada, h.ada.via(h.b), h.ada.via(c)}
	until(t, "the standby to hold all", func() bool { return standby.Replayed(t, primary) })
	c.stop() // it will have seen nothing of what is lost
	standby.Kill()
	h.ada.ok("lock", "cleo", "--reason", "lost laptop")
	until(t, "b to have heard of the lock", func() bool { return len(all[1].entries("person.locked")) == 1 })
	primary.Kill()
	if err := standby.Again(); err != nil {
		t.Fatal(err)
	}
	standby.Promote(t)

	began := time.Now()
	refused := func(p person, args ...string) bool {
		r := p.run(args...)
		return r.code != 0 && (strings.Contains(r.out+r.err, "rolled back") || strings.Contains(r.out+r.err, "fork"))
	}
	for _, s := range []*server{h.a, h.b} {
		until(t, s.name+" to name what happened", func() bool { return refused(h.ben.via(s), "ssh", "web-1", "--", "true") })
		t.Logf("%s refused, and named it, %s after the promotion", s.name, time.Since(began).Round(time.Millisecond))
	}
	c.start()
	until(t, "c to name what it did not see", func() bool { return refused(h.ben.via(c), "ssh", "web-1", "--", "true") })
	t.Logf("c, which had been away, named it %s after the promotion", time.Since(began).Round(time.Millisecond))
	for _, p := range all {
		if r := h.cleo.via(p.at).run("ssh", "web-1", "--", "true"); r.code == 0 {
			t.Errorf("whose lock was lost gets a session at %s", p.at.name)
		}
		if r := h.cleo.via(p.at).run("elevate", "web-1", "--reason", "x", "--for", "5m"); r.code == 0 {
			t.Errorf("%s takes a request", p.at.name)
		}
		if out := p.ok("status"); !strings.Contains(out, "accepts no new entry") {
			t.Errorf("the alarm is not on %s:\n%s", p.at.name, out)
		}
		if !refused(p, "ledger", "verify") {
			t.Errorf("ledger verify at %s finds nothing", p.at.name)
		}
		// A brake works, and is kept until the ledger takes entries again.
		if r := p.run("lock", "cleo", "--reason", "still lost"); r.code != 0 {
			t.Errorf("no lock at %s: %s", p.at.name, r.err)
		}
	}
}
