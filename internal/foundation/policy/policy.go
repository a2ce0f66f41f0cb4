// Package policy answers one question: may this principal do this, there, now?
// The rules are Cedar, read by a newcomer and checked against a schema; this is
// the only package that knows that. What goes with an answer (which account, how
// many approvers, how long) is in the settings of the same set.
//
// House rules: an error is a refusal. Cedar skips a forbid that errs and would
// then allow; so any diagnostic error refuses, and so does a panic. Decide is
// called by doorway only, which records what it answers.
package policy

import (
	"fmt"
	"slices"
	"sync"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/target"
)

// Query is one question.
type Query struct {
	Principal identity.Principal
	Action    string       // "sessions.open"
	Host      *target.Host // nil: the installation as a whole
	Context   Context
}

// Context is the circumstances that rules can speak of.
type Context struct {
	Level                string // read or write for a session, else ""
	GrantActive          bool
	GrantKind            string
	Sudo, Root           bool
	Forward              bool // asks for forwarded ports
	Bootstrap            bool
	OwesReview           bool // of a break-glass, past its date
	BuddyPresent         bool
	FloorOK              bool
	Self                 bool // acts on their own object
	AgeOfCredentialHours int64
	Agreed               bool   // a robot: two people agreed that it may do this, there
	Inspect              string // what a brokered read looks at: stacks, top, …
}

// Decision is the answer, with the reasons that people are told.
type Decision struct {
	Allowed  bool
	Rules    []string // ids of the rules that decided
	Text     string   // one sentence
	Next     string   // the command that may help a person who is refused
	Errors   []string // what went wrong; never empty together with Allowed
	Version  int64    // of the set
	WhoCould []string // groups that could agree or do it; Explain fills it
}

// Engine decides by one set. It is safe for concurrent use and never changes.
type Engine struct {
	set      Set
	hash     []byte
	version  int64
	settings Settings
	words    *vocabulary
	all      rules
	byAction map[string]rules
	groups   []string
	entities cache
}

// Set is the set's text.
func (e *Engine) Set() Set { return e.set }

// Hash is the set's name.
func (e *Engine) Hash() []byte { return slices.Clone(e.hash) }

// Version is the set's number in this installation; 0 is a set not in force.
func (e *Engine) Version() int64 { return e.version }

// Decide answers a query. It never allows when anything went wrong.
func (e *Engine) Decide(q Query) (d Decision) {
	defer func() {
		if r := recover(); r != nil {
			d = e.failed(q, fmt.Sprintf("the rules panicked: %v", r))
		}
	}()
	if q.Principal.Locked { // also a rule of the default set; no set can lift it
		return Decision{Version: e.version, Rules: []string{"locked"}, Text: "Refused: who is locked may do nothing."}
	}
	if q.Principal.Kind != "person" && q.Principal.Kind != "robot" || q.Principal.ID == "" {
		return Decision{Version: e.version, Text: "Refused: nobody is logged in.", Next: "handrail login"}
	}
	action, known := e.words.actions[q.Action]
	if !known {
		return e.failed(q, "no rule can speak of the action "+q.Action)
	}
	if q.Host == nil && !action.installation {
		return e.failed(q, q.Action+" needs a host")
	}
	relevant := e.byAction[q.Action]
	asked := e.entities.question(q, relevant)
	answer, diagnostic := cedar.Authorize(asked, asked, cedar.Request{
		Principal: asked.principal.UID, Action: action.uid, Resource: asked.resource.UID,
		Context: e.entities.context(q.Context),
	})
	if len(diagnostic.Errors) > 0 {
		d = Decision{Version: e.version, Text: "Refused: a rule cannot be evaluated, and an error is a refusal."}
		for _, err := range diagnostic.Errors {
			d.Rules = append(d.Rules, string(err.PolicyID))
			d.Errors = append(d.Errors, string(err.PolicyID)+": "+err.Message)
		}
		return d
	}
	d = Decision{Version: e.version, Allowed: answer == cedar.Allow, Rules: make([]string, 0, len(diagnostic.Reasons))}
	for _, reason := range diagnostic.Reasons {
		d.Rules = append(d.Rules, string(reason.PolicyID))
	}
	return relevant.explain(q, d)
}

func (e *Engine) failed(q Query, why string) Decision {
	return Decision{Version: e.version, Errors: []string{why}, Text: "Refused: " + why + ", and an error is a refusal."}
}

// cache keeps compiled entities, since building one costs more than deciding.
// An entry counts only while everything it was made of is the same; when there
// are too many, all are dropped.
type cache struct {
	mu         sync.RWMutex
	principals map[string]cachedPrincipal
	hosts      map[string]cachedHost
	contexts   map[Context]cedar.Record
}

