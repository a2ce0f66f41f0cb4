package voucher

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// keyed is the payload of entrance.keyed.
type keyed struct {
	V       int    `json:"v"`
	Port    int64  `json:"port"`
	HostKey string `json:"host_key"`
	Journal string `json:"journal_key"`
	Changed bool   `json:"changed,omitempty"` // there were other keys before
}

// Keys takes what a node says of its entrance. The keys are kept with an entry,
// since journals are judged by them; other keys than before are another entry.
func (x *Vouchers) Keys(ctx context.Context, host string, data []byte) []byte {
	k, err := wire.ParseEntranceKeys(data)
	if err != nil {
		return nil
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.HostKey))
	if err != nil {
		return nil
	}
	line := string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub)))
	journal := base64.StdEncoding.EncodeToString(k.Journal)
	old, found, err := x.entrance(ctx, host)
	if err != nil {
		return nil
	}
	if found && old.Port == int64(k.Port) && old.Address == k.Address && old.HostKey == line && old.JournalKey == journal {
		return []byte("ok")
	}
	_, err = x.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		p := keyed{V: 1, Port: int64(k.Port), HostKey: line, Journal: journal, Changed: found && (old.HostKey != line || old.JournalKey != journal)}
		_, err := tx.Exec(`INSERT INTO entrances (host, address, port, host_key, journal_key, number, version) VALUES ($1, $2, $3, $4, $5, 0, 1)
			ON CONFLICT (host) DO UPDATE SET address = $2, port = $3, host_key = $4, journal_key = $5, version = entrances.version + 1`, host, k.Address, p.Port, line, journal)
		if err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: Keyed, Subjects: []string{host}, Target: "host/" + host, Object: "entrance/" + host, Version: old.Version + 1, Payload: p}}, nil
	})
	if err != nil {
		x.d.Log.Error("the keys of an entrance could not be kept", "host", host, "error", err)
		return nil
	}
	return []byte("ok")
}

func (x *Vouchers) entrance(ctx context.Context, host string) (row entranceRow, found bool, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		rows, err := store.All[entranceRow](v, `SELECT host, address, port, host_key, journal_key, number, head, version FROM entrances WHERE host = $1`, host)
		if len(rows) > 0 {
			row, found = rows[0], true
		}
		return err
	})
	return row, found, err
}

// client is what the list of sessions says of how somebody came in.
const client = "voucher"

const (
	maxArriving = 64      // journals of one host on their way
	maxWaiting  = 1 << 30 // bytes of them
)

// Take takes a stretch of a journal and says how much is here. Once the whole is
// in the ledger the answer holds the receipt.
func (x *Vouchers) Take(ctx context.Context, host string, data []byte) []byte {
	answer := wire.JournalAnswer{V: 1}
	p, err := wire.ParseJournalPart(data)
	if err == nil {
		lock := x.arriving(host + "/" + p.Session)
		lock.Lock()
		answer, err = x.take(ctx, host, p)
		lock.Unlock()
	}
	if err != nil {
		x.d.Log.Error("a journal was not taken", "host", host, "error", err)
		answer.Error = fault.From(err).Text
	}
	out, _ := json.Marshal(answer) // plain bytes always marshal
	return out
}

func (x *Vouchers) arriving(name string) *sync.Mutex {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.arrival) > 1024 {
		clear(x.arrival) // at worst two stretches meet at the file, which checks its length
	}
	if x.arrival[name] == nil {
		x.arrival[name] = &sync.Mutex{}
	}
	return x.arrival[name]
}

