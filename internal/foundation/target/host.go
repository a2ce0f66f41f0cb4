// Package target holds what people can reach: hosts, with the environment,
// scope, services and labels that people gave them (never the node itself), the
// invitations by which a host joins, and the selector grammar that chooses
// hosts everywhere.
package target

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Environments are the environments a host can be in, the safest to touch first.
var Environments = []string{"dev", "staging", "production"}

// Scopes are the kinds of regulated data that a host can hold.
var Scopes = []string{"none", "pci", "sox", "hipaa"}

// Words is a list of short words, kept as a JSON array in its row.
type Words []string

// Text is the row's form.
func (w Words) Text() string {
	if len(w) == 0 {
		return "[]"
	}
	text, err := json.Marshal([]string(w))
	if err != nil { // strings always marshal
		return "[]"
	}
	return string(text)
}

// Scan reads the row's form.
func (w *Words) Scan(from any) error {
	var text []byte
	switch v := from.(type) {
	case nil:
		*w = nil
		return nil
	case string:
		text = []byte(v)
	case []byte:
		text = v
	default:
		return fmt.Errorf("cannot read words from %T", from)
	}
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("cannot read words: %w", err)
	}
	*w = list
	return nil
}

// Host is one host, as its row. Environment, scope, services and labels are set
// by people; mode and trial are what its node said when it joined, and can only
// take away (a trial host is never production). Server is seen when it joins and
// stays: nobody sets it, so nobody can forget what root means there.
type Host struct {
	ID          string `db:"id" json:"id"` // h-…
	Name        string `db:"name" json:"name"`
	Environment string `db:"environment" json:"environment"`
	Scope       string `db:"scope" json:"scope"`
	Services    Words  `db:"services" json:"services,omitempty"`
	Labels      Words  `db:"labels" json:"labels,omitempty"`
	Mode        string `db:"mode" json:"mode,omitempty"` // root, user-namespace, no-shells, agentless; "" is not known yet
	Trial       bool   `db:"trial" json:"trial,omitempty"`
	Server      bool   `db:"server" json:"server,omitempty"` // the machine that the server runs on: root there reads its keys
	Created     int64  `db:"created" json:"created"`         // µs
	Version     int64  `db:"version" json:"version"`         // of the row, for compare-and-set

	// How the server reaches a host that has no node; see ssh.go.
	SSHAddress string `db:"ssh_address" json:"ssh_address,omitempty"` // host:port; "": it has, or waits for, a node
	SSHUser    string `db:"ssh_user" json:"ssh_user,omitempty"`       // the account that read sessions log in as
	SSHWrite   string `db:"ssh_write" json:"ssh_write,omitempty"`     // the account of write sessions; "": none
	SSHKey     string `db:"ssh_key" json:"ssh_key,omitempty"`         // the pinned host key: "ssh-ed25519 AAAA…"
	SSHSource  string `db:"ssh_source" json:"ssh_source,omitempty"`   // "": our end of the connection; "any"; or networks
	SSHNode    bool   `db:"ssh_node" json:"ssh_node,omitempty"`       // our binary may run there for the length of a session
}

// Path is the host as a typed target.
func (h Host) Path() string { return "host/" + h.ID }

// Hosts reads and changes hosts.
type Hosts struct{ store *store.Store }

// NewHosts returns the hosts of a store.
func NewHosts(s *store.Store) *Hosts { return &Hosts{store: s} }

// The ledger actions of hosts.
const (
	HostInvited ledger.Action = "host.invited"
	HostJoined  ledger.Action = "host.joined"
	HostSet     ledger.Action = "host.set"
	HostAdded   ledger.Action = "host.added"   // without a node
	HostCalled  ledger.Action = "host.called"  // a node is sent to a host without one
	HostVisited ledger.Action = "host.visited" // it came, for the length of a session
)

// Actions lists the ledger actions of hosts.
func Actions() []ledger.Action {
	return []ledger.Action{HostInvited, HostJoined, HostSet, HostAdded, HostCalled, HostVisited}
}

