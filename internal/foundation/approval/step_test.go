package approval

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func request(rule Rule) Approval {
	body := []byte(`{"v":1}`)
	return Approval{
		ID: "a-00000001", Kind: "grant", State: Requested, Requester: "p-ada", Request: body, Hash: SubjectHash("grant", body), Rule: rule,
		Requested: noon.UnixMicro(), Lapses: noon.Add(time.Hour).UnixMicro(), Version: 1,
	}
}

func voter(person string, groups ...string) Voter {
	return Voter{Person: person, Name: person, Kind: "person", Groups: groups, MayApproveFrom: noon.Add(-time.Hour), Signature: &wire.Signature{Person: person, Kind: "device"}}
}

func yes(a Approval, by Voter) Event { return Event{To: Approved, By: by, Hash: a.Hash} }

func TestWhatNoPolicyCanLift(t *testing.T) {
	rule := Rule{Needed: 1, Groups: []string{"operator", "admin"}, Lapse: time.Hour}
	robot := voter("p-ci", "admin")
	robot.Kind = "robot"
	locked := voter("p-eve", "admin")
	locked.Locked = true
	young := voter("p-new", "admin")
	young.MayApproveFrom = noon.Add(24 * time.Hour)
	unsigned := voter("p-bob", "admin")
	unsigned.Signature = nil
	code := voter("p-bob", "admin")
	code.ReadOnly = true
	changed := request(rule)
	changed.Request = []byte(`{"v":2}`)
	for name, c := range map[string]struct {
		a    Approval
		e    Event
		at   time.Time
		kind fault.Kind
	}{
		"the requester, an admin":  {request(rule), yes(request(rule), voter("p-ada", "admin")), noon, fault.Denied},
		"a robot":                  {request(rule), yes(request(rule), robot), noon, fault.Denied},
		"somebody who is locked":   {request(rule), yes(request(rule), locked), noon, fault.Denied},
		"a credential made now":    {request(rule), yes(request(rule), young), noon, fault.Denied},
		"another hash":             {request(rule), Event{To: Approved, By: voter("p-bob", "admin"), Hash: SubjectHash("grant", []byte("{}"))}, noon, fault.Conflict},
		"no hash":                  {request(rule), Event{To: Approved, By: voter("p-bob", "admin")}, noon, fault.Conflict},
		"a request that changed":   {changed, yes(changed, voter("p-bob", "admin")), noon, fault.Conflict},
		"no signature":             {request(rule), yes(request(rule), unsigned), noon, fault.Denied},
		"a connection by code":     {request(rule), yes(request(rule), code), noon, fault.Denied},
		"somebody of another team": {request(rule), yes(request(rule), voter("p-bob", "developer")), noon, fault.Denied},
		"a request that lapsed":    {request(rule), yes(request(rule), voter("p-bob", "admin")), noon.Add(time.Hour), fault.Conflict},
		"a lapse before its time":  {request(rule), Event{To: Lapsed}, noon, fault.Conflict},
		"another verdict":          {request(rule), Event{To: "maybe", By: voter("p-bob", "admin")}, noon, fault.Internal},
	} {
		after, err := Step(c.a, c.e, c.at)
		if err == nil || fault.KindOf(err) != c.kind || after.State != Requested || after.Version != 1 || len(after.Decisions) != 0 {
			t.Errorf("%s: %v, now %s", name, err, after.State)
		}
	}
}

func TestInBootstrapAYoungCredentialMayDecide(t *testing.T) {
	a := request(Rule{Needed: 1, Groups: []string{"admin"}, Lapse: time.Hour})
	v := voter("p-bob", "admin")
	v.MayApproveFrom, v.Bootstrap, v.Signature = noon.Add(24*time.Hour), true, nil
	after, err := Step(a, yes(a, v), noon)
	if err != nil || after.State != Approved || after.Decisions[0].SignedBy() != "login" {
		t.Errorf("%v %v", after.State, err)
	}
	v.Person = "p-ada"
	if _, err := Step(a, yes(a, v), noon); fault.KindOf(err) != fault.Denied {
		t.Errorf("bootstrap does not lift that nobody decides their own request: %v", err)
	}
	a.Rule.Passkey = true
	v.Person = "p-bob"
	if _, err := Step(a, yes(a, v), noon); fault.KindOf(err) != fault.Denied {
		t.Errorf("bootstrap does not lift that policy wants a passkey: %v", err)
	}
}