func (x *Vouchers) take(ctx context.Context, host string, p wire.JournalPart) (wire.JournalAnswer, error) {
	a := wire.JournalAnswer{V: 1}
	done, err := x.done(ctx, host, p.Session)
	if err != nil {
		return a, err
	}
	if done > 0 {
		a.Have = done
		a.Receipt, err = wire.SignReceipt(wire.Receipt{V: 1, Node: host, Session: p.Session, Size: done}, x.d.Ring.Order())
		return a, err
	}
	path := filepath.Join(x.d.Dir, host, p.Session)
	if a.Have, err = x.append(path, p); err != nil {
		return a, err
	}
	if a.Have == 0 {
		return a, nil
	}
	head, err := x.announce(ctx, host, path)
	if err != nil || head == nil || p.Live || a.Have < p.Size {
		return a, err
	}
	if err := x.keep(ctx, host, path, p.Size); err != nil {
		return a, err
	}
	_ = os.Remove(path)
	a.Receipt, err = wire.SignReceipt(wire.Receipt{V: 1, Node: host, Session: p.Session, Size: p.Size}, x.d.Ring.Order())
	return a, err
}

// done is the size of a journal that is in the ledger, 0 for others.
func (x *Vouchers) done(ctx context.Context, host, session string) (size int64, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		list, err := store.All[int64](v, `SELECT size FROM journals WHERE session = $1 AND host = $2 AND done <> 0`, session, host)
		if len(list) > 0 {
			size = list[0]
		}
		return err
	})
	return size, err
}

// append adds a stretch that fits what is here, durable before it is counted.
func (x *Vouchers) append(path string, p wire.JournalPart) (int64, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot take a journal")
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := x.room(filepath.Dir(path)); err != nil {
			return 0, err
		}
	}
	have := int64(0)
	if err == nil {
		have = info.Size()
	}
	if len(p.Data) == 0 || p.Offset != have {
		return have, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.Write(p.Data)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot take a journal")
	}
	return have + int64(len(p.Data)), nil
}

// room bounds what one host may leave here unfinished.
func (x *Vouchers) room(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot take a journal")
	}
	var sum int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	if len(entries) >= maxArriving || sum > maxWaiting {
		return fault.New(fault.Exhausted, "cannot take another journal of this host: %d wait, %d MiB", len(entries), sum>>20)
	}
	return nil
}

// open opens a journal whose head the host's key signed. Where the head is not
// whole yet, it is nil.
func (x *Vouchers) open(ctx context.Context, host, path string) (*wire.JournalReader, io.Closer, error) {
	e, found, err := x.entrance(ctx, host)
	if err != nil {
		return nil, nil, err
	}
	if !found {
		return nil, nil, fault.New(fault.Unavailable, "cannot judge a journal of %s: its key is not known yet", host)
	}
	key, err := base64.StdEncoding.DecodeString(e.JournalKey)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot read the key of an entrance")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot read a journal")
	}
	r, err := wire.OpenJournal(f, ed25519.PublicKey(key))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		f.Close()
		return nil, nil, nil
	}
	if err == nil && (r.Head.Node != host || r.Head.Session != filepath.Base(path)) {
		err = fault.New(fault.Denied, "cannot accept journal: it is of %s on %s", r.Head.Session, r.Head.Node)
	}
	if err != nil {
		f.Close()
		x.refused(ctx, host, path, err)
		return nil, nil, err
	}
	return r, f, nil
}

// refused records a journal that no honest node sends, and puts it away so that
// the next try begins anew.
func (x *Vouchers) refused(ctx context.Context, host, path string, why error) {
	_ = os.Remove(path)
	x.note(ctx, "journal-refused/"+host+"/"+filepath.Base(path), Refused, ledger.Denied, host, map[string]any{
		"v": 1, "session": filepath.Base(path), "why": fault.From(why).Text,
	})
}

func (x *Vouchers) note(ctx context.Context, id string, action ledger.Action, outcome ledger.Outcome, host string, payload map[string]any) {
	_, err := x.d.Store.Record(ctx, id, func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: action, Outcome: outcome, Subjects: []string{host}, Target: "host/" + host, Payload: payload}}, nil
	})
	if err != nil {
		x.d.Log.Error("an entry about a journal could not be recorded", "host", host, "action", string(action), "error", err)
	}
}

