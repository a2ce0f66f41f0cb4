package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// SupportBundled says that what a server can tell of itself was put together
// for somebody outside.
const SupportBundled ledger.Action = "support.bundled"

type bundledPayload struct {
	V       int `json:"v"`
	Account int `json:"account"` // on the server's machine
}

// supportAnswer is what the running server gives to a bundle. It is not redacted
// yet: it goes to whoever owns the data folder, who redacts all parts alike, by
// the words that come along.
type supportAnswer struct {
	Parts map[string][]byte   `json:"parts"`
	Lacks map[string]string   `json:"lacks,omitempty"` // part → why it is missing
	Words map[string][]string `json:"words"`           // kind → names and secrets
	Whole bool                `json:"whole"`           // Words is complete
	Entry int64               `json:"entry"`           // of the ledger; -1: not recorded
}

// The bounds of what a server gives.
const (
	supportVerify = 20 * time.Second // for reading the whole ledger
	supportPart   = 4 << 20
	supportAll    = 64 << 20
)

// serveSupport answers on the control socket.
func (s *Server) serveSupport(account int, w http.ResponseWriter, r *http.Request) error {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(2 * supportVerify))
	a := supportAnswer{Parts: map[string][]byte{}, Lacks: map[string]string{}, Words: map[string][]string{}, Entry: -1}
	receipt, err := s.store.Record(r.Context(), store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: SupportBundled, Payload: bundledPayload{V: 1, Account: account}}}, nil
	})
	if err != nil {
		a.Lacks["entry"] = err.Error() // a damaged ledger is what somebody needs help with
	} else {
		a.Entry = receipt.Entries()[0].Seq
	}
	if err := s.supportWords(r.Context(), a.Words); err != nil {
		a.Lacks["words"] = err.Error()
	} else {
		a.Whole = true
	}
	for _, part := range []struct {
		name string
		make func(context.Context) ([]byte, error)
	}{
		{"server.json", s.supportSelf}, {"metrics.txt", s.supportMetrics}, {"ledger.json", s.supportLedger}, {"schema.json", s.supportSchema},
		{"nodes.json", s.supportNodes}, {"goroutines.txt", profile("goroutine", 2)}, {"heap.pb.gz", profile("heap", 0)},
	} {
		body, err := part.make(r.Context())
		if err == nil && len(body) > supportPart {
			err = fault.New(fault.Exhausted, "it has %d bytes", len(body))
		}
		if err != nil {
			a.Lacks[part.name] = err.Error()
			continue
		}
		a.Parts[part.name] = body
	}
	return json.NewEncoder(w).Encode(a)
}

func profile(name string, debug int) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		var b bytes.Buffer
		err := pprof.Lookup(name).WriteTo(&b, debug)
		return b.Bytes(), err
	}
}

func (s *Server) supportSelf(context.Context) ([]byte, error) {
	return json.Marshal(struct {
		Version    string `json:"version"`
		Go         string `json:"go"`
		Mode       string `json:"mode"`
		Server     string `json:"server,omitempty"`
		Database   string `json:"database"`
		Goroutines int    `json:"goroutines"`
		Bootstrap  bool   `json:"bootstrap"`
		Demo       bool   `json:"demo"`
		Live       int    `json:"live_sessions"`
		Damage     string `json:"damage,omitempty"`
	}{
		s.c.Version, runtime.Version(), s.machine.Mode, s.id, map[bool]string{true: "postgres", false: "sqlite"}[s.c.Database != ""], runtime.NumGoroutine(),
		s.bootstrap.Active(), s.c.Demo, s.sessions.CountLive(), words(s.store.Damage()),
	})
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *Server) supportMetrics(ctx context.Context) ([]byte, error) {
	var e exposition
	err := s.metrics(ctx, &e)
	return e.b.Bytes(), err
}

// supportLedger is the head, and whether everything below it holds. No payload.
func (s *Server) supportLedger(ctx context.Context) ([]byte, error) {
	tree, _, err := s.store.Head(ctx)
	if err != nil {
		return nil, err
	}
	bundle, _ := s.ring.Bundle()
	out := struct {
		Entries  int64    `json:"entries"`
		Root     string   `json:"root"`
		Epoch    any      `json:"epoch"`
		Bundle   any      `json:"trust_bundle"`
		Verified string   `json:"verified"` // yes, no, or why it is not known
		Findings []string `json:"findings,omitempty"`
	}{Entries: tree.N, Root: tree.Hash.String(), Epoch: bundle.Epoch, Bundle: bundle.Version}
	looking, stop := context.WithTimeout(ctx, supportVerify)
	defer stop()
	report, err := s.store.Verify(looking, nil)
	switch {
	case looking.Err() != nil:
		out.Verified = fmt.Sprintf("not in %s: handrail ledger verify", supportVerify)
	case err != nil:
		out.Verified = err.Error()
	case report.OK && s.store.Damage() == nil:
		out.Verified = "yes"
	default:
		out.Verified = "no"
		for _, f := range report.Findings {
			out.Findings = append(out.Findings, f.String())
		}
	}
	return json.Marshal(out)
}

func (s *Server) supportSchema(ctx context.Context) ([]byte, error) {
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
	err := s.store.View(ctx, read(&out.State))
	if err == nil {
		err = s.store.ViewObserved(ctx, read(&out.Observed))
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

func (s *Server) supportNodes(ctx context.Context) ([]byte, error) {
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
	hosts, err := s.hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := []node{}
	for _, h := range hosts {
		n := s.fleet.Node(h.ID)
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

// supportWords is every name and secret that could stand in a text of this server.
func (s *Server) supportWords(ctx context.Context, all map[string][]string) error {
	add := func(kind string, words ...string) { all[kind] = append(all[kind], words...) }
	people, err := s.people.List(ctx)
	if err != nil {
		return err
	}
	for _, p := range people {
		add(aPerson, p.Name)
		for _, g := range p.Groups {
			if !shape().ordinary.MatchString(g) {
				add(aThing, g)
			}
		}
	}
	hosts, err := s.hosts.List(ctx, "")
	if err != nil {
		return err
	}
	for _, h := range hosts {
		add(aHost, h.Name, h.SSHAddress)
		add(aThing, h.SSHUser, h.SSHWrite)
		add(aThing, h.Services...)
		add(aThing, h.Labels...)
	}
	for _, p := range s.peers.List() {
		add(aServer, p.Name, p.Address, p.SSH)
	}
	list, _, _ := s.circle.List()
	for _, w := range list {
		add(aThing, w.Name)
	}
	err = s.store.View(ctx, func(v *store.View) error {
		people, groups, err := directory.NamesTx(v)
		if err != nil {
			return err
		}
		add(aPerson, people...)
		for _, g := range groups {
			if !shape().ordinary.MatchString(g) {
				add(aThing, g)
			}
		}
		for _, q := range []string{`SELECT name FROM devices`, `SELECT name FROM passkeys`, `SELECT name FROM webhooks`, `SELECT url FROM webhooks`, `SELECT name FROM host_invites`, `SELECT services FROM host_invites`, `SELECT labels FROM host_invites`} {
			names, err := store.All[string](v, q)
			if err != nil {
				return err
			}
			for _, name := range names {
				add(aThing, name)
				add(aThing, strings.FieldsFunc(name, func(c rune) bool { return !letter(c) && c != '-' && c != '.' })...) // of lists, and of addresses
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// What the configuration said at the start, which the file may not any more.
	r := newRedactor(nil)
	r.secretsOf(s.c.sections)
	r.value(s.c.Database)
	r.value(s.url())
	for word, kind := range r.words {
		add(kind, word)
	}
	return nil
}