const maxCached = 4096

type cachedPrincipal struct {
	kind, name string
	locked     bool
	groups     []string
	entity     *cedar.Entity
}

type cachedHost struct {
	host   target.Host
	entity *cedar.Entity
}

func (c *cache) question(q Query, relevant rules) *question {
	return &question{principal: c.principal(q.Principal), resource: c.resource(q.Host), rules: relevant, groups: q.Principal.Groups}
}

func (c *cache) principal(p identity.Principal) *cedar.Entity {
	c.mu.RLock()
	got, ok := c.principals[p.ID]
	c.mu.RUnlock()
	if ok && got.kind == p.Kind && got.name == p.Name && got.locked == p.Locked && slices.Equal(got.groups, p.Groups) {
		return got.entity
	}
	made := cachedPrincipal{kind: p.Kind, name: p.Name, locked: p.Locked, groups: slices.Clone(p.Groups), entity: principalEntity(p)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.principals == nil || len(c.principals) >= maxCached {
		c.principals = map[string]cachedPrincipal{}
	}
	c.principals[p.ID] = made
	return made.entity
}

func principalEntity(p identity.Principal) *cedar.Entity {
	kind := types.EntityType("Person")
	if p.Kind == "robot" {
		kind = "Robot"
	}
	parents := make([]cedar.EntityUID, len(p.Groups))
	for i, g := range p.Groups {
		parents[i] = cedar.NewEntityUID("Group", cedar.String(g))
	}
	return &cedar.Entity{
		UID: cedar.NewEntityUID(kind, cedar.String(p.ID)), Parents: cedar.NewEntityUIDSet(parents...),
		Attributes: cedar.NewRecord(cedar.RecordMap{"name": cedar.String(p.Name), "locked": cedar.Boolean(p.Locked)}),
	}
}

func (c *cache) resource(h *target.Host) *cedar.Entity {
	if h == nil {
		return &cedar.Entity{UID: cedar.NewEntityUID("Installation", "this")}
	}
	c.mu.RLock()
	got, ok := c.hosts[h.ID]
	c.mu.RUnlock()
	if ok && sameHost(got.host, *h) {
		return got.entity
	}
	made := cachedHost{host: *h, entity: hostEntity(*h)}
	made.host.Services, made.host.Labels = slices.Clone(h.Services), slices.Clone(h.Labels)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts == nil || len(c.hosts) >= maxCached {
		c.hosts = map[string]cachedHost{}
	}
	c.hosts[h.ID] = made
	return made.entity
}

func sameHost(a, b target.Host) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Environment == b.Environment && a.Scope == b.Scope &&
		a.Mode == b.Mode && a.Trial == b.Trial && a.Server == b.Server && slices.Equal(a.Services, b.Services) && slices.Equal(a.Labels, b.Labels)
}

func hostEntity(h target.Host) *cedar.Entity {
	return &cedar.Entity{
		UID: cedar.NewEntityUID("Host", cedar.String(h.ID)),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			"name": cedar.String(h.Name), "environment": cedar.String(h.Environment), "scope": cedar.String(h.Scope),
			"services": stringSet(h.Services), "labels": stringSet(h.Labels),
			"mode": cedar.String(h.Mode), "trial": cedar.Boolean(h.Trial), "server": cedar.Boolean(h.Server),
		}),
	}
}

func stringSet(words []string) cedar.Set {
	values := make([]cedar.Value, len(words))
	for i, w := range words {
		values[i] = cedar.String(w)
	}
	return cedar.NewSet(values...)
}

func (c *cache) context(from Context) cedar.Record {
	c.mu.RLock()
	got, ok := c.contexts[from]
	c.mu.RUnlock()
	if ok {
		return got
	}
	made := cedar.NewRecord(cedar.RecordMap{
		"level": cedar.String(from.Level), "grant": cedar.Boolean(from.GrantActive), "grantKind": cedar.String(from.GrantKind),
		"sudo": cedar.Boolean(from.Sudo), "root": cedar.Boolean(from.Root), "forward": cedar.Boolean(from.Forward), "bootstrap": cedar.Boolean(from.Bootstrap),
		"owesReview": cedar.Boolean(from.OwesReview), "buddy": cedar.Boolean(from.BuddyPresent),
		"floorOK": cedar.Boolean(from.FloorOK), "own": cedar.Boolean(from.Self),
		"credentialHours": cedar.Long(from.AgeOfCredentialHours), "inspect": cedar.String(from.Inspect),
		"agreed": cedar.Boolean(from.Agreed),
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.contexts == nil || len(c.contexts) >= maxCached {
		c.contexts = map[Context]cedar.Record{}
	}
	c.contexts[from] = made
	return made
}
