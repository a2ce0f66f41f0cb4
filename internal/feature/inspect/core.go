package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A core dump comes sealed from its host and is kept as it came, in parts. The
// key that opens it is made for it, kept under a data key of its own, and
// destroyed when its time is over: what is left of the parts is noise.

const partSize = 32 << 20

// corePayload is what the entries about dumps and values say.
type corePayload struct {
	V          int    `json:"v"`
	ID         string `json:"id"`
	Inspection string `json:"inspection,omitempty"`
	Approval   string `json:"approval,omitempty"`
	Is         string `json:"is,omitempty"`
	Name       string `json:"name,omitempty"` // of the variable
	Why        string `json:"why,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"`
	Sealed     int64  `json:"sealed,omitempty"`
	Hash       string `json:"hash,omitempty"` // SHA-256 of what is kept, hex
	Until      int64  `json:"until,omitempty"`
	Ended      string `json:"ended,omitempty"` // expired, removed, lost
}

// parts keeps what comes, in blobs of one size.
type parts struct {
	ctx   context.Context
	to    blob.Store
	look  string
	most  int64
	buf   []byte
	sums  []string
	whole hash.Hash
	n     int64
}

func partName(look string, i int) string { return fmt.Sprintf("cores/%s/%04d", look, i) }

func (p *parts) add(b []byte) error {
	if p.n += int64(len(b)); p.n > p.most {
		return fault.New(fault.Exhausted, "cannot keep the dump: its node sends more than was agreed")
	}
	p.whole.Write(b)
	for len(b) > 0 {
		n := min(len(b), partSize-len(p.buf))
		p.buf, b = append(p.buf, b[:n]...), b[n:]
		if len(p.buf) == partSize {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *parts) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	sum := sha256.Sum256(p.buf)
	if err := p.to.Put(p.ctx, partName(p.look, len(p.sums)), bytes.NewReader(p.buf)); err != nil {
		return err
	}
	p.sums, p.buf = append(p.sums, hex.EncodeToString(sum[:])), p.buf[:0]
	return nil
}

// roomTx refuses a dump that may not fit.
func (s *Inspections) roomTx(q store.Queryer, most int64) error {
	kept, err := store.One[int64](q, `SELECT COALESCE(SUM(sealed), 0) FROM inspect_agreed WHERE state = $1`, StateKept)
	if err != nil {
		return err
	}
	if kept+most > s.b.Cores {
		return fault.New(fault.Exhausted, "cannot keep another dump: %s are kept, at most %s", sizeText(kept), sizeText(s.b.Cores)).WithHint("handrail inspect core list; handrail inspect core remove ID")
	}
	return nil
}

// Take has the dump made and keeps it.
func (s *Inspections) Take(ctx context.Context, by identity.Principal, id string, begun func(Asked) error, each func(wire.InspectRecord) error) (a Agreed, err error) {
	if s.d.Blobs == nil {
		return a, fault.New(fault.Unavailable, "cannot take a dump: this server keeps none")
	}
	select {
	case s.dumps <- struct{}{}:
		defer func() { <-s.dumps }()
	default:
		return a, fault.New(fault.Exhausted, "cannot take a dump: %d are taken at this moment", maxDumps).WithHint("try again in a minute")
	}
	t, err := s.begin(ctx, by, id, KindCore)
	if err != nil {
		return a, err
	}
	whole := false
	defer func() {
		if !whole { // nobody is to open what is left
			s.discard(context.WithoutCancel(ctx), t.spec.ID)
		}
	}()
	if s.d.Room != nil {
		if err := s.d.Room(t.terms.Most); err != nil {
			return a, err
		}
	}
	p := &parts{ctx: ctx, to: s.d.Blobs, look: t.spec.ID, most: t.terms.Most + t.terms.Most/64 + 1<<20, whole: sha256.New()}
	var dump *wire.InspectDump
	l := listener{begun: begun, box: p.add, each: func(r wire.InspectRecord) error {
		if r.Core != nil {
			dump = r.Core
		}
		return each(r)
	}}
	home := s.d.Home
	if s.d.Shared {
		home = ""
	}
	until := int64(0)
	done := func(row *Agreed) string {
		row.Bytes, row.Sealed, row.Parts, row.Key, row.Home, row.Until = dump.Bytes, p.n, strings.Join(p.sums, " "), base64.StdEncoding.EncodeToString(t.key), home, until
		a = *row
		a.State = StateKept
		return StateKept
	}
	err = s.do(ctx, by, t, l, done, func(closedPayload) ([]ledger.Entry, error) {
		if dump == nil || dump.Sealed != p.n || p.n == 0 || dump.Bytes <= 0 || dump.Bytes > t.terms.Most {
			return nil, fault.New(fault.Unavailable, "cannot keep the dump: it is not what its node says it is")
		}
		if err := p.flush(); err != nil {
			return nil, err
		}
		until = time.Now().Add(time.Duration(t.terms.KeepMS) * time.Millisecond).UnixMicro()
		return []ledger.Entry{{Action: CoreKept, Subjects: s.involved(ctx, t), Target: t.host.Path(), Object: t.row.ID, Version: 2,
			Payload: corePayload{V: 1, ID: t.row.ID, Inspection: t.spec.ID, Approval: t.row.Approval, Is: t.terms.Is, Why: t.terms.Why,
				Bytes: dump.Bytes, Sealed: p.n, Hash: hex.EncodeToString(p.whole.Sum(nil)), Until: until}}}, nil
	})
	whole = err == nil
	s.nudge()
	return a, err
}

// discard makes a dump unreadable and takes its parts away.
func (s *Inspections) discard(ctx context.Context, look string) {
	if err := s.d.Seals.Destroy(look); err != nil {
		s.d.Log.Error("the key of a core dump could not be destroyed", "inspection", look, "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.clear(ctx, look); err != nil {
		s.d.Log.Warn("a core dump that nobody can open is left", "inspection", look, "error", err)
	}
}

func (s *Inspections) clear(ctx context.Context, look string) error {
	if s.d.Blobs == nil || look == "" {
		return nil
	}
	for info, err := range s.d.Blobs.List(ctx, "cores/"+look+"/") {
		if err != nil {
			return err
		}
		if err := s.d.Blobs.Delete(ctx, info.Name); err != nil {
			return err
		}
	}
	return nil
}

// kept finds a dump that is there.
func (s *Inspections) kept(q store.Queryer, id string, now time.Time) (Agreed, error) {
	a, err := agreedTx(q, id)
	if err != nil {
		return a, err
	}
	if a.Kind != KindCore || a.State != StateKept || a.Until <= now.UnixMicro() {
		return a, fault.New(fault.NotFound, "cannot find a core dump %s: it is %s", a.ID, orGone(a)).WithHint("handrail inspect core list")
	}
	return a, nil
}

func orGone(a Agreed) string {
	if a.State == StateKept {
		return StateGone
	}
	return a.State
}

// Download hands over the dump as the ELF file that it is. Who asked and who
// agreed may; every download is an entry.
func (s *Inspections) Download(ctx context.Context, by identity.Principal, id string, began func(Agreed) error, each func([]byte) error) error {
	var a Agreed
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		a, err = s.kept(v, id, time.Now())
		return err
	})
	if err != nil {
		return err
	}
	if a.Home != "" && a.Home != s.d.Home || s.d.Blobs == nil {
		return fault.New(fault.Unavailable, "cannot download %s here: its files are with server %s", a.ID, a.Home).WithHint("handrail login at that server: handrail servers")
	}
	host, err := s.d.Hosts.Get(ctx, a.Host)
	if err != nil {
		return err
	}
	act := doorway.Act{Action: KindCore, By: by, Host: &host, Context: policy.Context{Self: a.Person == by.ID}, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if a, err = s.kept(tx, a.ID, tx.Now()); err != nil {
			return nil, err
		}
		readers, err := s.readers(tx, a)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(readers, by.ID) {
			return nil, fault.New(fault.Denied, "cannot download %s: only who asked for it and who agreed may", a.ID).WithRule("only-who-asked-or-agreed")
		}
		return []ledger.Entry{{Action: CoreRead, Subjects: []string{by.ID, a.Person}, Target: host.Path(), Object: a.ID, Version: a.Version,
			Payload: corePayload{V: 1, ID: a.ID, Bytes: a.Bytes}}}, nil
	}}
	_, err = s.d.Door.Do(ctx, act, func(ctx context.Context, _ doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		if err := began(a); err != nil {
			return ledger.Failed, nil, err
		}
		return "", nil, s.unseal(ctx, a, each)
	})
	return err
}

