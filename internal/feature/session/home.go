package session

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Several servers share the table of sessions, and each session has one home:
// the server that opened it, holds its streams and its recording, and ends it.
// What other servers know of it is its row. Commands about it go to its home;
// this file keeps what has to be known to send them there, and closes what a
// home that is gone has left open.

// homeSchema adds whose a session is. Rows from before say nobody's.
var homeSchema = store.Migration{Name: "session-4-home", SQL: `ALTER TABLE sessions ADD COLUMN home TEXT NOT NULL DEFAULT ''`}

// unsealed marks a row that another server closed: the recording lies with its
// home, which seals it when it comes back.
const unsealed = -1

// mine says whether this server is a session's home.
func (s *Sessions) mine(i Info) bool { return i.Home == s.d.Home || i.Home == "" }

// elsewhere are the open sessions of other homes, as their rows say.
func (s *Sessions) elsewhere(keep func(Info) bool) (out []Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.away {
		if keep(i) {
			out = append(out, i)
		}
	}
	return out
}

// HomesOfGrant are the other servers with open sessions of a grant.
func (s *Sessions) HomesOfGrant(grant string) []string {
	seen := map[string]bool{}
	var homes []string
	for _, i := range s.elsewhere(func(i Info) bool { return grant != "" && i.Grant == grant }) {
		if !seen[i.Home] {
			seen[i.Home] = true
			homes = append(homes, i.Home)
		}
	}
	return homes
}

// HomeOf says at which other server a session lives or was recorded; "" is
// here, or that nobody knows.
func (s *Sessions) HomeOf(ctx context.Context, id string) string {
	if _, here := s.find(id); here {
		return ""
	}
	for _, i := range s.elsewhere(func(i Info) bool { return i.ID == id }) {
		return i.Home
	}
	i, err := s.Get(ctx, id)
	if err != nil || s.mine(i) {
		return ""
	}
	return i.Home
}

// Follow hears of an entry of any server and keeps what is known of sessions
// elsewhere.
func (s *Sessions) Follow(ctx context.Context, e store.Recorded) {
	if s.d.Home == "" || e.Parsed.Session == "" {
		return
	}
	switch e.Parsed.Action {
	case Opened:
		if _, here := s.find(e.Parsed.Session); here {
			return
		}
		i, err := s.Get(ctx, e.Parsed.Session)
		if err != nil || s.mine(i) || i.State == StateEnded {
			return // ended meanwhile; or the database is away, and the row is read when it is needed
		}
		s.mu.Lock()
		s.away[i.ID] = i
		s.mu.Unlock()
	case Closed:
		s.mu.Lock()
		delete(s.away, e.Parsed.Session)
		s.mu.Unlock()
	}
}

// seen is a row as it is shown: what only its home knows counts as live.
func (s *Sessions) seen(row Info) Info {
	if !s.mine(row) && row.State == StateStarting {
		row.State = StateLive
	}
	return row
}

// LockedElsewhere is EndByPerson for a lock that another server pulled: it has
// told the nodes.
func (s *Sessions) LockedElsewhere(person, reason string) {
	for _, l := range s.all(func(i Info) bool { return i.Person == person }) {
		l.end(WhyLocked, reason)
	}
	s.sendOutPerson(person, endingText(WhyLocked, reason))
}

