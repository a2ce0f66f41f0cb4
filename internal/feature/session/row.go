package session

import (
	"context"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const columns = `id, person, person_name, host, host_name, environment, scope, level, kind, state, ended_why, started, ended,
	deadline, grant_id, break_glass, buddy_required, account, command, exit_status, floor, floor_missing, recording_bytes,
	client, source, reason, version, home`

func insert(tx *store.Tx, i Info) error {
	_, err := tx.Exec(`INSERT INTO sessions (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
		$15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)`,
		i.ID, i.Person, i.PersonName, i.Host, i.HostName, i.Environment, i.Scope, i.Level, i.Kind, i.State, i.EndedWhy, i.Started, i.Ended,
		i.Deadline, i.Grant, i.BreakGlass, i.BuddyRequired, i.Account, i.Command, i.ExitStatus, i.Floor, i.FloorMissing.Text(), i.RecordingBytes,
		i.Client, i.Source, i.Reason, i.Version, i.Home)
	return err
}

// closedPayload is what session.closed says.
type closedPayload struct {
	V         int               `json:"v"`
	Session   string            `json:"session"`
	Why       string            `json:"why"`
	Text      string            `json:"text,omitempty"`
	Status    int32             `json:"status"`
	Signal    string            `json:"signal,omitempty"`
	Floor     string            `json:"floor,omitempty"`
	Missing   []string          `json:"missing,omitempty"`
	Account   string            `json:"account,omitempty"`
	Recording *recording.Digest `json:"recording,omitempty"`
}

// finish closes the recording, and the row with its closing entries. If the
// database is away it keeps trying for a while; after that Start closes the
// session as lost, from the same file.
func (s *Sessions) finish(l *Live, outcome ledger.Outcome, why string, failure error) {
	l.mu.Lock()
	l.why = why
	if failure != nil && l.failure == nil {
		l.failure = failure
	}
	for _, t := range l.timers {
		t.Stop()
	}
	if l.away != nil {
		l.away.Stop()
	}
	info, exit, text, owner, failed := l.info, l.exit, l.whyText, l.owner, l.failure
	if text == "" && l.failure != nil {
		text = fault.From(l.failure).Text
	}
	watchers := l.watchers
	l.watchers = nil
	l.mu.Unlock()
	l.over()
	// Told first, recorded after: a database that is away holds up the second.
	for a := range watchers {
		a.q.offer(Event{Kind: Notice, Notice: NoticeEnded, Text: "This session has ended: " + why + "."})
		a.q.close()
	}
	if owner != nil && exit == nil {
		go l.farewell(owner, why, failed)
	}
	p := closedPayload{V: 1, Session: info.ID, Why: why, Text: text, Status: -1, Floor: info.Floor, Missing: info.FloorMissing, Account: info.Account}
	if exit != nil {
		p.Status, p.Signal = exit.Status, exit.Signal
	}
	var last []ledger.Entry
	if l.rec != nil {
		closed, err := l.rec.Close()
		if err != nil {
			s.d.Log.Error("cannot close a recording as it should be", "session", info.ID, "error", err)
		}
		last, p.Recording = closed.Entries, &closed.Digest
		info.RecordingBytes = closed.Digest.Bytes
	}
	info.State, info.EndedWhy, info.ExitStatus, info.Ended = StateEnded, why, int64(p.Status), time.Now().UnixMicro()
	for !s.record(info.ID+"-closed", func(tx *store.Tx) ([]ledger.Entry, error) {
		return closing(tx, info, outcome, p, last)
	}) && !s.ending() { // however long the database is away; a start closes what is left
	}
	l.mu.Lock()
	l.info = info
	l.mu.Unlock()
	s.d.Changed(info)
}

// farewell tells the owner the end that the node did not tell. Somebody who
// does not read may not hold up the closing entry.
func (l *Live) farewell(owner Owner, why string, failure error) {
	t := time.AfterFunc(l.s.b.EndGrace, owner.Abort)
	defer t.Stop()
	l.awaitSpoken()
	if failure != nil {
		_ = owner.Deliver(Event{Kind: Notice, Notice: NoticeEnded, Text: fault.From(failure).Text})
	}
	_ = owner.Deliver(Event{Kind: Exit, Status: 255, Text: why})
}

func closing(tx *store.Tx, i Info, outcome ledger.Outcome, p closedPayload, last []ledger.Entry) ([]ledger.Entry, error) {
	n, err := tx.Exec(`UPDATE sessions SET state = $1, ended_why = $2, ended = $3, exit_status = $4, floor = $5, floor_missing = $6,
		recording_bytes = $7, account = $8, version = 2 WHERE id = $9 AND state <> $10`,
		StateEnded, p.Why, tx.Now().UnixMicro(), int64(p.Status), i.Floor, i.FloorMissing.Text(), i.RecordingBytes, i.Account, i.ID, StateEnded)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fault.New(fault.Conflict, "cannot close session %s: it is closed", i.ID)
	}
	return append([]ledger.Entry{{Action: Closed, Outcome: outcome, Subjects: []string{i.Person}, Session: i.ID, Target: "host/" + i.Host,
		Object: i.ID, Version: 2, Payload: p}}, last...), nil
}

