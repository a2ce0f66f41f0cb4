package witness

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// The ledger actions of this package.
const (
	ActionSet      ledger.Action = "witness.set"
	ActionMissing  ledger.Action = "witness.missing"
	ActionRefused  ledger.Action = "witness.refused"
	ActionReturned ledger.Action = "witness.returned"
)

// Actions lists what this package writes to the ledger.
func Actions() []ledger.Action {
	return []ledger.Action{ActionSet, ActionMissing, ActionRefused, ActionReturned}
}

// outage is a witness that is missing or refuses, and that the ledger says so.
type outage struct {
	Witness string `db:"witness"`
	Since   int64  `db:"since"` // µs; 0: there is none
	Why     string `db:"why"`
}

// idOf names a witness in leaves, where no word of people may stand.
func idOf(k ledger.WitnessKey) string {
	return "witness/" + hex.EncodeToString(binary.BigEndian.AppendUint32(nil, k.KeyHash()))
}

// outagePayload is the payload of witness.missing, .refused and .returned.
type outagePayload struct {
	V     int    `json:"v"`
	Name  string `json:"name"`
	URL   string `json:"url"`
	Since int64  `json:"since"` // µs
	Why   string `json:"why,omitempty"`
}

// tell records outages and their ends, one entry each.
func (c *Circle) tell(ctx context.Context) error {
	type news struct {
		m      *member
		action ledger.Action
		out    outage
	}
	var all []news
	now := time.Now()
	c.mu.Lock()
	for _, m := range c.members {
		missing := m.why != "" && now.Sub(m.good) >= c.b.Missing
		switch {
		case m.out.Since == 0 && (missing || m.forked):
			n := news{m, ActionMissing, outage{idOf(m.Key), m.good.UnixMicro(), clip(m.why)}}
			if m.forked {
				n.action, n.out.Since = ActionRefused, now.UnixMicro()
			}
			all = append(all, n)
		case m.out.Since != 0 && m.why == "" && m.at != 0:
			all = append(all, news{m, ActionReturned, outage{Witness: idOf(m.Key)}})
		}
	}
	c.mu.Unlock()
	for _, n := range all {
		if err := c.record(ctx, n.m.PolicyWitness, n.action, n.m.out, n.out); err != nil {
			return err
		}
		c.mu.Lock()
		n.m.out = n.out
		c.mu.Unlock()
	}
	return nil
}

// maxWhy bounds what is kept of why a witness is missing: part of it is what
// the far side said.
const maxWhy = 400

func clip(s string) string {
	if len(s) > maxWhy {
		return s[:maxWhy] + "…"
	}
	return s
}

// record is idempotent by what lies in the table: of several servers one tells.
func (c *Circle) record(ctx context.Context, w ledger.PolicyWitness, action ledger.Action, was, out outage) error {
	id := fmt.Sprintf("%s/%s/%d/%d", action, out.Witness, was.Since, out.Since)
	_, err := c.d.Store.Record(ctx, id, func(tx *store.Tx) ([]ledger.Entry, error) {
		there, err := store.All[int64](tx, `SELECT since FROM witness_outage WHERE witness = $1`, out.Witness)
		if err != nil || was.Since != slices.Max(append(there, 0)) {
			return nil, err // another server told
		}
		payload := outagePayload{V: 1, Name: w.Name, URL: w.URL, Since: out.Since, Why: out.Why}
		outcome := ledger.Lost
		switch action {
		case ActionReturned:
			payload.Since, outcome = was.Since, ledger.OK
		case ActionRefused:
			outcome = ledger.Denied
		}
		if _, err := tx.Exec(`DELETE FROM witness_outage WHERE witness = $1`, out.Witness); err != nil {
			return nil, err
		}
		if out.Since != 0 {
			if _, err := tx.Exec(`INSERT INTO witness_outage (witness, since, why) VALUES ($1, $2, $3)`, out.Witness, out.Since, out.Why); err != nil {
				return nil, err
			}
		}
		return []ledger.Entry{{Action: action, Outcome: outcome, Subjects: []string{ledger.System}, Target: out.Witness, Payload: payload}}, nil
	})
	return err
}

// State is one witness as people are shown it.
type State struct {
	Name, Key, URL string
	Size           int64     // of the tree that it cosigned last
	At             time.Time // when it did, by its own clock; zero: not since we started
	Took           time.Duration
	Missing        time.Time // since when; zero: it is not
	Why            string
}

// Tail is what of the ledger no quorum has cosigned yet.
type Tail struct {
	Entries int64
	Since   time.Time // when enough had last cosigned; zero: never since we started
	Late    bool      // longer than a witness may take
	Why     string    // in words
}

// List is every witness that is asked, and the policy in force.
func (c *Circle) List() (states []State, p ledger.WitnessPolicy, version int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := map[string]*member{}
	for _, m := range c.members {
		asked[m.Name] = m
	}
	for _, w := range c.policy.Witnesses {
		s := State{Name: w.Name, Key: w.Key.String(), URL: w.URL}
		if m := asked[w.Name]; m != nil {
			s.Size, s.Took, s.Why = m.size, m.took, m.why
			if m.at != 0 {
				s.At = time.Unix(m.at, 0)
			}
			if m.out.Since != 0 {
				s.Missing = time.UnixMicro(m.out.Since)
			}
		}
		states = append(states, s)
	}
	return states, c.policy, c.version
}

// Tail says how much of the ledger is not cosigned yet.
func (c *Circle) Tail() Tail {
	states, p, _ := c.List()
	c.mu.Lock()
	newest, began := c.newest, c.began
	c.mu.Unlock()
	t := Tail{Entries: c.d.Store.Size() - newest.tree.N, Since: newest.at}
	if !p.Wants() {
		return Tail{}
	}
	since := newest.at
	if since.IsZero() {
		since = began
	}
	t.Late = time.Since(since) >= c.b.Missing
	have := map[string]bool{}
	for _, s := range states {
		have[s.Name] = s.Why == "" && !s.At.IsZero()
		if !have[s.Name] && t.Why == "" {
			t.Why = "witness " + s.Name + " has not cosigned"
			if s.Why != "" {
				t.Why += ": " + s.Why
			}
		}
	}
	if t.Why == "" {
		t.Why = "the witnesses have not answered yet"
	}
	return t
}
