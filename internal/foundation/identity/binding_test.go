package identity_test

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// question makes each answer of the provider's one to a new question.
var question = func() func() string {
	var mu sync.Mutex
	n := 0
	return func() string { mu.Lock(); defer mu.Unlock(); n++; return strings.Repeat("q", n) }
}()

func outside(subject, value string, groups ...string) identity.Outside {
	return identity.Outside{Issuer: "https://id.example.com", Subject: subject, Value: value, Claim: "email", Groups: groups, Question: question()}
}

func (w *world) outside(o identity.Outside) (identity.Login, identity.Person, error) {
	login, who, _, err := w.people.LoginOutside(w.ctx(), o, nil, "", "192.0.2.1:50000")
	return login, who, err
}

func TestAPersonIsBoundToOneSubjectOnce(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.add("ada", "operator")
	_, who, err := w.outside(outside("1815", "ada"))
	if err != nil || who.ID != ada.ID || !slices.Equal(who.Groups, []string{"operator"}) {
		t.Fatalf("%+v %v", who, err)
	}
	bound := w.entries(identity.PersonBound)
	if len(bound) != 1 || bound[0].Parsed.Object != ada.ID {
		t.Fatalf("%d entries of the binding", len(bound))
	}
	// The subject alone counts from now on, whatever the claim says.
	for _, value := range []string{"ada", "grace", ""} {
		if _, who, err := w.outside(outside("1815", value)); err != nil || who.ID != ada.ID {
			t.Fatalf("as %q: %+v %v", value, who, err)
		}
	}
	// Whoever has the name at the provider later is somebody else.
	_, _, err = w.outside(outside("1906", "ada"))
	want(t, err, fault.Denied, "bound to another account")
	if n := len(w.entries(identity.PersonBound)); n != 1 {
		t.Fatalf("%d bindings", n)
	}
}

func TestWhomNobodyKnowsIsToldWhomToAsk(t *testing.T) {
	w := newWorld(t)
	w.add("ada")
	ada, _ := w.people.Get(w.ctx(), "ada")
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.AddRobotTx(tx, ada.Principal(), "deployer", "ada", nil)
		return entries, err
	})
	first, _ := w.first() // who has no name yet: nobody may take it
	for value, hint := range map[string]string{
		"grace": "handrail person add grace", "": "person-claim", "deployer": "person add", first.Name: "person add",
		ada.ID: "ask an admin to add you", ada.ID[:5]: "", "../ada": "ask an admin to add you", "ada ": "ask an admin",
	} {
		_, _, err := w.outside(outside("s-"+value, value))
		want(t, err, fault.Denied, "cannot")
		if f := fault.From(err); !strings.Contains(f.Hint, hint) || f.Rule != "nobody-known" {
			t.Errorf("%q: hint %q, rule %q", value, f.Hint, f.Rule)
		}
	}
	if n := len(w.entries(identity.LoginOpened)); n != 1 { // the first person's
		t.Fatalf("%d logins", n)
	}
}

func TestAnUnknownSubjectIsAddedOnlyWhereThatIsWantedAndWithoutAGroup(t *testing.T) {
	w := newWorld(t)
	o := outside("1906", "grace", "operator")
	o.NewName = "grace"
	login, grace, err := w.outside(o)
	if err != nil || grace.Name != "grace" || !slices.Equal(grace.Groups, []string{"operator"}) || w.who(login).ID != grace.ID {
		t.Fatalf("%+v %v", grace, err)
	}
	o = outside("1912", "alan")
	o.NewName = "root"
	_, _, err = w.outside(o)
	want(t, err, fault.Denied, "reserved")
	o = outside("1912", "")
	o.NewName = "grace" // a name that is somebody's
	_, _, err = w.outside(o)
	want(t, err, fault.Denied, "has it")
	o = outside("1912", "")
	o.NewName = "alan"
	if _, alan, err := w.outside(o); err != nil || len(alan.Groups) != 0 {
		t.Fatalf("%+v %v", alan, err)
	}
}

