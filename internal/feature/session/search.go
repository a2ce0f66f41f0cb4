package session

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Searching is reading: who may replay a recording may search it, each search is
// decided and recorded before the first recording is opened, and its entry says
// who looked for what in which of them.

const (
	// MaxSearched is how many recordings one search opens, the newest first.
	MaxSearched = 1000

	leastWords, mostWords = 2, 200
	hitsOfOne             = 20
	hitsOfAll             = 500
	searchers             = 4
)

// SearchQuery selects sessions that have ended, and what to look for in them.
type SearchQuery struct {
	Words        string
	Host, Person string    // ids; empty is any
	Since        time.Time // zero is any
	Before       string    // a session id: those that started before it
}

// Hit is one line that holds the words.
type Hit struct {
	Session Info
	Line    recording.Line
}

// Searched says what a search covered.
type Searched struct {
	Recordings int    // that were searched
	Hits       int    // that were found
	Denied     int    // that the caller may not replay
	Elsewhere  int    // that lie with another server alone
	Unread     int    // that cannot be read: erased, removed, or damaged
	Cut        int    // that have more text than an index holds
	More       bool   // there are hits that were left out
	Next       string // Before, to go on with older ones; "": that was all
}

// searchedPayload is what session.searched says. It is sealed to who searched.
type searchedPayload struct {
	V        int      `json:"v"`
	Words    string   `json:"words"`
	Sessions []string `json:"sessions"`
}

// Search looks through recordings and hands out hits, newest session first.
func (s *Sessions) Search(ctx context.Context, by identity.Principal, q SearchQuery, found func(Hit) error) (Searched, error) {
	var done Searched
	q.Words = strings.Join(strings.Fields(q.Words), " ")
	if n := len(q.Words); n < leastWords || n > mostWords || !utf8.ValidString(q.Words) {
		return done, fault.New(fault.Invalid, "cannot search for %d letters: %d to %d", n, leastWords, mostWords)
	}
	rows, err := s.searchable(ctx, q)
	if err != nil || len(rows) == 0 {
		return done, err
	}
	if len(rows) > MaxSearched {
		rows = rows[:MaxSearched]
		done.Next = rows[MaxSearched-1].ID
	}
	allowed, err := s.maySearch(ctx, by, q, rows)
	if err != nil {
		return done, err
	}
	done.Denied = len(rows) - len(allowed)
	return done, s.search(ctx, q.Words, allowed, &done, found)
}

