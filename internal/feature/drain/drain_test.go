package drain_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/drain"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/house"
)

// yard is a house with one host.
type yard struct {
	*house.House
	t      *testing.T
	host   target.Host
	drains *drain.Drains
}

func build(t *testing.T) *yard {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(append(approval.Schema(), access.Schema()...), drain.Schema()...)})
	t.Cleanup(h.Close)
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force, Grants: access.Standing{}})
	y := &yard{House: h, t: t, host: h.Host("web-1", "production")}
	y.drains = drain.New(drain.Deps{Store: h.Store, Door: door, Hosts: h.Hosts, People: h.People})
	return y
}

// person is somebody of a group.
func (y *yard) person(name, group string) identity.Principal {
	y.t.Helper()
	var p identity.Person
	y.Record(func(tx *store.Tx) (entries []ledger.Entry, err error) {
		p, entries, err = y.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, []string{group})
		return entries, err
	})
	return identity.Principal{ID: p.ID, Name: p.Name, Kind: identity.KindPerson, Groups: p.Groups, Epoch: p.Epoch}
}

// admits says whether somebody may open a session at a time.
func (y *yard) admits(by identity.Principal, glass bool, at time.Time) (err error) {
	y.t.Helper()
	house.Must(y.t, y.Store.View(y.t.Context(), func(v *store.View) error {
		err = y.drains.Admits(v, y.host, by, glass, at)
		return nil
	}))
	return err
}

func TestADrainedHostIsOnePersonsUntilItsTimeIsOver(t *testing.T) {
	y := build(t)
	ada, ben, dev := y.person("ada", "operator"), y.person("ben", "operator"), y.person("dev", "developer")
	ctx, now := t.Context(), time.Now()
	d, err := y.drains.Drain(ctx, ada, "web-1", 2*time.Hour, " it leaks ")
	house.Must(t, err)
	if d.Why != "it leaks" || time.UnixMicro(d.Until).Sub(now) < 2*time.Hour-time.Minute {
		t.Errorf("%+v", d)
	}
	house.Must(t, y.admits(ada, false, now))
	house.Must(t, y.admits(ben, true, now)) // the glass is broken
	house.Want(t, y.admits(ben, false, now), fault.Conflict, "ada keeps it to themselves")
	house.Must(t, y.admits(ben, false, time.UnixMicro(d.Until)))

	_, err = y.drains.Drain(ctx, ben, "web-1", time.Hour, "mine")
	house.Want(t, err, fault.Conflict, "ada keeps it to themselves")
	if _, err := y.drains.Drain(ctx, ada, "web-1", time.Hour, "longer than thought"); err != nil {
		t.Errorf("of one's own drain one may say another time: %v", err)
	}
	if err := y.drains.Undrain(ctx, dev, "web-1"); fault.KindOf(err) != fault.Denied {
		t.Errorf("a developer ends somebody else's drain: %v", err)
	}
	house.Must(t, y.drains.Undrain(ctx, ben, "web-1")) // an operator may
	house.Must(t, y.admits(dev, false, time.Now()))
	house.Want(t, y.drains.Undrain(ctx, ada, "web-1"), fault.Conflict, "it is not drained")

	var actions []ledger.Action
	list, err := y.Store.Entries(ctx, store.EntryQuery{After: -1, Oldest: true, Limit: 100})
	house.Must(t, err)
	for _, e := range list {
		if a := ledger.Action(e.Parsed.Action); a == drain.Drained || a == drain.Undrained {
			actions = append(actions, a)
		}
	}
	if len(actions) != 3 || actions[0] != drain.Drained || actions[2] != drain.Undrained {
		t.Errorf("the ledger says %v", actions)
	}
}