func TestAClaimTakesAwayWhatItGaveTheLastOneToo(t *testing.T) {
	w := newWorld(t)
	w.add("ada", "auditor", "developer")
	for _, step := range []struct{ claim, want []string }{
		{nil, []string{"auditor", "developer"}},
		{[]string{"operator", "developer"}, []string{"auditor", "developer", "operator"}},
		{[]string{"developer", "security"}, []string{"auditor", "developer", "security"}},
		{nil, []string{"auditor", "developer"}}, // the claim is gone: what people gave stays
		{[]string{"admin"}, []string{"admin", "auditor", "developer"}},
		{nil, []string{"auditor", "developer"}},
	} {
		_, who, err := w.outside(outside("1815", "ada", step.claim...))
		if err != nil || !slices.Equal(who.Groups, step.want) {
			t.Fatalf("claim %v: %v %v, want %v", step.claim, who.Groups, err, step.want)
		}
		now, _ := w.people.Get(w.ctx(), "ada")
		if !slices.Equal(now.Groups, step.want) {
			t.Fatalf("the row says %v", now.Groups)
		}
	}
	if n := len(w.entries(identity.PersonRegrouped)); n != 5 {
		t.Errorf("%d entries, for 5 changes", n)
	}
	// A login that goes on is another person's word at once.
	login, _, err := w.outside(outside("1815", "ada", "operator"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(w.who(login).Groups, "operator") {
		t.Fatal("not given")
	}
	if _, _, err := w.outside(outside("1815", "ada")); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(w.who(login).Groups, "operator") {
		t.Error("the earlier login keeps the group")
	}
}

// keeper is a directory that knows one person by one id.
type keeper struct{ lasting, person string }

func (k keeper) PersonOf(_ store.Queryer, lasting string) (string, error) {
	if lasting == k.lasting {
		return k.person, nil
	}
	return "", nil
}

func (k keeper) KeepsGroups(_ store.Queryer, person string) (bool, error) {
	return person == k.person, nil
}

func TestGroupsHaveOneSourceAndTheDirectoryWins(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.add("ada", "developer")
	if _, who, err := w.outside(outside("1815", "ada", "operator")); err != nil || len(who.Groups) != 2 {
		t.Fatal(who, err)
	}
	w.people.UseKeeper(keeper{"7d1f-uuid", ada.ID})
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { // as the directory does
		_, entries, err := w.people.SetGroupsTx(tx, identity.Principal{}, ada.ID, []string{"operator"})
		return entries, err
	})
	for _, claim := range [][]string{{"admin"}, nil} {
		if _, who, err := w.outside(outside("1815", "ada", claim...)); err != nil || !slices.Equal(who.Groups, []string{"operator"}) {
			t.Fatalf("claim %v: %v %v", claim, who.Groups, err)
		}
	}
	grace, _ := w.add("grace")
	w.people.UseKeeper(keeper{"7d1f-uuid", grace.ID})
	o := outside("1906", "7d1f-uuid")
	o.Lasting = true
	if _, who, err := w.outside(o); err != nil || who.ID != grace.ID {
		t.Fatalf("%+v %v", who, err)
	}
	o = outside("1907", "ada") // a name is no lasting id
	o.Lasting = true
	_, _, err := w.outside(o)
	want(t, err, fault.Denied, "nobody here")
}

func TestAnAnswerOfTheProviderOpensOneLogin(t *testing.T) {
	w := newWorld(t)
	w.add("ada")
	o := outside("1815", "ada")
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for range 8 {
		wg.Go(func() { _, _, err := w.outside(o); errs <- err })
	}
	wg.Wait()
	close(errs)
	opened := 0
	for err := range errs {
		if err == nil {
			opened++
		}
	}
	if opened != 1 || len(w.entries(identity.LoginOpened)) != 1 {
		t.Fatalf("%d logins", opened)
	}
	_, _, err := w.outside(o)
	want(t, err, fault.Unauthenticated, "used already")
}

func TestALockedPersonDoesNotComeInByTheProvider(t *testing.T) {
	w := newWorld(t)
	w.add("ada", "developer")
	login, _, err := w.outside(outside("1815", "ada"))
	if err != nil {
		t.Fatal(err)
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.LockTx(tx, ledger.System, "ada", "left")
		return []ledger.Entry(entries), err
	})
	if _, err := w.people.Authenticate(w.ctx(), login.Bearer); fault.KindOf(err) != fault.Denied {
		t.Fatalf("the login goes on: %v", err)
	}
	_, _, err = w.outside(outside("1815", "ada", "operator"))
	want(t, err, fault.Denied, "locked")
	if who, _ := w.people.Get(w.ctx(), "ada"); !slices.Equal(who.Groups, []string{"developer"}) {
		t.Errorf("a refused login changed the groups: %v", who.Groups)
	}
}