// record writes what has happened already. It tries for a minute, and says whether
// it is recorded.
func (s *Sessions) record(id string, fn func(*store.Tx) ([]ledger.Entry, error)) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		_, err := s.d.Store.Record(ctx, id, fn)
		if err == nil || fault.KindOf(err) == fault.Conflict {
			return true
		}
		s.d.Log.Warn("cannot record what has happened; trying again", "id", id, "error", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}

// ending says whether the server is about to end.
func (s *Sessions) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Start closes as lost what a crash of this server left open: recording sealed
// up to its last whole block, row ended, entry written.
func (s *Sessions) Start(ctx context.Context) error {
	var open []Info
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		open, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE state <> $1 ORDER BY started, id`, StateEnded)
		return err
	})
	if err != nil {
		return err
	}
	for _, i := range open {
		if !s.mine(i) {
			continue
		}
		closed, err := s.d.Recordings.Recover(i.ID, "the server stopped in mid-session")
		if err != nil {
			s.d.Log.Error("cannot recover a recording", "session", i.ID, "error", err)
		}
		p := closedPayload{V: 1, Session: i.ID, Why: WhyLost, Text: "the server stopped in mid-session", Status: -1, Recording: &closed.Digest}
		i.RecordingBytes = closed.Digest.Bytes
		_, err = s.d.Store.Record(ctx, i.ID+"-closed", func(tx *store.Tx) ([]ledger.Entry, error) {
			return closing(tx, i, ledger.Lost, p, closed.Entries)
		})
		if err != nil && fault.KindOf(err) != fault.Conflict {
			return err
		}
		if s.d.Lost != nil {
			s.d.Lost(i)
		}
	}
	if s.d.Home == "" {
		return nil
	}
	return s.sealLate(ctx)
}

// Query selects sessions, newest first.
type Query struct {
	LiveOnly     bool
	Host, Person string // ids; empty is any
	Limit        int    // 0 is 50, at most 200
	Before       string // a session id: those that started before it
}

// List lists sessions; the live ones as they are now.
func (s *Sessions) List(ctx context.Context, q Query) ([]Info, error) {
	if q.Limit <= 0 {
		q.Limit = 50
	}
	q.Limit = min(q.Limit, 200)
	state := ""
	if q.LiveOnly {
		state = StateEnded
	}
	var rows []Info
	err := s.d.Store.View(ctx, func(v *store.View) error {
		before := int64(1) << 62
		if q.Before != "" {
			at, err := store.One[int64](v, `SELECT started FROM sessions WHERE id = $1`, q.Before)
			if err != nil {
				return err
			}
			before = at
		}
		var err error
		rows, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE (started < $1 OR started = $1 AND id < $2)
			AND state <> $3 AND ($4 = '' OR host = $4) AND ($5 = '' OR person = $5) ORDER BY started DESC, id DESC LIMIT $6`,
			before, q.Before, state, q.Host, q.Person, q.Limit)
		return err
	})
	for n := range rows {
		rows[n] = s.now(rows[n])
	}
	return rows, err
}

// now replaces a row by what the live table knows of it.
func (s *Sessions) now(row Info) Info {
	if l, ok := s.find(row.ID); ok {
		return l.Info()
	}
	return s.seen(row)
}

// Get returns one session by its id or a unique prefix of it.
func (s *Sessions) Get(ctx context.Context, id string) (Info, error) {
	if l, ok := s.find(id); ok {
		return l.Info(), nil
	}
	var rows []Info
	var err error
	if plainID(id) { // nothing in it means something to LIKE
		err = s.d.Store.View(ctx, func(v *store.View) (err error) {
			rows, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE id LIKE $1 ORDER BY id LIMIT 2`, id+"%")
			return err
		})
	}
	switch {
	case err != nil:
		return Info{}, err
	case len(rows) == 0:
		return Info{}, fault.New(fault.NotFound, "cannot find session %q", id).WithHint("handrail sessions")
	case len(rows) > 1 && rows[0].ID != id:
		return Info{}, fault.New(fault.Invalid, "cannot tell which session %q is: %s or %s", id, rows[0].ID, rows[1].ID)
	}
	return s.now(rows[0]), nil
}

func plainID(id string) bool {
	return len(id) >= 3 && len(id) <= 32 && !strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	})
}

// Latest returns a person's newest session ("-" on the command line).
func (s *Sessions) Latest(ctx context.Context, person string) (Info, error) {
	rows, err := s.List(ctx, Query{Person: person, Limit: 1})
	if err != nil {
		return Info{}, err
	}
	if len(rows) == 0 {
		return Info{}, fault.New(fault.NotFound, "cannot find a session of yours: there is none")
	}
	return rows[0], nil
}

// CountLive is how many sessions are open on this server.
func (s *Sessions) CountLive() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}