// used is the payload of voucher.used: an offline break-glass, as soon as the
// server hears of it.
type used struct {
	V        int    `json:"v"`
	Session  string `json:"session"`
	Host     string `json:"host_name"`
	Person   string `json:"person"`
	Name     string `json:"person_name"`
	Serial   uint64 `json:"serial"`
	Known    bool   `json:"known"`              // this server made that voucher
	Ceremony bool   `json:"ceremony,omitempty"` // made by officers, without a server
	Officers string `json:"officers,omitempty"`
	Account  string `json:"account"`
	Source   string `json:"source"`
	LostMS   int64  `json:"lost_ms"`
	Number   int64  `json:"number"`
	Drill    string `json:"drill,omitempty"`
	Command  string `json:"command,omitempty"`
}

// announce records that a voucher was used, once, and makes it void. It
// returns nil while the head has not arrived.
func (x *Vouchers) announce(ctx context.Context, host, path string) (*wire.JournalHead, error) {
	r, f, err := x.open(ctx, host, path)
	if err != nil || r == nil {
		return nil, err
	}
	f.Close()
	h := r.Head
	terms, serial, ceremony, err := x.d.Ring.VoucherIn(h.Certificate)
	if _, here := terms.On(host); err == nil && !here {
		err = fault.New(fault.Denied, "cannot accept journal: its voucher does not name this host")
	}
	if err != nil {
		x.refused(ctx, host, path, err)
		return nil, err
	}
	if err := x.mine(ctx, host, h.Session); err != nil {
		x.refused(ctx, host, path, err)
		return nil, err
	}
	_, err = x.d.Store.Record(ctx, "voucher-used/"+h.Session, func(tx *store.Tx) ([]ledger.Entry, error) {
		rows, err := store.All[entranceRow](tx, `SELECT host, address, port, host_key, journal_key, number, head, version FROM entrances WHERE host = $1`, host)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		at, err := x.d.Hosts.GetTx(tx, host)
		if err != nil {
			return nil, err
		}
		known, err := store.One[int64](tx, `SELECT COUNT(*) FROM vouchers WHERE serial = $1 AND person = $2`, int64(serial), terms.Person)
		if err != nil {
			return nil, err
		}
		words := "OFFLINE BREAK-GLASS: " + terms.PersonName + " was on " + at.Name + " as " + h.Account + " while no server answered, recorded as " + h.Session
		switch {
		case h.Drill != "":
			words = ""
		case ceremony:
			words = "CEREMONY, " + words + ", with a voucher that " + joined(terms.Officers) + " made: " + wire.Plain(terms.Reason, 200)
		}
		if _, err := tx.Exec(`INSERT INTO journals (session, host, number, size, done, used, words) VALUES ($1, $2, $3, 0, 0, $4, $5)`,
			h.Session, host, h.Number, tx.Now().UnixMicro(), words); err != nil {
			return nil, err
		}
		if _, err := tx.Exec(`UPDATE vouchers SET void = $1 WHERE serial = $2 AND void = 0`, tx.Now().UnixMicro(), int64(serial)); err != nil {
			return nil, err
		}
		p := used{V: 1, Session: h.Session, Host: at.Name, Person: terms.Person, Name: terms.PersonName, Serial: serial, Known: known > 0,
			Ceremony: ceremony, Officers: joined(terms.Officers), Account: h.Account, Source: h.Source, LostMS: h.LostMS, Number: h.Number, Drill: h.Drill, Command: h.Command}
		e := ledger.Entry{Action: Used, Subjects: []string{x.subject(tx, terms)}, Session: h.Session, Target: "host/" + host, Payload: p}
		if known == 0 {
			e.Outcome = ledger.Unknown
		}
		entries := []ledger.Entry{e}
		switch gap := h.Number - rows[0].Number - 1; {
		case gap > 0:
			entries = append(entries, ledger.Entry{Action: Missing, Outcome: ledger.Lost, Subjects: []string{host}, Target: "host/" + host,
				Payload: map[string]any{"v": 1, "from": rows[0].Number + 1, "to": h.Number - 1, "seen": h.Session}})
		case gap < 0 || rows[0].Head != "" && rows[0].Head != hex.EncodeToString(h.Before):
			entries = append(entries, ledger.Entry{Action: Refused, Outcome: ledger.Denied, Subjects: []string{host}, Target: "host/" + host,
				Payload: map[string]any{"v": 1, "session": h.Session, "why": "it does not follow the host's last one: the host tells two stories"}})
		}
		if h.Number > rows[0].Number {
			_, err = tx.Exec(`UPDATE entrances SET number = $1, head = $2 WHERE host = $3`, h.Number, hex.EncodeToString(r.HeadHash), host)
		}
		return entries, err
	})
	return &h, err
}