// unseal reads the parts, each of them checked before it is opened.
func (s *Inspections) unseal(ctx context.Context, a Agreed, each func([]byte) error) error {
	key, err := base64.StdEncoding.DecodeString(a.Key)
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot open the dump: its key is damaged")
	}
	private, err := s.d.Seals.Open(a.Look, key, []byte(a.ID))
	if err != nil {
		return err
	}
	open, err := seal.NewReader(&reader{ctx: ctx, from: s.d.Blobs, look: a.Look, sums: strings.Fields(a.Parts)}, private, wire.InspectSpec{What: wire.InspectCore, ID: a.Look}.SealInfo())
	if err != nil {
		return err
	}
	unpack, err := zstd.NewReader(open, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot open the dump")
	}
	defer unpack.Close()
	left := a.Bytes
	b := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(unpack, b)
		if left -= int64(n); left < 0 {
			return fault.New(fault.Conflict, "cannot open the dump: it is longer than it was said to be")
		}
		if n > 0 {
			if err := each(b[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case err != io.EOF && err != io.ErrUnexpectedEOF: // a part that was touched says so itself
			return fault.Wrap(fault.KindOf(err), err, "cannot open the dump")
		case left > 0:
			return fault.New(fault.Conflict, "cannot open the dump: it is shorter than it was said to be")
		default:
			return nil
		}
	}
}

