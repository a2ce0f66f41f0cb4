package directory

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/slapd"
)

// house is an installation that follows a directory.
type house struct {
	t      *testing.T
	store  *store.Store
	people *identity.People
	ring   *keyring.Ring
	dir    *Directory
	root   string // the folder of the root key

	mu     sync.Mutex
	gone   []string // people whose power ended, by the brake
	fallen []string
	asked  []Held
}

func build(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "test.handrail.internal"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	flag := &identity.Flag{}
	h := &house{t: t, ring: ring, root: filepath.Join(dir, "root")}
	h.store, err = store.Open(t.Context(), store.Config{
		DSN: "sqlite:" + filepath.Join(dir, "db"), Origin: ring.Origin(), Signer: ring.Log(), Verifier: ring.LogVerifier(), Seals: ring.Subjects(),
		Bootstrap: flag.Active, Migrations: slices.Concat(identity.Schema(), Schema()), Spool: filepath.Join(dir, "spool"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.store.Close() })
	h.people = identity.New(identity.Deps{Store: h.store, Ring: ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost"}})
	if err := h.people.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

// follow begins to follow a directory with these settings, until the test ends
// or stop is called.
func (h *house) follow(s Settings) (stop func()) {
	h.t.Helper()
	var err error
	h.dir, err = New(Deps{
		Store: h.store, People: h.people, Settings: s, Log: h.ring.Log(),
		Gone:   func(_ context.Context, person, _ string) { h.note(&h.gone, person) },
		Fallen: func(_ context.Context, person, _ string) { h.note(&h.fallen, person) },
		Ask: func(_ *store.Tx, request []byte) (string, []ledger.Entry, error) {
			var held Held
			if err := json.Unmarshal(request, &held); err != nil {
				return "", nil, err
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.asked = append(h.asked, held)
			return "a-" + held.Digest[:8], nil, nil
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.dir.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	h.t.Cleanup(stop)
	return stop
}

func (h *house) note(list *[]string, person string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*list = append(*list, person)
}

func (h *house) had(list *[]string, person string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(*list, person)
}

// until waits for something that the directory brings about.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	timeout := time.After(time.Minute)
	for {
		_, moved := h.dir.status.get()
		if ok() {
			return
		}
		select {
		case <-moved:
		case <-timeout:
			s, err := h.dir.Status(h.t.Context())
			h.t.Fatalf("never came true: %s (%+v, %v)", what, s, err)
		}
	}
}

// who is somebody by name; the zero value is nobody.
func (h *house) who(name string) identity.Person {
	h.t.Helper()
	list, err := h.people.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range list {
		if p.Name == name {
			return p
		}
	}
	return identity.Person{}
}

func (h *house) groups(name string) string { return strings.Join(h.who(name).Groups, ",") }

func (h *house) status() Status {
	h.t.Helper()
	s, err := h.dir.Status(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *house) count(action ledger.Action) int {
	h.t.Helper()
	list, err := h.store.Entries(h.t.Context(), store.EntryQuery{After: -1, Action: string(action), Limit: 1000})
	if err != nil {
		h.t.Fatal(err)
	}
	return len(list)
}

func mapped(s *slapd.Server) Settings {
	set := settingsFor(s)
	set.Map = map[string][]string{"operator": {"ops"}, "developer": {slapd.Group("dev")}}
	return set
}

// small is a company of a few.
func small() string {
	return slapd.LDIFPerson("ada") + slapd.LDIFPerson("bob") + slapd.LDIFPerson("carol") + slapd.LDIFPerson("dan") +
		slapd.LDIFGroup("sre", slapd.Person("ada"), slapd.Person("bob")) +
		slapd.LDIFGroup("ops", slapd.Group("sre")) +
		slapd.LDIFGroup("dev", slapd.Person("carol"), slapd.Group("ops"))
}

func TestTheCompanyComesInAndWhoLeavesLosesEverything(t *testing.T) {
	for _, push := range []bool{true, false} {
		name := map[bool]string{true: "pushed", false: "paged"}[push]
		t.Run(name, func(t *testing.T) {
			s := slapd.Start(t, slapd.Options{Sync: push, LDIF: small()})
			h := build(t)
			set := mapped(s)
			set.Every = "2s"
			h.follow(set)
			h.until("everybody is here", func() bool { return h.status().People == 4 && h.status().Version > 0 })
			if got := h.groups("ada"); got != "developer,operator" {
				t.Errorf("ada is in %q", got)
			}
			if got := h.groups("dan"); got != "" {
				t.Errorf("dan is in %q", got)
			}
			if h.status().Mode != name {
				t.Errorf("the directory is %s", h.status().Mode)
			}
			bob := h.who("bob")
			begun := time.Now()
			s.Leave("sre", slapd.Person("bob"))
			h.until("bob lost operator", func() bool { return h.groups("bob") == "" })
			t.Logf("a lost group after %v", time.Since(begun))
			if !h.had(&h.fallen, bob.ID) {
				t.Error("no brake for bob, who lost a group")
			}
			ada := h.who("ada")
			begun = time.Now()
			s.Delete(slapd.Person("ada"))
			h.until("ada is locked", func() bool { return h.who("ada").Locked() })
			t.Logf("left after %v", time.Since(begun))
			if !h.had(&h.gone, ada.ID) || len(h.who("ada").Groups) != 0 {
				t.Errorf("ada left, braked %v, in %v", h.gone, h.who("ada").Groups)
			}
		})
	}
}

func TestAPersonIsTheirIdAndNotTheirName(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: small()})
	h := build(t)
	h.follow(mapped(s))
	h.until("everybody is here", func() bool { return h.status().People == 4 && h.status().Version > 0 })
	carol := h.who("carol")
	s.Do(func(c *ldap.Conn) error {
		return c.ModifyDN(ldap.NewModifyDNRequest(slapd.Person("carol"), "uid=carol.w", true, ""))
	})
	h.until("carol is carol.w", func() bool { return h.who("carol.w").ID != "" })
	if h.who("carol.w").ID != carol.ID || h.who("carol").ID != "" {
		t.Fatal("a rename made somebody else of carol")
	}
	// The old name comes back as somebody new: another person, with nothing.
	s.AddPerson("carol")
	h.until("a second carol", func() bool { return h.who("carol").ID != "" })
	if h.who("carol").ID == carol.ID {
		t.Fatal("a new entry with an old name is the old person")
	}
	// And after somebody has left, their name belongs to nobody.
	dan := h.who("dan")
	s.Delete(slapd.Person("dan"))
	h.until("dan is locked", func() bool { return h.who("dan").Locked() })
	s.AddPerson("dan")
	h.until("a new dan", func() bool { return h.who("dan").ID != "" && h.who("dan").ID != dan.ID })
	if h.who("dan").Locked() {
		t.Error("the new dan is locked")
	}
	old, err := h.people.Get(t.Context(), dan.ID)
	if err != nil || !old.Locked() || !strings.HasPrefix(old.Name, "dan.") {
		t.Errorf("the old dan is %+v, %v", old, err)
	}
}

func TestABigImportIsAFewEntriesWithoutNames(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: company(5000, 200)})
	h := build(t)
	set := settingsFor(s)
	set.Map = map[string][]string{"everyone-there": {"g000"}}
	begun := time.Now()
	h.follow(set)
	h.until("everybody is here", func() bool { return h.status().Version > 0 })
	t.Logf("5,000 people are here after %v", time.Since(begun))
	if n := h.count(identity.PeopleJoined); n != 13 || h.count(identity.PersonJoined) != 0 || h.count(identity.PersonAdded) != 0 {
		t.Errorf("%d entries", n)
	}
	list, err := h.store.Entries(t.Context(), store.EntryQuery{After: -1, Action: string(identity.PeopleJoined), Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(list[0].Payload), "p0001") {
		t.Error("a folded entry holds a name")
	}
}

func TestTooManyAtOnceWaitForAPerson(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: company(60, 3)})
	h := build(t)
	set := settingsFor(s)
	set.Map = map[string][]string{"operator": {"g001"}}
	stop := h.follow(set)
	h.until("everybody is here", func() bool { return h.status().People == 60 && h.status().Version > 0 })
	stop()
	s.Do(func(c *ldap.Conn) error {
		for _, n := range []string{"p0010", "p0011", "p0012", "p0013", "p0014", "p0015", "p0016"} {
			if err := c.Del(ldap.NewDelRequest(slapd.Person(n), nil)); err != nil {
				return err
			}
		}
		return nil
	})
	h.follow(set)
	h.until("they wait", func() bool { return len(h.status().Held) == 1 })
	if st := h.status(); st.Away != 0 || st.Held[0].People != 7 || st.Held[0].What != HeldLosses {
		t.Fatalf("%+v", st)
	}
	held := h.asked[len(h.asked)-1]
	if held.What != HeldLosses || held.Count != 7 || held.Of != 60 || len(h.gone) != 0 {
		t.Fatalf("asked for %+v", held)
	}
	wrong := held
	wrong.Digest = strings.Repeat("0", 64)
	settle := func(x Held) error {
		_, err := h.store.Record(t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.settled"}}, SettleTx(tx, x, "a-"+held.Digest[:8], true)
		})
		return err
	}
	if settle(wrong) == nil {
		t.Error("another change was agreed to")
	}
	if err := settle(held); err != nil {
		t.Fatal(err)
	}
	h.dir.Again()
	h.until("the seven are away", func() bool { return h.status().Away == 7 && len(h.status().Held) == 0 })
	if len(h.gone) < 7 {
		t.Errorf("%d brakes", len(h.gone))
	}
}

// What somebody denied does not happen, is not asked again by itself, and is
// asked once more when somebody reads the directory anew.
func TestWhatWasDeniedWaitsUntilSomebodyAsksAnew(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: small() + slapd.LDIFGroup("bosses", slapd.Person("ada"))})
	h := build(t)
	set := mapped(s)
	set.Map["admin"] = []string{"bosses"}
	h.follow(set)
	asked := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.asked)
	}
	h.until("it is asked", func() bool { return len(h.status().Held) == 1 && asked() == 1 })
	if got := h.groups("ada"); got != "developer,operator" {
		t.Fatalf("ada is in %q before anybody agreed", got)
	}
	h.mu.Lock()
	first := h.asked[0]
	h.mu.Unlock()
	settle := func(agreed bool) {
		t.Helper()
		_, err := h.store.Record(t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.settled"}}, SettleTx(tx, first, "a-"+first.Digest[:8], agreed)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	settle(false)
	s.AddPerson("erin")
	h.until("erin is here", func() bool { return h.who("erin").ID != "" && h.status().Version > 1 })
	if asked() != 1 || h.status().Held[0].State != stateDenied {
		t.Fatalf("asked %d times, %+v", asked(), h.status().Held)
	}
	if _, err := h.dir.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.until("it is asked once more", func() bool { return asked() == 2 })
	settle(true)
	h.dir.Again()
	h.until("ada is an admin", func() bool { return h.groups("ada") == "admin,developer,operator" })
}

func TestACopyGetsOldAndKeepsNobodyOut(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: small()})
	h := build(t)
	stop := h.follow(mapped(s))
	h.until("everybody is here", func() bool { return h.status().People == 4 && h.status().Version > 0 })
	s.Stop()
	h.until("the outage is seen and written down", func() bool { return h.status().Failing != "" && h.count(Failed) == 1 })
	stop()
	if n := h.count(Failed); n != 1 {
		t.Errorf("%d entries say that it cannot be read", n)
	}
	stale := func(at time.Time) (old bool) {
		err := h.store.View(t.Context(), func(v *store.View) (err error) {
			old, err = h.dir.StaleTx(v, at)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return old
	}
	if stale(time.Now()) || !stale(time.Now().Add(61*time.Minute)) {
		t.Error("the copy is old too early or never")
	}
	if st := h.status(); st.People != 4 || st.Away != 0 || h.groups("ada") != "developer,operator" {
		t.Errorf("an outage changed who is here: %+v", st)
	}
}