func joined(words []string) string {
	out := ""
	for i, w := range words {
		if i > 0 {
			out += ", "
		}
		out += wire.Plain(w, 64)
	}
	return out
}

// mine refuses a journal that names a session which is not this host's own by
// voucher: a host that lies must not conclude what others did.
func (x *Vouchers) mine(ctx context.Context, host, id string) error {
	old, err := x.d.Sessions.Get(ctx, id)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return nil
	case err != nil:
		return err
	case old.Host != host || old.Client != client:
		return fault.New(fault.Denied, "cannot accept journal: session %s was another", id)
	}
	return nil
}

// subject is whose key seals what is recorded: the person's, where there is
// such a person here.
func (x *Vouchers) subject(q store.Queryer, terms wire.VoucherTerms) string {
	for _, word := range []string{terms.Person, terms.PersonName} {
		if p, err := x.d.People.GetTx(q, word); err == nil {
			return p.ID
		}
	}
	return ledger.System
}

// offline is the payload of breakglass.offline: the whole of it.
type offline struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Host    string `json:"host_name"`
	Name    string `json:"person_name"`
	Account string `json:"account"`
	Pieces  int64  `json:"pieces"`
	Bytes   int64  `json:"bytes"`
	Whole   bool   `json:"whole"`          // it says how it ended; else it was cut off
	Lost    string `json:"lost,omitempty"` // what is known to be missing
	Why     string `json:"why,omitempty"`
	Status  int32  `json:"status"`
	Grant   string `json:"grant,omitempty"` // whose review is owed
	Drill   string `json:"drill,omitempty"`
}

// keep checks a whole journal, makes a recording of it, and opens the review.
func (x *Vouchers) keep(ctx context.Context, host, path string, size int64) error {
	r, f, err := x.open(ctx, host, path)
	if err != nil {
		return err
	}
	if r == nil {
		return fault.New(fault.Unavailable, "cannot read a journal: its head is gone")
	}
	defer f.Close()
	h := r.Head
	terms, _, _, err := x.d.Ring.VoucherIn(h.Certificate)
	if err != nil {
		return err
	}
	info, err := x.info(ctx, h, terms)
	if err != nil {
		return err
	}
	p := offline{V: 1, Session: h.Session, Host: info.HostName, Name: info.PersonName, Account: h.Account, Bytes: size, Status: -1, Drill: h.Drill}
	var last *wire.JournalEnd
	var bad error
	events := func(yield func(recording.Event) bool) {
		for {
			piece, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				bad = err
				return
			}
			p.Pieces++
			for _, e := range piece.Events {
				if kind, ok := kinds[e.Type]; ok && !yield(recording.Event{Offset: time.Duration(e.At) * time.Microsecond, Kind: kind, Data: e.Data}) {
					return
				}
			}
			if piece.End != nil {
				last = piece.End
			}
		}
	}
	return x.d.Sessions.Import(ctx, info, session.Foreign{
		PTY: h.PTY, Term: wire.Plain(h.Term, 64), Cols: h.Cols, Rows: h.Rows, Events: events,
		Ended: func() session.ForeignEnd {
			switch {
			case last != nil:
				p.Whole, p.Status, p.Why = true, last.Status, wire.Plain(last.Why, 64)
				return session.ForeignEnd{Status: last.Status, Why: orElse(p.Why, "exit"), At: time.Duration(last.At) * time.Microsecond}
			case bad != nil && !errors.Is(bad, io.ErrUnexpectedEOF):
				p.Lost = "from some point on the journal is not what the host signed: " + fault.From(bad).Text
			default:
				p.Lost = "the session's keeper was killed: what it had not yet synced is missing"
			}
			return session.ForeignEnd{Status: -1, Why: session.WhyLost, Lost: p.Lost}
		},
		Close: func(tx *store.Tx) ([]ledger.Entry, error) { return x.conclude(tx, host, info, terms, &p, size) },
	})
}

