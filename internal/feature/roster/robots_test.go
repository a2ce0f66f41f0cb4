package roster_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/house"
)

const keyOne, keyTwo = "11111111111111111111111111111111" + "11111111111111111111111111111111", "22222222222222222222222222222222" + "22222222222222222222222222222222"

func nightly() identity.Robot {
	return identity.Robot{
		May: identity.Groups{"sessions.open:read", "hosts.list"}, Hosts: "env:dev", Expires: time.Now().Add(24 * time.Hour).UnixMicro(), Proof: identity.Proof{Key: keyOne},
	}
}

// robot is one that two people agreed to, and that is logged in.
func (h *home) robot(ada, bob house.Resident, name string) identity.Principal {
	h.t.Helper()
	_, id, err := h.roster.AddRobot(h.t.Context(), ada.Principal, name, "ada", nightly())
	house.Must(h.t, err)
	house.Must(h.t, h.approve(bob, id))
	return h.comes(name, keyOne)
}

func (h *home) comes(name, key string) identity.Principal {
	h.t.Helper()
	login, _, err := h.People.EnterKey(h.t.Context(), name, key, time.Now().String()+h.t.Name()+key[:1]+store.Once(), "192.0.2.9:1")
	house.Must(h.t, err)
	who, err := h.People.Authenticate(h.t.Context(), login.Bearer)
	house.Must(h.t, err)
	return who
}

// asks is what the doorway says to somebody.
func (h *home) asks(by identity.Principal, action, level string, host *target.Host) error {
	h.t.Helper()
	_, err := h.door.Do(h.t.Context(), doorway.Act{Action: action, By: by, Host: host, Context: policy.Context{Level: level, FloorOK: true},
		Open: func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.done", Subjects: []string{by.ID}}}, nil
		}}, nil)
	return err
}

// hostIn makes a host of an environment.
func (h *home) hostIn(ada house.Resident, name, environment string) *target.Host {
	h.t.Helper()
	var secret string
	house.Must(h.t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		var e ledger.Entry
		var err error
		secret, e, err = h.Hosts.InviteTx(tx, ada.ID, target.Invite{Name: name, Environment: environment, Scope: "none", For: time.Hour})
		return []ledger.Entry{e}, err
	}))
	host, _, err := h.roster.Join(h.t.Context(), secret, name, nodeRequest(h.t), "192.0.2.7:1")
	house.Must(h.t, err)
	return &host
}

func TestARobotIsMadeByTwoAndDoesWhatWasAgreedAlone(t *testing.T) {
	h, ada, bob := moved(t)
	dev, prod := h.hostIn(ada, "web-1", "dev"), h.hostIn(ada, "pay-1", "production")
	_, id, err := h.roster.AddRobot(t.Context(), ada.Principal, "nightly", "ada", nightly())
	if err != nil || id == "" {
		t.Fatal(id, err)
	}
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "early", "192.0.2.9:1"); fault.KindOf(err) != fault.Unauthenticated {
		t.Fatalf("before anybody agreed: %v", err)
	}
	house.Want(t, h.approve(ada, id), fault.Denied, "")
	var shown string
	house.Must(t, h.Store.View(t.Context(), func(v *store.View) error {
		a, err := h.approvals.GetTx(v, id)
		if err != nil {
			return err
		}
		for _, k := range roster.Kinds(h.People, h.Hosts, h.Force) {
			if k.Name() == a.Kind {
				d, err := k.Describe(v, a.Request)
				shown = fmt.Sprint(d)
				return err
			}
		}
		return nil
	}))
	for _, part := range []string{"nightly", "ada", "sessions.open:read", "env:dev", keyOne} {
		if !strings.Contains(shown, part) {
			t.Errorf("the approver does not see %q", part)
		}
	}
	house.Must(t, h.approve(bob, id))
	robot := h.comes("nightly", keyOne)
	if robot.Kind != identity.KindRobot || robot.Owner != ada.ID || robot.Name != "nightly" {
		t.Fatalf("%+v", robot)
	}
	for name, c := range map[string]struct {
		action, level string
		host          *target.Host
		refused       bool
	}{
		"a read shell there":     {"sessions.open", "read", dev, false},
		"hosts":                  {"hosts.list", "", nil, false},
		"its own login":          {"logins.self", "", nil, false},
		"a read shell elsewhere": {"sessions.open", "read", prod, true},
		"a write shell":          {"sessions.open", "write", dev, true},
		"no level":               {"sessions.open", "", dev, true},
		"a look at people":       {"people.list", "", nil, true},
		"an inspection":          {"inspect", "", dev, true},
		"a grant":                {"grants.request", "", dev, true},
		"break-glass":            {"grants.breakglass", "", dev, true},
		"an approval":            {"approvals.decide", "", nil, true},
		"a review":               {"grants.review", "", nil, true},
		"another robot":          {"people.add", "", nil, true},
		"a lock":                 {"people.lock", "", nil, true},
		"the rules":              {"policies.apply", "", nil, true},
		"the ledger's export":    {"ledger.export", "", nil, true},
	} {
		err := h.asks(robot, c.action, c.level, c.host)
		if c.refused && (fault.KindOf(err) != fault.Denied || fault.From(err).Rule != "robot-only-what-was-agreed") || !c.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.count(identity.RobotSet); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// Who agrees to a robot that writes reads that it needs a grant each time.
func TestARobotThatMayWriteNeedsAGrantAllTheSame(t *testing.T) {
	h, ada, bob := moved(t)
	dev := h.hostIn(ada, "web-1", "dev")
	r := nightly()
	r.May = identity.Groups{"grants.request", "sessions.open:read", "sessions.open:write"}
	_, id, err := h.roster.AddRobot(t.Context(), ada.Principal, "nightly", "ada", r)
	house.Must(t, err)
	house.Must(t, h.approve(bob, id))
	robot := h.comes("nightly", keyOne)
	house.Must(t, h.asks(robot, "sessions.open", "read", dev))
	house.Want(t, h.asks(robot, "sessions.open", "write", dev), fault.Denied, "while a grant of its own is in force")
	held := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force, Grants: granted{robot.ID, dev.ID}})
	_, err = held.Do(t.Context(), doorway.Act{Action: "sessions.open", By: robot, Host: dev, Context: policy.Context{Level: "write", FloorOK: true},
		Open: func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.done", Subjects: []string{robot.ID}}}, nil
		}}, nil)
	house.Must(t, err)
}