// reader reads the parts one after another.
type reader struct {
	ctx  context.Context
	from blob.Store
	look string
	sums []string
	next int
	now  []byte
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.now) == 0 {
		if r.next == len(r.sums) {
			return 0, io.EOF
		}
		if err := r.load(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.now)
	r.now = r.now[n:]
	return n, nil
}

func (r *reader) load() error {
	in, err := r.from.Get(r.ctx, partName(r.look, r.next), 0, -1)
	if err != nil {
		return err
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, partSize+1))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read part %d of the dump", r.next+1)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != r.sums[r.next] {
		return fault.New(fault.Conflict, "cannot open the dump: part %d is not what was put there", r.next+1)
	}
	r.now, r.next = b, r.next+1
	return nil
}

// Remove destroys a dump before its time is over.
func (s *Inspections) Remove(ctx context.Context, by identity.Principal, id string) (a Agreed, err error) {
	err = s.d.Store.View(ctx, func(v *store.View) (err error) {
		a, err = s.kept(v, id, time.Now())
		return err
	})
	if err != nil {
		return a, err
	}
	host, err := s.d.Hosts.Get(ctx, a.Host)
	if err != nil {
		return a, err
	}
	_, err = s.d.Door.Do(ctx, doorway.Act{Action: KindCore, By: by, Host: &host, Context: policy.Context{Self: a.Person == by.ID}, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if a, err = s.kept(tx, a.ID, tx.Now()); err != nil {
			return nil, err
		}
		readers, err := s.readers(tx, a)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(readers, by.ID) && !slices.Contains(by.Groups, "admin") && !slices.Contains(by.Groups, "operator") {
			return nil, fault.New(fault.Denied, "cannot remove %s: who asked, who agreed, operators and admins may", a.ID)
		}
		a.Removed = tx.Now().UnixMicro()
		a.Until = a.Removed
		a, err = a.to(tx, StateKept)
		return []ledger.Entry{{Action: CoreRemoved, Subjects: []string{by.ID, a.Person}, Target: host.Path(), Object: a.ID, Version: a.Version,
			Payload: corePayload{V: 1, ID: a.ID, Bytes: a.Bytes}}}, err
	}}, nil)
	if err != nil {
		return a, err
	}
	s.nudge()
	return a, s.expire(ctx, a)
}