func TestADrainHasAReasonAndAnEnd(t *testing.T) {
	y := build(t)
	ada, dev := y.person("ada", "operator"), y.person("dev", "developer")
	for what, try := range map[string]struct {
		long time.Duration
		why  string
	}{
		"no reason": {time.Hour, "  "}, "a novel": {time.Hour, strings.Repeat("x", 501)},
		"no time": {0, "why"}, "before now": {-time.Hour, "why"}, "for ever": {13 * time.Hour, "why"},
	} {
		if _, err := y.drains.Drain(t.Context(), ada, "web-1", try.long, try.why); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := y.drains.Drain(t.Context(), dev, "web-1", time.Hour, "why"); fault.KindOf(err) != fault.Denied {
		t.Errorf("a developer without a grant drains: %v", err)
	}
}

func TestOneKeepsAHostForTwelveHoursAndNoLonger(t *testing.T) {
	y := build(t)
	ada := y.person("ada", "operator")
	_, err := y.drains.Drain(t.Context(), ada, "web-1", drain.Longest+1, "why")
	house.Want(t, err, fault.Invalid, "up to 12h")
	d, err := y.drains.Drain(t.Context(), ada, "web-1", drain.Longest, strings.Repeat("x", 500))
	house.Must(t, err)
	if long := time.UnixMicro(d.Until).Sub(time.UnixMicro(d.Since)); long != drain.Longest {
		t.Errorf("it is kept for %s", long)
	}
	_, err = y.drains.Drain(t.Context(), ada, "nowhere", time.Hour, "why")
	house.Want(t, err, fault.NotFound, "nowhere")
}

// A drain is a row until its end, whoever drained: a lock must not open a host
// on which somebody is about to take memory, and an operator always can.
func TestWhoIsLockedKeepsNoHostFromAnOperator(t *testing.T) {
	y := build(t)
	ada, ben := y.person("ada", "operator"), y.person("ben", "operator")
	d, err := y.drains.Drain(t.Context(), ada, "web-1", time.Hour, "it leaks")
	house.Must(t, err)
	y.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := y.People.LockTx(tx, ledger.System, ada.ID, "lost laptop")
		return entries, err
	})
	_, err = y.drains.Drain(t.Context(), ada, "web-1", 2*time.Hour, "longer")
	house.Want(t, err, fault.Denied, "locked")
	house.Want(t, y.drains.Undrain(t.Context(), ada, "web-1"), fault.Denied, "locked")
	if got, ok, err := y.drains.Of(t.Context(), y.host.ID); err != nil || !ok || got != d {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	house.Must(t, y.drains.Undrain(t.Context(), ben, "web-1"))
	house.Must(t, y.admits(ben, false, time.Now()))
}

func TestMemoryIsOfADrainedHost(t *testing.T) {
	y := build(t)
	ada := y.person("ada", "operator")
	need := func(at time.Time) (err error) {
		house.Must(t, y.Store.View(t.Context(), func(v *store.View) error {
			err = drain.NeedTx(v, "dump memory on", y.host, at)
			return nil
		}))
		return err
	}
	house.Want(t, need(time.Now()), fault.Conflict, "cannot dump memory on web-1: it is not drained")
	d, err := y.drains.Drain(t.Context(), ada, "web-1", time.Hour, "it leaks")
	house.Must(t, err)
	house.Must(t, need(time.UnixMicro(d.Until-1)))
	house.Want(t, need(time.UnixMicro(d.Until)), fault.Conflict, "it is not drained")
}

func TestTheLedgerSaysWhoDrainedAndWhoEndedIt(t *testing.T) {
	y := build(t)
	ada, ben := y.person("ada", "operator"), y.person("ben", "operator")
	d, err := y.drains.Drain(t.Context(), ada, "web-1", time.Hour, "it leaks")
	house.Must(t, err)
	house.Must(t, y.drains.Undrain(t.Context(), ben, "web-1"))
	for action, want := range map[ledger.Action][]string{drain.Drained: {ada.ID}, drain.Undrained: {ben.ID, ada.ID}} {
		list, err := y.Store.Entries(t.Context(), store.EntryQuery{Action: string(action), Limit: 10})
		house.Must(t, err)
		var p struct{ Drain drain.Drain }
		if len(list) != 1 || !slices.Equal(list[0].Parsed.Subjects, want) || list[0].Parsed.Target != y.host.Path() {
			t.Fatalf("%s: %+v", action, list)
		}
		house.Must(t, json.Unmarshal(list[0].Payload, &p))
		if p.Drain.Person != ada.ID || p.Drain.Why != "it leaks" || p.Drain.Since != d.Since || action == drain.Undrained && p.Drain.Until >= d.Until {
			t.Errorf("%s: %+v", action, p)
		}
	}
}

func TestErasingLeavesTheTimeOfADrainAndNotItsReason(t *testing.T) {
	y := build(t)
	ada := y.person("ada", "operator")
	_, err := y.drains.Drain(t.Context(), ada, "web-1", time.Hour, "said by ada")
	house.Must(t, err)
	y.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: "test.erased", Object: ada.ID, Version: 1}}, drain.EraseTx(tx, ada.ID)
	})
	d, ok, err := y.drains.Of(t.Context(), y.host.ID)
	house.Must(t, err)
	if !ok || d.Why != "" {
		t.Errorf("%+v, %v", d, ok)
	}
}