// granted is one grant in force.
type granted struct{ person, host string }

func (g granted) Active(_ store.Queryer, person, host string, now time.Time) (doorway.GrantInForce, bool, error) {
	return doorway.GrantInForce{ID: "g-00000001", Kind: "routine", Expires: now.Add(time.Hour).UnixMicro()}, g == granted{person, host}, nil
}

func TestARobotNeverApprovesEvenWhereTheRulesWouldLetIt(t *testing.T) {
	h, ada, bob := moved(t)
	dev := h.hostIn(ada, "web-1", "dev")
	robot := h.robot(ada, bob, "nightly")
	row, err := h.Force.Current(t.Context())
	house.Must(t, err)
	set := policy.Default()
	set.Files = append(set.Files, policy.File{Name: "8-generous.cedar", Text: `@id("generous") @says("everything") permit (principal, action, resource);`})
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.Force.ApplyTx(tx, ada.ID, set, row.Version)
		return []ledger.Entry{e}, err
	}))
	for _, action := range []string{"approvals.decide", "grants.review", "people.add", "policies.apply"} {
		if err := h.asks(robot, action, "", nil); fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", action, err)
		}
	}
	if err := h.asks(robot, "grants.breakglass", "", dev); fault.KindOf(err) != fault.Denied {
		t.Errorf("break-glass: %v", err)
	}
	for _, may := range []string{"approvals.decide", "grants.breakglass", "people.add", "*", "sessions.open"} {
		r := nightly()
		r.May, r.Proof.Key = identity.Groups{may}, keyTwo
		if _, _, err := h.roster.AddRobot(t.Context(), ada.Principal, "other", "ada", r); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a robot that may %s: %v", may, err)
		}
	}
	if robot.MayApprove() || robot.MayBrake() {
		t.Error("it may approve or brake")
	}
}

func TestTheLockOfItsOwnerStopsARobot(t *testing.T) {
	h, ada, bob := moved(t)
	dev := h.hostIn(ada, "web-1", "dev")
	robot := h.robot(ada, bob, "nightly")
	login, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "again", "192.0.2.9:1")
	house.Must(t, err)
	house.Must(t, h.asks(robot, "sessions.open", "read", dev))
	_, err = h.roster.Lock(t.Context(), bob.Principal, "ada", "left")
	house.Must(t, err)
	if err := h.asks(robot, "sessions.open", "read", dev); fault.KindOf(err) != fault.Denied && fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("its session opened: %v", err)
	}
	if _, err := h.People.Authenticate(t.Context(), login.Bearer); fault.KindOf(err) != fault.Denied {
		t.Errorf("its login goes on: %v", err)
	}
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "after", "192.0.2.9:1"); fault.KindOf(err) != fault.Denied {
		t.Errorf("it comes in anew: %v", err)
	}
	ended := false
	for _, b := range h.braked() {
		ended = ended || b.person == robot.ID && strings.Contains(b.reason, "its owner is locked")
	}
	if !ended {
		t.Errorf("its sessions were not ended: %+v", h.braked())
	}
	// Its owner stands again, the robot does not by itself.
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.People.UnlockTx(tx, bob.ID, "ada", "is back")
		return e, err
	}))
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "later", "192.0.2.9:1"); fault.KindOf(err) != fault.Denied {
		t.Errorf("it came back with its owner: %v", err)
	}
}

func TestARobotEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, ada, bob := moved(t)
		dev := h.hostIn(ada, "web-1", "dev")
		robot := h.robot(ada, bob, "nightly")
		<-time.After(23*time.Hour + 50*time.Minute)
		login, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "late", "192.0.2.9:1")
		house.Must(t, err)
		if left := time.Until(login.Expires); left > 10*time.Minute {
			t.Errorf("a login of %v outlasts its robot", left)
		}
		<-time.After(11 * time.Minute)
		if err := h.asks(robot, "sessions.open", "read", dev); err == nil {
			t.Error("it goes on after its end")
		}
		_, _, err = h.People.EnterKey(t.Context(), "nightly", keyOne, "later", "192.0.2.9:1")
		house.Want(t, err, fault.Denied, "expired")
		_ = h.Store.Close()
	})
}

func TestARobotIsRotatedByTwoAndRemovedAtOnce(t *testing.T) {
	h, ada, bob := moved(t)
	robot := h.robot(ada, bob, "nightly")
	login, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "again", "192.0.2.9:1")
	house.Must(t, err)
	id, err := h.roster.SetRobot(t.Context(), ada.Principal, "nightly", func(r identity.Robot) identity.Robot { r.Proof = identity.Proof{Key: keyTwo}; return r })
	house.Must(t, err)
	if _, err := h.People.Authenticate(t.Context(), login.Bearer); err != nil {
		t.Fatalf("a change that nobody agreed to ended its login: %v", err)
	}
	house.Want(t, h.approve(ada, id), fault.Denied, "")
	house.Must(t, h.approve(bob, id))
	if _, err := h.People.Authenticate(t.Context(), login.Bearer); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("a login by the old key goes on: %v", err)
	}
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", keyOne, "old", "192.0.2.9:1"); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("the old key: %v", err)
	}
	h.comes("nightly", keyTwo)

	r := nightly()
	r.Proof.Key = keyTwo
	_, id, err = h.roster.AddRobot(t.Context(), ada.Principal, "double", "ada", r)
	house.Must(t, err)
	if err := h.approve(bob, id); err == nil {
		t.Error("two robots prove themselves by one key")
	}

	if _, err := h.roster.RemoveRobot(t.Context(), bob.Principal, "nightly", "its key was leaked"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", keyTwo, "gone", "192.0.2.9:1"); err == nil {
		t.Error("it comes in after it was removed")
	}
	err = h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.People.UnlockTx(tx, bob.ID, robot.ID, "again")
		return e, err
	})
	house.Want(t, err, fault.Conflict, "it was removed")
	if _, err := h.roster.LoginLink(t.Context(), ada.Principal, "nightly"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a login link for a robot: %v", err)
	}
	if n := h.count(identity.RobotRemoved); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func TestAWorkloadIsExactlyTheOneThatWasNamed(t *testing.T) {
	h, ada, bob := moved(t)
	r := nightly()
	r.Proof = identity.Proof{Issuer: "https://ci.example.com", Audience: "handrail", Subject: "project:infra:main", Claims: map[string]string{"environment": "production"}}
	_, id, err := h.roster.AddRobot(t.Context(), ada.Principal, "nightly", "ada", r)
	house.Must(t, err)
	house.Must(t, h.approve(bob, id))
	right := func() identity.Workload {
		return identity.Workload{Issuer: r.Proof.Issuer, Subject: r.Proof.Subject, Audience: []string{"handrail"}, Claims: map[string]string{"environment": "production", "more": "x"}, Once: store.Once()}
	}
	for name, change := range map[string]func(*identity.Workload){
		"another issuer":   func(w *identity.Workload) { w.Issuer += "/" },
		"another subject":  func(w *identity.Workload) { w.Subject = "project:infra:main2" },
		"another case":     func(w *identity.Workload) { w.Subject = "Project:infra:main" },
		"another audience": func(w *identity.Workload) { w.Audience = []string{"vault"} },
		"two audiences":    func(w *identity.Workload) { w.Audience = []string{"handrail", "vault"} },
		"no audience":      func(w *identity.Workload) { w.Audience = nil },
		"another claim":    func(w *identity.Workload) { w.Claims["environment"] = "staging" },
		"no claim":         func(w *identity.Workload) { delete(w.Claims, "environment") },
	} {
		w := right()
		change(&w)
		if _, _, err := h.People.EnterWorkload(t.Context(), "nightly", w, "192.0.2.9:1"); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := right()
	login, _, err := h.People.EnterWorkload(t.Context(), "nightly", w, "192.0.2.9:1")
	if left := time.Until(login.Expires); err != nil || left > time.Hour || left < 50*time.Minute {
		t.Fatalf("%v %v", left, err)
	}
	_, _, err = h.People.EnterWorkload(t.Context(), "nightly", w, "192.0.2.9:1")
	house.Want(t, err, fault.Unauthenticated, "used already")
	for _, other := range []string{"ada", "bob", "nobody", ""} {
		if _, _, err := h.People.EnterWorkload(t.Context(), other, right(), "192.0.2.9:1"); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("as %q: %v", other, err)
		}
	}
	if _, _, err := h.People.EnterKey(t.Context(), "nightly", "", "x", "192.0.2.9:1"); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("by no key: %v", err)
	}
}
