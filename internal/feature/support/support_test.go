package support_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"handrail.dev/handrail/internal/feature/support"
	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// build is a house with a host and a person, and what its server would say.
func build(t *testing.T, change func(*support.Deps)) (*house.House, *support.Support) {
	t.Helper()
	h := house.Build(t, house.Plan{Migrations: append(directory.Schema(), webhook.Schema()...)})
	t.Cleanup(h.Close)
	h.Host("web-1", "production")
	h.Person("ada", "developer")
	d := support.Deps{
		Store: h.Store, Ring: h.Ring, People: h.People, Hosts: h.Hosts, Node: func(string) fleet.Node { return fleet.Node{State: "connected", Floor: "full"} },
		Self:    support.Self{Version: "1.2.3", Mode: "root", Database: "sqlite"},
		Numbers: func(context.Context) ([]byte, error) { return []byte("handrail_sessions_live 0\n"), nil },
		Words:   map[string][]string{"secret": {"hunter22"}},
	}
	if change != nil {
		change(&d)
	}
	return h, support.New(d)
}

func TestAServerTellsOfItselfAndWhichWordsHaveToGo(t *testing.T) {
	h, s := build(t, nil)
	a := s.Answer(t.Context(), 1000)
	if len(a.Lacks) != 0 || !a.Whole {
		t.Fatalf("it lacks %v", a.Lacks)
	}
	for kind, want := range map[string]string{"secret": "hunter22", "person": "ada", "host": "web-1", "group": "developer"} {
		if !slices.Contains(a.Words[kind], want) {
			t.Errorf("%q is not among what has to go: %v", want, a.Words[kind])
		}
	}
	var self struct {
		Version    string
		Goroutines int
	}
	house.Must(t, json.Unmarshal(a.Parts["server.json"], &self))
	var head struct {
		Entries  int64
		Verified string
	}
	house.Must(t, json.Unmarshal(a.Parts["ledger.json"], &head))
	if self.Version != "1.2.3" || self.Goroutines == 0 || head.Verified != "yes" || head.Entries <= a.Entry {
		t.Errorf("%+v %+v, entry %d", self, head, a.Entry)
	}
	list, err := h.Store.Entries(t.Context(), store.EntryQuery{Action: string(support.Bundled), Limit: 10})
	house.Must(t, err)
	var p struct{ Account int }
	if len(list) != 1 || list[0].Seq != a.Entry {
		t.Fatalf("%d entries, and it says %d", len(list), a.Entry)
	}
	if house.Must(t, json.Unmarshal(list[0].Payload, &p)); p.Account != 1000 {
		t.Errorf("the ledger says %s", list[0].Payload)
	}
}

// What is broken is a reason to need help: the rest is told all the same.
func TestWhatAServerCannotTellIsNamed(t *testing.T) {
	_, s := build(t, func(d *support.Deps) {
		d.Numbers = func(context.Context) ([]byte, error) { return nil, errors.New("nobody counts") }
	})
	if a := s.Answer(t.Context(), 0); a.Lacks["metrics.txt"] != "nobody counts" || a.Parts["metrics.txt"] != nil || a.Parts["schema.json"] == nil {
		t.Errorf("it lacks %v", a.Lacks)
	}
	_, s = build(t, func(d *support.Deps) {
		d.Numbers = func(context.Context) ([]byte, error) { return make([]byte, 4<<20+1), nil }
	})
	if a := s.Answer(t.Context(), 0); a.Lacks["metrics.txt"] == "" || a.Parts["metrics.txt"] != nil {
		t.Errorf("a part without an end is told: %v", a.Lacks)
	}
	h, s := build(t, nil)
	h.Close()
	a := s.Answer(t.Context(), 0)
	if a.Entry != -1 || a.Whole || a.Lacks["entry"] == "" || a.Lacks["words"] == "" || a.Parts["goroutines.txt"] == nil || a.Parts["server.json"] == nil {
		t.Errorf("of a server without its store: entry %d, whole %v, it lacks %v", a.Entry, a.Whole, a.Lacks)
	}
}
