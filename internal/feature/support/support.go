// Package support is what a running server tells of itself to whoever owns its
// folder, for a support bundle: numbers, schema, head of the ledger, nodes, and
// what it does just now. Nothing of it is redacted yet; the words that come
// along, names and secrets, say what has to go.
package support

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/pprof"
	"time"

	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Bundled says that what a server can tell of itself was put together for
// somebody outside.
const Bundled ledger.Action = "support.bundled"

// Actions lists the ledger actions of support.
func Actions() []ledger.Action { return []ledger.Action{Bundled} }

type bundledPayload struct {
	V       int `json:"v"`
	Account int `json:"account"` // on the server's machine
}

// Answer is what the running server gives to a bundle.
type Answer struct {
	Parts map[string][]byte   `json:"parts"`
	Lacks map[string]string   `json:"lacks,omitempty"` // part → why it is missing
	Words map[string][]string `json:"words"`           // kind → names and secrets
	Whole bool                `json:"whole"`           // Words is complete
	Entry int64               `json:"entry"`           // of the ledger; -1: not recorded
}

// Self is what only the server as a whole knows of itself.
type Self struct {
	Version   string `json:"version"`
	Mode      string `json:"mode"`
	Server    string `json:"server,omitempty"`
	Database  string `json:"database"`
	Bootstrap bool   `json:"bootstrap"`
	Demo      bool   `json:"demo"`
	Live      int    `json:"live_sessions"`
}

// Deps is what Support needs.
type Deps struct {
	Store   *store.Store
	Ring    *keyring.Ring
	People  *identity.People
	Hosts   *target.Hosts
	Node    func(host string) fleet.Node // as this server knows it
	Self    Self
	Numbers func(context.Context) ([]byte, error) // as text
	Words   map[string][]string                   // kind → names and secrets that stand in no table
}

// Support is the feature.
type Support struct{ d Deps }

// New returns Support.
func New(d Deps) *Support { return &Support{d: d} }

// Kinds of words, as the redactor of a bundle has them.
const (
	person = "person"
	host   = "host"
	thing  = "name"  // of anything else that somebody named
	group  = "group" // a thing, but for those that every installation has
	list   = "list"  // of things, or an address
)

// Patience is for reading the whole ledger.
const Patience = 20 * time.Second

// maxPart bounds each part.
const maxPart = 4 << 20

// Answer makes every part that can be had. What cannot is named: a damaged
// ledger is what somebody needs help with.
func (s *Support) Answer(ctx context.Context, account int) Answer {
	a := Answer{Parts: map[string][]byte{}, Lacks: map[string]string{}, Words: map[string][]string{}, Entry: -1}
	receipt, err := s.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: Bundled, Payload: bundledPayload{V: 1, Account: account}}}, nil
	})
	if err != nil {
		a.Lacks["entry"] = err.Error()
	} else {
		a.Entry = receipt.Entries()[0].Seq
	}
	if err := s.words(ctx, a.Words); err != nil {
		a.Lacks["words"] = err.Error()
	} else {
		a.Whole = true
	}
	for _, part := range []struct {
		name string
		make func(context.Context) ([]byte, error)
	}{
		{"server.json", s.self}, {"metrics.txt", s.d.Numbers}, {"ledger.json", s.ledger}, {"schema.json", s.schema},
		{"nodes.json", s.nodes}, {"goroutines.txt", profile("goroutine", 2)}, {"heap.pb.gz", profile("heap", 0)},
	} {
		body, err := part.make(ctx)
		if err == nil && len(body) > maxPart {
			err = fault.New(fault.Exhausted, "it has %d bytes", len(body))
		}
		if err != nil {
			a.Lacks[part.name] = err.Error()
			continue
		}
		a.Parts[part.name] = body
	}
	return a
}

func profile(name string, debug int) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		var b bytes.Buffer
		err := pprof.Lookup(name).WriteTo(&b, debug)
		return b.Bytes(), err
	}
}

func (s *Support) self(context.Context) ([]byte, error) {
	out := struct {
		Self
		Go         string `json:"go"`
		Goroutines int    `json:"goroutines"`
		Damage     string `json:"damage,omitempty"`
	}{Self: s.d.Self, Go: runtime.Version(), Goroutines: runtime.NumGoroutine()}
	if damage := s.d.Store.Damage(); damage != nil {
		out.Damage = damage.Error()
	}
	return json.Marshal(out)
}