func TestApprovalsOfDifferentGroupsAreCountedAsSuch(t *testing.T) {
	rule := Rule{Needed: 2, Groups: []string{"operator", "dba", "admin"}, DifferentGroups: true, Lapse: time.Hour}
	step := func(a Approval, by Voter) Approval {
		t.Helper()
		after, err := Step(a, yes(a, by), noon)
		if err != nil {
			t.Fatal(err)
		}
		return after
	}
	a := step(step(request(rule), voter("p-1", "operator")), voter("p-2", "operator"))
	if a.State != Requested {
		t.Error("two operators are not two groups")
	}
	if a = step(a, voter("p-3", "dba")); a.State != Approved {
		t.Error("an operator and a dba are two groups")
	}
	// Only one assignment works: p-2 must stand for operator, p-1 for dba.
	a = step(step(request(rule), voter("p-1", "operator", "dba")), voter("p-2", "operator"))
	if a.State != Approved {
		t.Error("somebody in both groups can stand for either")
	}
}

// Whatever happens to a request, in whatever order and at whatever time: it is
// approved only by enough different people who may, all of whom saw its hash,
// and once it has ended nothing moves it.
func TestARequestIsApprovedOnlyByEnoughOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups := []string{"operator", "admin", "dba"}
		rule := Rule{
			Needed: rapid.IntRange(1, 3).Draw(t, "needed"), Groups: groups, DifferentGroups: rapid.Bool().Draw(t, "different"),
			Passkey: rapid.Bool().Draw(t, "passkey"), Lapse: time.Hour,
		}
		a := request(rule)
		now := noon
		for i := range rapid.IntRange(1, 25).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(-1800, 1800).Draw(t, "jump")) * time.Second)
			by := voter(fmt.Sprintf("p-%d", rapid.IntRange(0, 5).Draw(t, "who")))
			if by.Person == "p-0" {
				by.Person = "p-ada"
			}
			for _, g := range append(groups, "developer") {
				if rapid.Bool().Draw(t, g) {
					by.Groups = append(by.Groups, g)
				}
			}
			by.Kind = rapid.SampledFrom([]string{"person", "person", "person", "robot"}).Draw(t, "kind")
			by.Locked = rapid.IntRange(0, 5).Draw(t, "locked") == 0
			by.MayApproveFrom = noon.Add(time.Duration(rapid.IntRange(-60, 60).Draw(t, "age")) * time.Minute)
			by.Signature.Kind = rapid.SampledFrom([]string{"device", "passkey"}).Draw(t, "signature")
			e := Event{
				To: rapid.SampledFrom([]State{Approved, Approved, Approved, Denied, Lapsed, Withdrawn}).Draw(t, "to"),
				By: by, Hash: a.Hash,
			}
			if a.State == Requested {
				void := map[string]string{}
				for _, d := range a.Decisions {
					if rapid.IntRange(0, 3).Draw(t, "void") == 0 {
						void[d.Person] = "they were locked since"
					}
				}
				a = a.without(void)
			}
			e.By.ForLocked = rapid.IntRange(0, 9).Draw(t, "for locked") == 0
			if rapid.IntRange(0, 4).Draw(t, "hash") == 0 {
				e.Hash = SubjectHash("grant", []byte("something else"))
			}
			before := a
			after, err := Step(a, e, now)
			checkStep(t, before, after, e, now, err)
			if err == nil {
				a = after
			}
			if i > 0 && before.State != Requested && a.State != before.State {
				t.Fatalf("%s became %s", before.State, a.State)
			}
		}
		people := map[string]bool{}
		count := 0
		for _, d := range a.Decisions {
			if d.Void != "" {
				continue
			}
			if people[d.Person] || d.Person == "p-ada" {
				t.Fatalf("%s decided twice, or their own request", d.Person)
			}
			people[d.Person] = true
			if d.Verdict == Approved {
				count++
			}
		}
		for _, s := range a.Authority().Signatures {
			if !people[s.Person] {
				t.Fatalf("a write order would carry the signature of %s, which counts no more", s.Person)
			}
		}
		if a.State == Approved && count < rule.Needed {
			t.Fatalf("approved by %d of %d", count, rule.Needed)
		}
	})
}

func checkStep(t *rapid.T, before, after Approval, e Event, now time.Time, err error) {
	if err != nil {
		if after.Version != before.Version || after.State != before.State || len(after.Decisions) != len(before.Decisions) {
			t.Fatalf("a refused event changed the request")
		}
		return
	}
	if after.Version != before.Version+1 {
		t.Fatalf("version %d after %d", after.Version, before.Version)
	}
	if e.To != Approved && e.To != Denied {
		return
	}
	if e.By.ForLocked || e.By.Person == "p-ada" || e.By.Kind != "person" || e.By.Locked || now.UnixMicro() >= before.Lapses {
		t.Fatalf("decided by %+v at %v", e.By, now)
	}
	if e.To == Approved && (!bytes.Equal(e.Hash, before.Hash) || before.Rule.Passkey && e.By.Signature.Kind != "passkey" || now.Before(e.By.MayApproveFrom)) {
		t.Fatalf("approved with the wrong hash, signature or credential: %+v", e)
	}
	if !slices.ContainsFunc(e.By.Groups, func(g string) bool { return slices.Contains(before.Rule.Groups, g) }) {
		t.Fatalf("decided by somebody of no group of the rule")
	}
}
