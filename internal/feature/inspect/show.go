package inspect

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Again is an answer that the ledger kept.
type Again struct {
	ID, Host, HostName, Person string
	What, Target, Error        string
	Seq                        int64 // of the entry that holds it
	At                         int64 // µs
	Cut                        bool  // there was more than the ledger keeps
}

// maxAgain bounds what a kept answer unpacks to.
const maxAgain = 2 * wire.MaxInspectBytes

type shownPayload struct {
	V          int    `json:"v"`
	Inspection string `json:"inspection"`
	Of         int64  `json:"of"` // the entry
}

// Show hands over an answer again, out of the ledger: named by the inspection,
// or by the entry that opened or closed it. Who may replay a session of that
// person on that host may; every time is an entry.
func (s *Inspections) Show(ctx context.Context, by identity.Principal, ref string, begun func(Again) error, each func(wire.InspectRecord) error) error {
	r, entry, err := s.closed(ctx, ref)
	if err != nil {
		return err
	}
	host, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return err
	}
	_, err = s.d.Door.Do(ctx, doorway.Act{Action: "sessions.replay", By: by, Host: &host, Context: policy.Context{Level: "read", Self: by.ID == r.Person, FloorOK: true, Inspect: r.What},
		Open: func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: Shows, Subjects: []string{by.ID, r.Person}, Target: host.Path(), Payload: shownPayload{V: 1, Inspection: r.ID, Of: entry.Seq}}}, nil
		}}, nil)
	if err != nil {
		return err
	}
	var p closedPayload
	if entry.Payload == nil {
		return fault.New(fault.NotFound, "cannot show %s: what the ledger kept of it was let go", r.ID)
	}
	if err := json.Unmarshal(entry.Payload, &p); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read entry #%d", entry.Seq)
	}
	again := Again{ID: r.ID, Host: r.Host, HostName: host.Name, Person: r.Person, What: p.What, Target: p.Target, Error: p.Error, Seq: entry.Seq, At: r.Opened, Cut: p.AnswerCut}
	records, err := unpack(p)
	if err != nil {
		return err
	}
	if err := begun(again); err != nil {
		return err
	}
	for _, record := range records {
		if err := each(record); err != nil {
			return err
		}
	}
	return nil
}

// closed finds the entry that closed an inspection.
func (s *Inspections) closed(ctx context.Context, ref string) (r row, e store.Recorded, err error) {
	ref = strings.TrimPrefix(strings.TrimSpace(ref), "#")
	if seq, perr := strconv.ParseInt(ref, 10, 64); perr == nil && seq >= 0 {
		found, err := s.d.Store.Entries(ctx, store.EntryQuery{After: seq - 1, Oldest: true, Limit: 1})
		if err != nil {
			return r, e, err
		}
		if len(found) != 1 || found[0].Seq != seq || found[0].Parsed.Action != Opened && found[0].Parsed.Action != Closed {
			return r, e, fault.New(fault.NotFound, "cannot show entry #%d: it is of no inspection", seq).WithHint("handrail ledger list --action inspection.closed")
		}
		ref = found[0].Parsed.Object
	}
	missing := fault.New(fault.NotFound, "cannot find the inspection %.80q", ref).WithHint("handrail ledger list --action inspection.closed")
	if len(ref) < 5 || len(ref) > 40 || strings.ContainsAny(ref, "%_") {
		return r, e, missing
	}
	err = s.d.Store.View(ctx, func(v *store.View) error {
		rows, err := store.All[row](v, `SELECT `+columns+` FROM inspections WHERE id LIKE $1 ORDER BY id LIMIT 2`, ref+"%")
		if err != nil {
			return err
		}
		if len(rows) != 1 {
			return missing
		}
		r = rows[0]
		return nil
	})
	if err != nil {
		return r, e, err
	}
	if r.Ended == 0 {
		return r, e, fault.New(fault.Conflict, "cannot show %s: it has not ended", r.ID)
	}
	return s.closing(ctx, r)
}

// closing looks through the entries of that person on that host: the one it is
// after lies a little before the moment at which it ended, or right behind.
func (s *Inspections) closing(ctx context.Context, r row) (row, store.Recorded, error) {
	q := store.EntryQuery{Action: string(Closed), Subject: r.Person, Target: "host/" + r.Host, Limit: 1000}
	for {
		found, err := s.d.Store.Entries(ctx, q)
		if err != nil {
			return r, store.Recorded{}, err
		}
		for _, e := range found {
			if e.Parsed.Object == r.ID {
				return r, e, nil
			}
			q.Before = e.Seq
		}
		if len(found) < q.Limit {
			return r, store.Recorded{}, fault.New(fault.NotFound, "cannot show %s: its entry is not there", r.ID)
		}
	}
}

// unpack reads the kept answer. Whole, it has to be the one that was hashed.
func unpack(p closedPayload) ([]wire.InspectRecord, error) {
	if len(p.Answer) == 0 {
		return nil, nil
	}
	raw, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(p.Answer)), maxAgain+1))
	if err != nil || len(raw) > maxAgain {
		return nil, fault.New(fault.Internal, "cannot unpack what the ledger kept of %s: %v", p.Inspection, err)
	}
	if sum := sha256.Sum256(raw); !p.AnswerCut && hex.EncodeToString(sum[:]) != p.Hash {
		return nil, fault.New(fault.Conflict, "cannot show %s: what the ledger kept is not the answer that was given", p.Inspection)
	}
	var out []wire.InspectRecord
	for line := range bytes.Lines(raw) {
		if line = bytes.TrimSuffix(line, []byte("\n")); len(line) == 0 {
			continue
		}
		record, err := wire.ParseInspectRecord(line)
		if err != nil {
			return nil, err
		}
		out = append(out, record)
	}
	return out, nil
}