// conclude is what goes into the ledger together with the closed session.
func (x *Vouchers) conclude(tx *store.Tx, host string, info session.Info, terms wire.VoucherTerms, p *offline, size int64) ([]ledger.Entry, error) {
	if _, err := tx.Exec(`UPDATE journals SET size = $1, done = $2 WHERE session = $3 AND host = $4`, size, tx.Now().UnixMicro(), info.ID, host); err != nil {
		return nil, err
	}
	var entries []ledger.Entry
	if p.Drill == "" && info.Person != ledger.System {
		at, err := x.d.Hosts.GetTx(tx, host)
		if err != nil {
			return nil, err
		}
		var owed []ledger.Entry
		p.Grant, owed, err = x.d.Access.OwedOfflineTx(tx, access.OfflineUse{
			ID: info.Grant, Person: info.Person, Host: at, Account: info.Account, Reason: reasonOf(info.ID, terms), For: wire.MaxVoucherStay,
		})
		if err != nil {
			return nil, err
		}
		entries = owed
	}
	e := ledger.Entry{Action: Offline, Subjects: []string{info.Person}, Session: info.ID, Target: "host/" + host, Payload: *p}
	if p.Lost != "" {
		e.Outcome = ledger.Lost
	}
	return append([]ledger.Entry{e}, entries...), nil
}

func reasonOf(id string, terms wire.VoucherTerms) string {
	why := "offline break-glass with a voucher while no server answered; recorded as " + id
	if terms.Reason != "" {
		why += "; the ceremony's reason: " + wire.Plain(terms.Reason, 512)
	}
	return why
}

func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// kinds are the events of a recording that a journal's frames become.
var kinds = map[wire.FrameType]recording.Kind{
	wire.FrameStdin: recording.Input, wire.FrameStdout: recording.Output, wire.FrameStderr: recording.Error, wire.FrameResize: recording.Resize,
}

// info is the session as the list shows it.
func (x *Vouchers) info(ctx context.Context, h wire.JournalHead, terms wire.VoucherTerms) (i session.Info, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		var at target.Host
		if at, err = x.d.Hosts.GetTx(v, h.Node); err != nil {
			return err
		}
		var who identity.Person
		person, name := x.subject(v, terms), terms.PersonName
		if person != ledger.System {
			if who, err = x.d.People.GetTx(v, person); err != nil {
				return err
			}
			name = who.Name
		}
		started := h.Wall
		if h.LastLease > 0 { // the server's clock and boot time since, not the host's clock
			started = h.LastLease + h.LostMS*1000
		}
		i = session.Info{
			ID: h.Session, Person: person, PersonName: name, Host: at.ID, HostName: at.Name, Environment: at.Environment, Scope: at.Scope,
			Level: wire.LevelWrite, Kind: h.Kind, Started: started, BreakGlass: true, Account: h.Account, Command: wire.Plain(h.Command, 4096),
			Client: client, Source: wire.Plain(h.Source, 64), Reason: reasonOf(h.Session, terms), Version: 1,
		}
		if h.Drill == "" && person != ledger.System {
			i.Grant = "g-" + h.Session[2:]
		}
		return nil
	})
	return i, err
}