// Schema is the tables of hosts.
func Schema() []store.Migration {
	return []store.Migration{
		{Name: "target-1-hosts", SQL: `CREATE TABLE hosts (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL UNIQUE,
	environment TEXT NOT NULL,
	scope TEXT NOT NULL,
	services TEXT NOT NULL,
	labels TEXT NOT NULL,
	mode TEXT NOT NULL,
	trial BOOLEAN NOT NULL,
	created BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "target-2-invites", SQL: `CREATE TABLE host_invites (
	hash TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	environment TEXT NOT NULL,
	scope TEXT NOT NULL,
	services TEXT NOT NULL,
	labels TEXT NOT NULL,
	invited_by TEXT NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL,
	host TEXT NOT NULL
)`},
		{Name: "target-3-hosts-server", SQL: `ALTER TABLE hosts ADD COLUMN server BOOLEAN NOT NULL DEFAULT FALSE`},
		{Name: "target-4-invites-server", SQL: `ALTER TABLE host_invites ADD COLUMN server BOOLEAN NOT NULL DEFAULT FALSE`},
		{Name: "target-5-ssh-address", SQL: `ALTER TABLE hosts ADD COLUMN ssh_address TEXT NOT NULL DEFAULT ''`},
		{Name: "target-6-ssh-user", SQL: `ALTER TABLE hosts ADD COLUMN ssh_user TEXT NOT NULL DEFAULT ''`},
		{Name: "target-7-ssh-write", SQL: `ALTER TABLE hosts ADD COLUMN ssh_write TEXT NOT NULL DEFAULT ''`},
		{Name: "target-8-ssh-key", SQL: `ALTER TABLE hosts ADD COLUMN ssh_key TEXT NOT NULL DEFAULT ''`},
		{Name: "target-9-ssh-source", SQL: `ALTER TABLE hosts ADD COLUMN ssh_source TEXT NOT NULL DEFAULT ''`},
		{Name: "target-10-ssh-node", SQL: `ALTER TABLE hosts ADD COLUMN ssh_node BOOLEAN NOT NULL DEFAULT FALSE`},
		{Name: "target-11-invites-adopt", SQL: `ALTER TABLE host_invites ADD COLUMN adopts TEXT NOT NULL DEFAULT ''`},
	}
}

// hostPayload is the ledger's form of a host that joined or was set.
type hostPayload struct {
	V      int    `json:"v"`
	Host   Host   `json:"host"`
	Before *Host  `json:"before,omitempty"`
	By     string `json:"by,omitempty"`
}

const selectHost = `SELECT id, name, environment, scope, services, labels, mode, trial, server, created, version,
	ssh_address, ssh_user, ssh_write, ssh_key, ssh_source, ssh_node FROM hosts `

// GetTx returns the host with exactly that id.
func (h *Hosts) GetTx(q store.Queryer, id string) (Host, error) {
	host, err := store.One[Host](q, selectHost+`WHERE id = $1`, id)
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return Host{}, noHost(id)
	}
	return host, err
}

// Get returns the host of that name, id, or unique beginning of an id.
func (h *Hosts) Get(ctx context.Context, nameOrID string) (Host, error) {
	var host Host
	err := h.store.View(ctx, func(v *store.View) (err error) {
		host, err = h.FindTx(v, nameOrID)
		return err
	})
	return host, err
}

// FindTx is Get inside a transaction or view.
func (h *Hosts) FindTx(q store.Queryer, nameOrID string) (Host, error) {
	word := strings.ToLower(strings.TrimSpace(nameOrID))
	if word == "" || len(word) > maxName {
		return Host{}, noHost(nameOrID)
	}
	found, err := store.All[Host](q, selectHost+`WHERE name = $1 OR id = $1`, word)
	if err != nil {
		return Host{}, err
	}
	if len(found) == 0 && strings.HasPrefix(word, "h-") && len(word) > 3 && !strings.ContainsAny(word, "%_") {
		if found, err = store.All[Host](q, selectHost+`WHERE id LIKE $1 LIMIT 2`, word+"%"); err != nil {
			return Host{}, err
		}
	}
	switch len(found) {
	case 0:
		return Host{}, noHost(nameOrID)
	case 1:
		return found[0], nil
	}
	return Host{}, fault.New(fault.Invalid, "cannot choose a host: %q fits more than one", nameOrID).
		WithHint("handrail hosts '%s*'", word)
}

func noHost(word string) error {
	return fault.New(fault.NotFound, "cannot find host %.80q", word).WithHint("handrail hosts")
}

// List returns the hosts that the selector chooses, by name.
func (h *Hosts) List(ctx context.Context, selector string) ([]Host, error) {
	var hosts []Host
	err := h.store.View(ctx, func(v *store.View) (err error) {
		hosts, err = h.ListTx(v, selector)
		return err
	})
	return hosts, err
}

// ListTx is List inside a transaction or view.
func (h *Hosts) ListTx(q store.Queryer, selector string) ([]Host, error) {
	chosen, err := ParseSelector(selector)
	if err != nil {
		return nil, err
	}
	all, err := store.All[Host](q, selectHost+`ORDER BY name`)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(host Host) bool { return !chosen.Match(host) }), nil
}

// ResolveTx turns words (names, ids or selectors) into the hosts they choose,
// by name, each once. A word that chooses nothing is an error: a person who asks
// for three hosts must not be given two.
func (h *Hosts) ResolveTx(q store.Queryer, words []string) ([]Host, error) {
	all, err := h.ListTx(q, "")
	if err != nil {
		return nil, err
	}
	taken := map[string]Host{}
	for _, word := range words {
		chosen, err := ParseSelector(word)
		if err != nil {
			return nil, err
		}
		count := 0
		for _, host := range all {
			if chosen.Match(host) {
				taken[host.ID] = host
				count++
			}
		}
		if count == 0 || strings.TrimSpace(word) == "" {
			return nil, noHost(word)
		}
	}
	hosts := make([]Host, 0, len(taken))
	for _, host := range taken {
		hosts = append(hosts, host)
	}
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts, nil
}

// AddTx adds a host. Its id and creation time are set here when they are empty.
func (h *Hosts) AddTx(tx *store.Tx, host Host) (ledger.Entry, error) {
	entry, _, err := h.addTx(tx, host, "system")
	return entry, err
}

func (h *Hosts) addTx(tx *store.Tx, host Host, by string) (ledger.Entry, Host, error) {
	host = host.normal()
	if host.ID == "" {
		host.ID = store.NewID('h')
	}
	if host.Created == 0 {
		host.Created = tx.Now().UnixMicro()
	}
	host.Version = 1
	if err := host.Validate(); err != nil {
		return ledger.Entry{}, Host{}, err
	}
	same, err := store.All[Host](tx, selectHost+`WHERE name = $1 OR id = $2`, host.Name, host.ID)
	if err != nil {
		return ledger.Entry{}, Host{}, err
	}
	if len(same) > 0 {
		return ledger.Entry{}, Host{}, fault.New(fault.Conflict, "cannot add host %q: there is one of that name, %s", host.Name, same[0].ID).
			WithHint("handrail host invite OTHER")
	}
	_, err = tx.Exec(`INSERT INTO hosts (id, name, environment, scope, services, labels, mode, trial, server, created, version,
	ssh_address, ssh_user, ssh_write, ssh_key, ssh_source, ssh_node)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
		host.ID, host.Name, host.Environment, host.Scope, host.Services.Text(), host.Labels.Text(), host.Mode, host.Trial, host.Server, host.Created, host.Version,
		host.SSHAddress, host.SSHUser, host.SSHWrite, host.SSHKey, host.SSHSource, host.SSHNode)
	if err != nil {
		return ledger.Entry{}, Host{}, err
	}
	return host.entry(HostJoined, by, nil), host, nil
}

// SetTx writes what people decided about a host. The caller read the row at
// host.Version; a row that changed since is a conflict.
func (h *Hosts) SetTx(tx *store.Tx, host Host) (ledger.Entry, error) {
	return h.SetByTx(tx, "system", host)
}

// SetByTx is SetTx with the person who decided in the entry.
func (h *Hosts) SetByTx(tx *store.Tx, by string, host Host) (ledger.Entry, error) {
	before, err := h.GetTx(tx, host.ID)
	if err != nil {
		return ledger.Entry{}, err
	}
	host = host.normal()
	host.Created, host.Server = before.Created, before.Server
	if err := host.Validate(); err != nil {
		return ledger.Entry{}, err
	}
	read := host.Version
	host.Version++
	changed, err := tx.Exec(`UPDATE hosts SET name = $1, environment = $2, scope = $3, services = $4, labels = $5, mode = $6, trial = $7, version = $8,
	ssh_address = $9, ssh_user = $10, ssh_write = $11, ssh_key = $12, ssh_source = $13, ssh_node = $14
WHERE id = $15 AND version = $16`,
		host.Name, host.Environment, host.Scope, host.Services.Text(), host.Labels.Text(), host.Mode, host.Trial, host.Version,
		host.SSHAddress, host.SSHUser, host.SSHWrite, host.SSHKey, host.SSHSource, host.SSHNode, host.ID, read)
	if err != nil {
		return ledger.Entry{}, err
	}
	if changed != 1 {
		return ledger.Entry{}, fault.New(fault.Conflict, "cannot set host %s: somebody changed it meanwhile", host.Name).
			WithHint("handrail host show %s, then try again", host.Name)
	}
	return host.entry(HostSet, by, &before), nil
}

func (h Host) entry(action ledger.Action, by string, before *Host) ledger.Entry {
	if by == "" {
		by = "system"
	}
	return ledger.Entry{
		Action: action, Subjects: []string{by, h.ID}, Target: h.Path(), Object: h.ID, Version: h.Version,
		Payload: hostPayload{V: 1, Host: h, Before: before, By: by}, SealTo: "system",
	}
}

// normal fills what was left empty and lower-cases what is compared.
func (h Host) normal() Host {
	h.Name = strings.ToLower(strings.TrimSpace(h.Name))
	if h.Environment == "" {
		h.Environment = "dev"
	}
	if h.Scope == "" {
		h.Scope = "none"
	}
	h.Services, h.Labels = tidy(h.Services), tidy(h.Labels)
	return h
}

func orWord(word, other string) string {
	if word == "" {
		return other
	}
	return word
}

func tidy(words []string) Words {
	var out Words
	for _, word := range words {
		if word = strings.ToLower(strings.TrimSpace(word)); word != "" && !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	slices.Sort(out)
	return out
}

const (
	maxName  = 128
	maxWords = 64
)

// Validate says what is wrong with a host.
func (h Host) Validate() error {
	if err := ValidName(h.Name); err != nil {
		return err
	}
	if !slices.Contains(Environments, h.Environment) {
		return fault.New(fault.Invalid, "cannot set environment %.40q of host %s: it is not one of %s", h.Environment, h.Name, strings.Join(Environments, ", ")).
			WithHint("handrail host set %s --env %s", h.Name, orWord(fault.Nearest(h.Environment, Environments), "staging"))
	}
	if !slices.Contains(Scopes, h.Scope) {
		return fault.New(fault.Invalid, "cannot set scope %.40q of host %s: it is not one of %s", h.Scope, h.Name, strings.Join(Scopes, ", ")).
			WithHint("handrail host set %s --scope %s", h.Name, orWord(fault.Nearest(h.Scope, Scopes), "none"))
	}
	if h.Trial && h.Environment == "production" {
		return fault.New(fault.Invalid, "cannot make host %s production: its node runs without root, which is for trial only", h.Name).
			WithHint("run the node of %s as root", h.Name)
	}
	if len(h.Services) > maxWords || len(h.Labels) > maxWords {
		return fault.New(fault.Invalid, "cannot set host %s: at most %d services and %d labels", h.Name, maxWords, maxWords)
	}
	for _, word := range append(slices.Clone(h.Services), h.Labels...) {
		if !validWord(word) {
			return fault.New(fault.Invalid, "cannot use %.40q as a service or label: use letters, digits and . _ - = / only", word)
		}
	}
	return h.validSSH()
}

// ValidName says what is wrong with a host name. A name goes into SSH user
// parts and selectors, so it can hold none of their signs, and it cannot look
// like an id.
func ValidName(name string) error {
	if name == "" || len(name) > maxName || !validWord(name) || strings.ContainsAny(name, "=/") ||
		strings.HasPrefix(name, "-") || strings.HasPrefix(name, ".") {
		return fault.New(fault.Invalid, "cannot name a host %.80q: use at most %d letters, digits and . _ -", name, maxName)
	}
	if len(name) == 10 && strings.HasPrefix(name, "h-") {
		return fault.New(fault.Invalid, "cannot name a host %q: it looks like the id of another", name)
	}
	return nil
}

func validWord(word string) bool {
	for _, r := range word {
		if !nameRune(r) {
			return false
		}
	}
	return word != "" && len(word) <= maxName
}

// nameRune says which letters names, services and labels are made of.
func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("._-=/", r)
}

// micros is a time as rows hold it.
func micros(t time.Time) int64 { return t.UnixMicro() }