// ledger is the head, and whether everything below it holds. No payload.
func (s *Support) ledger(ctx context.Context) ([]byte, error) {
	tree, _, err := s.d.Store.Head(ctx)
	if err != nil {
		return nil, err
	}
	bundle, _ := s.d.Ring.Bundle()
	out := struct {
		Entries  int64    `json:"entries"`
		Root     string   `json:"root"`
		Epoch    any      `json:"epoch"`
		Bundle   any      `json:"trust_bundle"`
		Verified string   `json:"verified"` // yes, no, or why it is not known
		Findings []string `json:"findings,omitempty"`
	}{Entries: tree.N, Root: tree.Hash.String(), Epoch: bundle.Epoch, Bundle: bundle.Version}
	looking, stop := context.WithTimeout(ctx, Patience)
	defer stop()
	report, err := s.d.Store.Verify(looking, nil)
	switch {
	case looking.Err() != nil:
		out.Verified = fmt.Sprintf("not in %s: handrail ledger verify", Patience)
	case err != nil:
		out.Verified = err.Error()
	case report.OK && s.d.Store.Damage() == nil:
		out.Verified = "yes"
	default:
		out.Verified = "no"
		for _, f := range report.Findings {
			out.Findings = append(out.Findings, f.String())
		}
	}
	return json.Marshal(out)
}

func (s *Support) schema(ctx context.Context) ([]byte, error) {
	type step struct {
		Name string `db:"name" json:"name"`
		At   int64  `db:"at" json:"at"`
	}
	var out struct {
		State    []step `json:"state"`
		Observed []step `json:"observed"`
	}
	read := func(into *[]step) func(*store.View) error {
		return func(v *store.View) (err error) {
			*into, err = store.All[step](v, `SELECT name, at FROM schema_migration ORDER BY at, name`)
			return err
		}
	}
	err := s.d.Store.View(ctx, read(&out.State))
	if err == nil {
		err = s.d.Store.ViewObserved(ctx, read(&out.Observed))
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

func (s *Support) nodes(ctx context.Context) ([]byte, error) {
	type node struct {
		Host        string   `json:"host"` // becomes a mark
		Environment string   `json:"environment"`
		State       string   `json:"state"`
		Mode        string   `json:"mode"`
		Floor       string   `json:"floor,omitempty"`
		Version     string   `json:"version,omitempty"`
		Kernel      string   `json:"kernel,omitempty"`
		Missing     []string `json:"missing,omitempty"`
		Seen        int64    `json:"seen_seconds_ago,omitempty"`
		Elsewhere   bool     `json:"at_another_server,omitempty"`
	}
	hosts, err := s.d.Hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := []node{}
	for _, h := range hosts {
		n := s.d.Node(h.ID)
		one := node{
			Host: h.Name, Environment: h.Environment, State: string(n.State), Mode: h.Mode, Floor: n.Floor, Version: n.Version, Missing: n.Missing,
			Elsewhere: n.Server != "",
		}
		for _, f := range n.Facts {
			if f.Name == "kernel" {
				one.Kernel = f.Value
			}
		}
		if !n.Seen.IsZero() {
			one.Seen = int64(time.Since(n.Seen).Seconds())
		}
		all = append(all, one)
	}
	return json.Marshal(all)
}

// words is every name and secret that could stand in a text of this server.
func (s *Support) words(ctx context.Context, all map[string][]string) error {
	add := func(kind string, words ...string) { all[kind] = append(all[kind], words...) }
	for kind, words := range s.d.Words {
		add(kind, words...)
	}
	people, err := s.d.People.List(ctx)
	if err != nil {
		return err
	}
	for _, p := range people {
		add(person, p.Name)
		add(group, p.Groups...)
	}
	hosts, err := s.d.Hosts.List(ctx, "")
	if err != nil {
		return err
	}
	for _, h := range hosts {
		add(host, h.Name, h.SSHAddress)
		add(thing, h.SSHUser, h.SSHWrite)
		add(thing, h.Services...)
		add(thing, h.Labels...)
	}
	err = s.d.Store.View(ctx, func(v *store.View) error {
		people, groups, err := directory.NamesTx(v)
		if err != nil {
			return err
		}
		add(person, people...)
		add(group, groups...)
		for _, q := range []string{`SELECT name FROM devices`, `SELECT name FROM passkeys`, `SELECT name FROM webhooks`, `SELECT url FROM webhooks`, `SELECT name FROM host_invites`, `SELECT services FROM host_invites`, `SELECT labels FROM host_invites`} {
			names, err := store.All[string](v, q)
			if err != nil {
				return err
			}
			add(list, names...)
		}
		return nil
	})
	return err
}