// CloseGone ends what a server that is gone has left open: at the nodes first,
// then in the ledger. A home that lives after all finds its row closed and its
// session dead; the recording is sealed by its home when it comes back.
func (s *Sessions) CloseGone(ctx context.Context, home string) error {
	var open []Info
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		open, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE state <> $1 AND home = $2 ORDER BY started, id`, StateEnded, home)
		return err
	})
	for _, i := range open {
		if berr := s.closeGone(ctx, i); berr != nil && err == nil {
			err = berr
		}
	}
	return err
}

func (s *Sessions) closeGone(ctx context.Context, i Info) error {
	const text = "the server that held it is gone"
	_, err := s.d.Nodes.Brake(ctx, wire.Brake{V: 1, ID: brakeID(), Kind: wire.BrakeStopSession, Node: i.Host, Session: i.ID,
		Person: i.Person, Reason: text, Issued: time.Now().UnixMicro()})
	if err != nil {
		s.d.Log.Warn("the node of a session whose server is gone does not answer", "session", i.ID, "error", err)
	}
	i.RecordingBytes = unsealed
	p := closedPayload{V: 1, Session: i.ID, Why: WhyLost, Text: text, Status: -1}
	_, err = s.d.Store.Record(ctx, i.ID+"-closed", func(tx *store.Tx) ([]ledger.Entry, error) {
		return closing(tx, i, ledger.Lost, p, nil)
	})
	if err != nil && fault.KindOf(err) != fault.Conflict {
		return err
	}
	if s.d.Lost != nil {
		s.d.Lost(i)
	}
	return nil
}

// sealLate seals the recordings of sessions of ours that another server closed.
func (s *Sessions) sealLate(ctx context.Context) error {
	var closed []Info
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		closed, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE state = $1 AND home = $2 AND recording_bytes = $3 ORDER BY started, id`,
			StateEnded, s.d.Home, int64(unsealed))
		return err
	})
	if err != nil {
		return err
	}
	for _, i := range closed {
		sealed, err := s.d.Recordings.Recover(i.ID, "the server stopped in mid-session")
		if err != nil {
			s.d.Log.Error("cannot recover a recording", "session", i.ID, "error", err)
		}
		_, err = s.d.Store.Record(ctx, i.ID+"-sealed", func(tx *store.Tx) ([]ledger.Entry, error) {
			n, err := tx.Exec(`UPDATE sessions SET recording_bytes = $1 WHERE id = $2 AND recording_bytes = $3`, sealed.Digest.Bytes, i.ID, int64(unsealed))
			if err == nil && n != 1 {
				err = fault.New(fault.Conflict, "cannot seal the recording of session %s: it is sealed", i.ID)
			}
			return sealed.Entries, err
		})
		if err != nil && fault.KindOf(err) != fault.Conflict {
			return err
		}
	}
	return nil
}

// Drain lets no new session open here and tells those that are. At the limit
// what is left ends, and says why. off lets sessions open again.
func (s *Sessions) Drain(on bool, limit time.Duration, reason string) {
	s.mu.Lock()
	was := s.draining
	s.draining = on
	if s.drained != nil {
		s.drained.Stop()
		s.drained = nil
	}
	if on && !was {
		s.drained = time.AfterFunc(limit, func() { s.EndAll(reason) })
	}
	s.mu.Unlock()
	if on && !was {
		s.TellHost("", "This server is about to restart"+colon(reason)+" This session ends in "+brief(limit)+" at the latest; a new one opens elsewhere.")
	}
}

// Shut lets no new session open here, for that reason; with "" they open again.
func (s *Sessions) Shut(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = why
}

// EndAll ends every session that lives here.
func (s *Sessions) EndAll(reason string) {
	for _, l := range s.all(func(Info) bool { return true }) {
		l.end(WhyShutdown, reason)
	}
}

// RecordedElsewhere are the sessions whose recordings lie with other homes.
func (s *Sessions) RecordedElsewhere(ctx context.Context) (map[string]bool, error) {
	if s.d.Home == "" {
		return nil, nil
	}
	var ids []string
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		ids, err = store.All[string](v, `SELECT id FROM sessions WHERE home <> '' AND home <> $1`, s.d.Home)
		return err
	})
	away := make(map[string]bool, len(ids))
	for _, id := range ids {
		away[id] = true
	}
	return away, err
}

// Reload reads anew which sessions are open elsewhere. Who follows the ledger
// calls it once it knows from where.
func (s *Sessions) Reload(ctx context.Context) error {
	if s.d.Home == "" {
		return nil
	}
	var open []Info
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		open, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE state <> $1 AND home <> '' AND home <> $2`, StateEnded, s.d.Home)
		return err
	})
	if err != nil {
		return err
	}
	away := map[string]Info{}
	for _, i := range open {
		away[i.ID] = i
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	return nil
}
