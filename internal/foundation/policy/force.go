package policy

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Applied is the ledger action of a set that came into force.
const Applied ledger.Action = "policy.applied"

// Actions lists the ledger actions of policy.
func Actions() []ledger.Action { return []ledger.Action{Applied} }

// Schema is the table of sets. Each version stays, so that what was decided
// at a version can be explained later.
func Schema() []store.Migration {
	return []store.Migration{{Name: "policy-1-sets", SQL: `CREATE TABLE policy_sets (
	version BIGINT PRIMARY KEY,
	hash TEXT NOT NULL,
	files TEXT NOT NULL,
	applied BIGINT NOT NULL,
	applied_by TEXT NOT NULL
)`}}
}

// Force knows the set in force. The version is read anew in each transaction;
// the engine is built once a version.
type Force struct {
	store *store.Store

	mu     sync.Mutex
	engine *Engine
}

// NewForce returns the set in force in a store. Call Seed before deciding.
func NewForce(s *store.Store) *Force { return &Force{store: s} }

// Row is one set that is, or was, in force.
type Row struct {
	Version   int64  `db:"version"`
	Hash      string `db:"hash"`
	Files     string `db:"files"`
	Applied   int64  `db:"applied"`
	AppliedBy string `db:"applied_by"`
}

type versionRow struct {
	Version int64  `db:"version"`
	Hash    string `db:"hash"`
}

// EngineTx returns the engine of the set in force, as this transaction sees it.
// A set that cannot be read is an error, so that nothing is allowed by it.
func (f *Force) EngineTx(q store.Queryer) (*Engine, error) {
	head, err := store.One[versionRow](q, `SELECT version, hash FROM policy_sets ORDER BY version DESC LIMIT 1`)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot find the policy in force")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.engine != nil && f.engine.version == head.Version && hex.EncodeToString(f.engine.hash) == head.Hash {
		return f.engine, nil
	}
	row, err := f.RowTx(q, head.Version)
	if err != nil {
		return nil, err
	}
	engine, err := row.build()
	if err != nil {
		return nil, err
	}
	f.engine = engine
	return engine, nil
}

func (r Row) build() (*Engine, error) {
	var set Set
	if err := json.Unmarshal([]byte(r.Files), &set.Files); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read policy version %d", r.Version)
	}
	engine, problems := Parse(set)
	if len(problems) > 0 {
		return nil, fault.New(fault.Unavailable, "cannot use policy version %d: %s", r.Version, problems[0])
	}
	if hex.EncodeToString(engine.hash) != r.Hash {
		return nil, fault.New(fault.Unavailable, "cannot use policy version %d: its text is not what was applied", r.Version).
			WithHint("handrail ledger verify")
	}
	engine.version = r.Version
	return engine, nil
}

// RowTx returns one version; 0 is the one in force.
func (f *Force) RowTx(q store.Queryer, version int64) (Row, error) {
	const fields = `SELECT version, hash, files, applied, applied_by FROM policy_sets `
	if version == 0 {
		return store.One[Row](q, fields+`ORDER BY version DESC LIMIT 1`)
	}
	return store.One[Row](q, fields+`WHERE version = $1`, version)
}

// Engine is EngineTx in a view of its own.
func (f *Force) Engine(ctx context.Context) (*Engine, error) {
	var engine *Engine
	err := f.store.View(ctx, func(v *store.View) (err error) {
		engine, err = f.EngineTx(v)
		return err
	})
	return engine, err
}

// Current is RowTx of the set in force, in a view of its own.
func (f *Force) Current(ctx context.Context) (Row, error) {
	var row Row
	err := f.store.View(ctx, func(v *store.View) (err error) {
		row, err = f.RowTx(v, 0)
		return err
	})
	return row, err
}

// appliedPayload puts the text of the set into the ledger.
type appliedPayload struct {
	V       int    `json:"v"`
	Version int64  `json:"version"`
	Hash    string `json:"hash"`
	Files   []File `json:"files"`
	By      string `json:"by"`
}

// ApplyTx puts a set in force. base is the version that people compared it
// with; if another came into force since, it is a conflict.
func (f *Force) ApplyTx(tx *store.Tx, by string, set Set, base int64) (int64, ledger.Entry, error) {
	engine, problems := Parse(set)
	if len(problems) > 0 {
		return 0, ledger.Entry{}, fault.New(fault.Invalid, "cannot apply policy: %s", problems[0]).WithHint("handrail policy test DIR")
	}
	now, err := store.All[versionRow](tx, `SELECT version, hash FROM policy_sets ORDER BY version DESC LIMIT 1`)
	if err != nil {
		return 0, ledger.Entry{}, err
	}
	var version int64
	if len(now) > 0 {
		version = now[0].Version
	}
	if version != base {
		return 0, ledger.Entry{}, fault.New(fault.Conflict, "cannot apply policy: it was compared with version %d, and %d is in force", base, version).
			WithHint("handrail policy test DIR, then apply again")
	}
	version++
	files, err := json.Marshal(set.Files)
	if err != nil {
		return 0, ledger.Entry{}, err
	}
	_, err = tx.Exec(`INSERT INTO policy_sets (version, hash, files, applied, applied_by) VALUES ($1, $2, $3, $4, $5)`,
		version, hex.EncodeToString(engine.hash), string(files), tx.Now().UnixMicro(), by)
	if err != nil {
		return 0, ledger.Entry{}, err
	}
	return version, ledger.Entry{
		Action: Applied, Subjects: []string{by}, Object: "policy", Version: version, SealTo: "system",
		Payload: appliedPayload{V: 1, Version: version, Hash: hex.EncodeToString(engine.hash), Files: set.Files, By: by},
	}, nil
}

// Seed puts the default set in force in a new installation. Where the set in
// force is an older default that nobody changed, the new default replaces it.
func (f *Force) Seed(ctx context.Context) error {
	set := Default()
	fresh := false
	err := f.store.View(ctx, func(v *store.View) error {
		rows, err := store.All[Row](v, `SELECT version, hash, files, applied, applied_by FROM policy_sets ORDER BY version DESC LIMIT 1`)
		if err != nil {
			return err
		}
		fresh = len(rows) == 0 || rows[0].AppliedBy == "system" && !bytes.Equal(set.Hash(), unhex(rows[0].Hash))
		return nil
	})
	if err != nil || !fresh {
		return err
	}
	_, err = f.store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		rows, err := store.All[versionRow](tx, `SELECT version, hash FROM policy_sets ORDER BY version DESC LIMIT 1`)
		if err != nil {
			return nil, err
		}
		var base int64
		if len(rows) > 0 {
			base = rows[0].Version
			if rows[0].Hash == hex.EncodeToString(set.Hash()) {
				return nil, fault.New(fault.Conflict, "cannot seed policy: another server did")
			}
		}
		_, entry, err := f.ApplyTx(tx, "system", set, base)
		return []ledger.Entry{entry}, err
	})
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return nil
	}
	return err
}

func unhex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}
	return b
}