// endBootstrap is the installation as it is for most of its life.
func (w *world) endBootstrap() {
	w.t.Helper()
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, ledger.System) })
	if err := w.people.Reload(w.ctx()); err != nil {
		w.t.Fatal(err)
	}
}

func TestWhatTheProviderVouchesForApprovesNothing(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.add("ada")
	d := device{signer: newKey(t)}
	o := outside("1815", "ada")
	login, _, cert, err := w.people.LoginOutside(w.ctx(), o, d.key(), "laptop", "192.0.2.1:50000")
	if err != nil || cert == nil || login.Device == "" {
		t.Fatal(login, cert, err)
	}
	if _, err := w.people.AuthenticateSSH(w.ctx(), cert); err != nil {
		t.Fatalf("the certificate of such a login: %v", err)
	}
	message := identity.ApprovalMessage([]byte("hash"))
	approves := func() error {
		var err error
		w.view(func(v *store.View) error {
			_, _, err = w.people.VerifyDeviceSignature(v, ada.ID, message, d.sign(t, message))
			return nil
		})
		return err
	}
	want(t, approves(), fault.Denied, "nobody here stood for it") // in bootstrap too
	_, _, err = w.people.PasskeyBegin(w.ctx(), w.who(login))
	want(t, err, fault.NeedsApproval, "needs a second person")
	w.endBootstrap()
	_, _, err = w.people.PasskeyBegin(w.ctx(), w.who(login))
	want(t, err, fault.NeedsApproval, "needs a second person")

	// It renews with the provider alone.
	nonce, err := w.people.RenewBegin(w.ctx(), d.key())
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = w.people.Renew(w.ctx(), d.key(), nonce, d.sign(t, identity.RenewMessage(nonce)), "192.0.2.1:1")
	want(t, err, fault.Unauthenticated, "must say again who you are")

	// A login link, which somebody agreed to, makes it one that approves: a day later.
	if _, _, _, err := w.people.Redeem(w.ctx(), w.token("ada"), d.key(), "laptop", identity.ViaDevice, "192.0.2.1:1"); err != nil {
		t.Fatal(err)
	}
	w.view(func(v *store.View) error {
		_, from, err := w.people.VerifyDeviceSignature(v, ada.ID, message, d.sign(t, message))
		if left := time.Until(from); err != nil || left < 23*time.Hour || left > 25*time.Hour {
			t.Errorf("it may approve in %v, %v", left, err)
		}
		return nil
	})
	enrolled := w.entries(identity.DeviceEnrolled)
	if len(enrolled) != 2 {
		t.Errorf("%d entries", len(enrolled))
	}
	// And logging in at the provider once more makes it neither less nor more.
	if _, _, _, err := w.people.LoginOutside(w.ctx(), outside("1815", "ada"), d.key(), "laptop", "192.0.2.1:1"); err != nil {
		t.Fatal(err)
	}
	if err := approves(); err != nil {
		t.Error(err)
	}
}

func TestTheProvidersNamesAreInNoLeaf(t *testing.T) {
	w := newWorld(t)
	w.add("ada")
	if _, _, err := w.outside(outside("subject-1815", "ada", "operator")); err != nil {
		t.Fatal(err)
	}
	all, err := w.store.Entries(w.ctx(), store.EntryQuery{After: -1, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		text, err := json.Marshal(e.Parsed)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "1815") || strings.Contains(string(text), "id.example.com") || strings.Contains(string(text), `"ada"`) {
			t.Errorf("%s: %s", e.Parsed.Action, text)
		}
	}
}