func (s *Inspections) nudge() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// expireEvery is how often it is looked, beside when something is due.
const expireEvery = time.Minute

// Run destroys dumps whose time is over, until ctx ends.
func (s *Inspections) Run(ctx context.Context) error {
	for {
		next, err := s.Expire(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			s.d.Log.Error("core dumps whose time is over could not all be destroyed", "error", err)
		}
		due := time.NewTimer(max(min(next, expireEvery), time.Second))
		select {
		case <-ctx.Done():
			due.Stop()
			return nil
		case <-s.kick:
		case <-due.C:
		}
		due.Stop()
	}
}

// Expire destroys what is over, and says when the next one is. Several servers
// may do it at once: a key is destroyed once for all, a row moves once.
func (s *Inspections) Expire(ctx context.Context, now time.Time) (next time.Duration, err error) {
	var rows []Agreed
	err = s.d.Store.View(ctx, func(v *store.View) (err error) {
		rows, err = store.All[Agreed](v, agreedColumns+`WHERE kind = $1 AND state = $2`, KindCore, StateKept)
		return err
	})
	next = expireEvery
	for _, a := range rows {
		if left := time.UnixMicro(a.Until).Sub(now); left > 0 {
			next = min(next, left)
		} else if rerr := s.expire(ctx, a); rerr != nil {
			err = rerr // the others all the same
		}
	}
	return next, err
}

// expire destroys the key, then what it opened, then says so: what is
// interrupted is done again.
func (s *Inspections) expire(ctx context.Context, a Agreed) error {
	if err := s.d.Seals.Destroy(a.Look); err != nil {
		return err
	}
	if a.Home != "" && a.Home != s.d.Home {
		return nil // its files are there, and it says the rest
	}
	if err := s.clear(ctx, a.Look); err != nil {
		return err
	}
	_, err := s.d.Store.Record(ctx, a.ID+"-gone", func(tx *store.Tx) ([]ledger.Entry, error) {
		why := "expired"
		if a.Removed != 0 {
			why = "removed"
		}
		a.Key = ""
		gone, err := a.to(tx, StateGone)
		return []ledger.Entry{{Action: CoreDestroyed, Subjects: []string{ledger.System, a.Person}, Target: "host/" + a.Host, Object: a.ID, Version: gone.Version,
			Payload: corePayload{V: 1, ID: a.ID, Bytes: a.Bytes, Ended: why}}}, err
	})
	return err
}

// recover closes what a crash of this server left in the middle: nothing of it
// can be opened, and it may be taken again.
func (s *Inspections) recover(ctx context.Context) error {
	var rows []Agreed
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		rows, err = store.All[Agreed](v, agreedColumns+`WHERE state = $1 AND home = $2`, StateTaking, s.d.Home)
		return err
	})
	if err != nil {
		return err
	}
	for _, a := range rows {
		s.discard(ctx, a.Look)
		_, err := s.d.Store.Record(ctx, a.Look+"-lost", func(tx *store.Tx) ([]ledger.Entry, error) {
			state := StateAgreed
			if a.Kind == KindUnmask {
				state = StateShown // it may have been
			}
			_, err := a.to(tx, state)
			return []ledger.Entry{{Action: CoreDestroyed, Subjects: []string{ledger.System, a.Person}, Target: "host/" + a.Host, Object: a.ID, Version: a.Version + 1,
				Payload: corePayload{V: 1, ID: a.ID, Inspection: a.Look, Ended: "lost"}}}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