// searchable are the sessions of a query, one more than are searched.
func (s *Sessions) searchable(ctx context.Context, q SearchQuery) (rows []Info, err error) {
	since := int64(0)
	if !q.Since.IsZero() {
		since = q.Since.UnixMicro()
	}
	err = s.d.Store.View(ctx, func(v *store.View) error {
		before := int64(1) << 62
		if q.Before != "" {
			if before, err = store.One[int64](v, `SELECT started FROM sessions WHERE id = $1`, q.Before); err != nil {
				return err
			}
		}
		rows, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE (started < $1 OR started = $1 AND id < $2) AND state = $3
			AND recording_bytes > 0 AND started >= $4 AND ($5 = '' OR host = $5) AND ($6 = '' OR person = $6) ORDER BY started DESC, id DESC LIMIT $7`,
			before, q.Before, StateEnded, since, q.Host, q.Person, MaxSearched+1)
		return err
	})
	return rows, err
}

// alike is what policy tells sessions apart by, beside their hosts.
type alike struct {
	level string
	self  bool
}

// maySearch decides on each host, for each kind of session, and records the
// search. If nothing of it is allowed, that is a refusal like every other.
func (s *Sessions) maySearch(ctx context.Context, by identity.Principal, q SearchQuery, rows []Info) ([]Info, error) {
	verdict := map[alike]map[string]bool{}
	hosts := map[alike][]target.Host{}
	sessions := map[alike][]string{}
	var allowed []Info
	for _, i := range rows {
		k := alike{i.Level, i.Person == by.ID}
		if verdict[k] == nil {
			verdict[k] = map[string]bool{}
		}
		may, known := verdict[k][i.Host]
		if !known {
			act, err := s.act(ctx, by, "sessions.replay", i)
			if err != nil {
				return nil, err
			}
			d, err := s.d.Door.Explain(ctx, act)
			if err != nil {
				return nil, err
			}
			if may = d.Allowed; may {
				hosts[k] = append(hosts[k], *act.Host)
			}
			verdict[k][i.Host] = may
		}
		if may {
			allowed, sessions[k] = append(allowed, i), append(sessions[k], i.ID)
		}
	}
	if len(allowed) == 0 {
		act, err := s.act(ctx, by, "sessions.replay", rows[0])
		if err == nil {
			act.Open = s.searchedEntry(by, q.Words, []string{rows[0].ID})
			_, err = s.d.Door.Do(ctx, act, nil) // refuses, and says by which rule
		}
		return nil, err
	}
	for k, ids := range sessions {
		act := doorway.Act{Action: "sessions.replay", By: by, Hosts: hosts[k], Context: policy.Context{Level: k.level, Self: k.self, FloorOK: true},
			Open: s.searchedEntry(by, q.Words, ids)}
		if _, err := s.d.Door.Do(ctx, act, nil); err != nil {
			return nil, err
		}
	}
	return allowed, nil
}

func (s *Sessions) searchedEntry(by identity.Principal, words string, ids []string) func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
	return func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: SearchedIn, Subjects: []string{by.ID}, Payload: searchedPayload{V: 1, Words: words, Sessions: ids}}}, nil
	}
}

// oneSearched is what was found in one recording.
type oneSearched struct {
	lines []recording.Line
	more  bool
	cut   bool
	err   error
}

// search opens some recordings at a time and hands out hits in order.
func (s *Sessions) search(ctx context.Context, words string, rows []Info, done *Searched, found func(Hit) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]chan oneSearched, len(rows))
	for n := range results {
		results[n] = make(chan oneSearched, 1)
	}
	ahead := make(chan int) // bounds what is in memory
	var group sync.WaitGroup
	for range searchers {
		group.Go(func() {
			for n := range ahead {
				results[n] <- s.searchOne(ctx, rows[n].ID, words)
			}
		})
	}
	defer group.Wait()
	go func() {
		defer close(ahead)
		for n := range rows {
			select {
			case ahead <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	for n, i := range rows {
		var one oneSearched
		select {
		case one = <-results[n]:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := done.add(s, i, one, found); err != nil {
			cancel()
			return err
		}
	}
	return nil
}

func (s *Sessions) searchOne(ctx context.Context, id, words string) (one oneSearched) {
	one.cut, one.err = s.d.Recordings.Find(ctx, id, words, func(l recording.Line) bool {
		if one.more = len(one.lines) >= hitsOfOne; !one.more {
			one.lines = append(one.lines, l)
		}
		return !one.more
	})
	return one
}

func (d *Searched) add(s *Sessions, i Info, one oneSearched, found func(Hit) error) error {
	switch {
	case one.err != nil && fault.KindOf(one.err) == fault.NotFound && !s.mine(i):
		d.Elsewhere++
		return nil
	case one.err != nil:
		s.d.Log.Info("a recording could not be searched", "session", i.ID, "error", one.err)
		d.Unread++
		return nil
	}
	d.Recordings++
	d.More = d.More || one.more
	if one.cut {
		d.Cut++
	}
	slices.SortStableFunc(one.lines, func(a, b recording.Line) int { return int(a.At - b.At) })
	for _, l := range one.lines {
		if d.Hits >= hitsOfAll {
			d.More = true
			return nil
		}
		d.Hits++
		if err := found(Hit{Session: i, Line: l}); err != nil {
			return err
		}
	}
	return nil
}
