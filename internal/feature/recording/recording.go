// Package recording keeps what happened in a session: it writes it before
// anybody sees it, seals it so that only a replay can read it, chains it so
// that nobody can change it unnoticed, and plays it back.
//
// What must stay true:
//   - An event is in the file (write(2)) when Recorder.Write returns; the
//     caller forwards it only then. fsync follows per piece, off that path.
//   - No recorder, no session: room on the disk is reserved before a session
//     opens, and a recorder that cannot write ends its session.
//   - The hash of each piece (64 KiB or 5 s) reaches the ledger within about a
//     second of its fsync; the closing leaf holds the digest of the whole.
//   - After a crash Recover seals what the disk holds, so that every byte of
//     the file is covered by the ledger again.
package recording

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// The ledger actions of this package.
const (
	ActionStarted ledger.Action = "recording.started"
	ActionChunks                = ledger.ActionChunks
	ActionClosed  ledger.Action = "recording.closed"
)

// Actions lists what this package writes to the ledger.
func Actions() []ledger.Action {
	return []ledger.Action{ActionStarted, ActionChunks, ActionClosed, ActionArchived, ActionDelayed, ActionCaughtUp, ActionRemoved}
}

// Subjects seals to the person a session is about; keyring.Subjects does it.
type Subjects interface {
	Seal(subject string, plain, ad []byte) ([]byte, error)
	Open(subject string, sealed, ad []byte) ([]byte, error)
}

// Replay seals to the key that replays, which is kept apart; keyring.ReplayKey
// does it.
type Replay interface {
	WrapReplay(dataKey []byte) ([]byte, error)
	OpenReplay(wrapped []byte) ([]byte, error)
}

// Bounds are the limits of recording; zero fields take the defaults.
type Bounds struct {
	ChunkBytes int           // a piece is sealed at that size; 64 KiB
	ChunkAge   time.Duration // or at that age; 5 s
	BulkHead   int64         // of a stream without a terminal the first so many bytes are kept; 1 MiB
	BulkTail   int           // and the last so many; 64 KiB
	PerSession int64         // room reserved before a session opens; 4 MiB
	KeepFree   int64         // room on the disk that recordings never take; 64 MiB
	Total      int64         // room for all recordings together; 0: the disk
	Patience   time.Duration // how long a session waits for room before it ends; 10 s
	Unsynced   int64         // bytes of one session that may wait for fsync; 8 MiB
}

func (b Bounds) withDefaults() Bounds {
	set := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	if b.ChunkBytes == 0 {
		b.ChunkBytes = 64 << 10
	}
	if b.ChunkAge == 0 {
		b.ChunkAge = 5 * time.Second
	}
	if b.BulkTail == 0 {
		b.BulkTail = 64 << 10
	}
	if b.Patience == 0 {
		b.Patience = 10 * time.Second
	}
	set(&b.BulkHead, 1<<20)
	set(&b.PerSession, 4<<20)
	set(&b.KeepFree, 64<<20)
	set(&b.Unsynced, 8<<20)
	return b
}

// Deps is what recordings need.
type Deps struct {
	Dir      string
	Store    Ledger
	Subjects Subjects
	Replay   Replay
	Bounds   Bounds
	Log      *slog.Logger
	// Free returns the bytes free where the recordings lie; nil asks the disk.
	Free func() (int64, error)
	// OpenFile opens the file of a new recording; nil creates it in Dir. Tests
	// give a disk that fills up.
	OpenFile func(path string) (File, error)
	// Elsewhere are the sessions whose recordings lie with other servers, which
	// verify and export them; nil is none.
	Elsewhere func(ctx context.Context) (map[string]bool, error)
	// Archive is where finished recordings go; nil: they stay, and none is removed.
	Archive *Archive
}

// Ledger is the part of the store that recordings need.
type Ledger interface {
	Record(ctx context.Context, id string, fn func(*store.Tx) ([]ledger.Entry, error)) (store.Receipt, error)
}

// File is what a recorder writes to.
type File interface {
	Write(p []byte) (int, error)
	Truncate(size int64) error
	Seek(offset int64, whence int) (int64, error)
	Sync() error
	Close() error
}

// Recordings is all recordings of one server.
type Recordings struct {
	deps   Deps
	bounds Bounds
	enc    *zstd.Encoder
	anchor *anchor

	archive *Archive
	shared  shared

	mu       sync.Mutex
	live     map[string]*Recorder
	reserved int64
}

// New opens the folder of recordings.
func New(d Deps) (*Recordings, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the folder of recordings")
	}
	// Level "fastest" and a small window: compression is for the disk, and may
	// never be what a person waits for.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2),
		zstd.WithWindowSize(64<<10), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	r := &Recordings{deps: d, bounds: d.Bounds.withDefaults(), enc: enc, live: map[string]*Recorder{}}
	r.anchor = newAnchor(d.Store, d.Log)
	r.archive, r.shared.kick, r.shared.unread = d.Archive, make(chan struct{}, 1), map[string]bool{}
	return r, nil
}

// Run seals pieces that are old enough, syncs them, and tells the ledger their
// hashes, once a second. It returns when ctx ends, after a last round.
func (r *Recordings) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.Tend(ctx, time.Now())
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			r.Tend(last, time.Now())
			return nil
		}
	}
}

// Tend is one round of Run: seal what is old, sync, tell the ledger.
func (r *Recordings) Tend(ctx context.Context, now time.Time) {
	r.mu.Lock()
	recs := make([]*Recorder, 0, len(r.live))
	for _, rec := range r.live {
		recs = append(recs, rec)
	}
	r.mu.Unlock()
	for _, rec := range recs {
		rec.tend(now)
	}
	r.anchor.flush(ctx)
}

// sessionID is what may become a file name.
var sessionID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^s-[0-9a-hjkmnp-tv-z]{4,32}$`) })

// path is where the recording of a session lies: 256 folders, so that none
// grows without bound.
func (r *Recordings) path(session string) (string, error) {
	if !sessionID().MatchString(session) {
		return "", fault.New(fault.NotFound, "cannot find the recording of session %q", session)
	}
	return filepath.Join(r.deps.Dir, session[2:4], session+".rec"), nil
}

// Reservation is room kept for one session.
type Reservation struct {
	r    *Recordings
	once sync.Once
	size int64
}

// Reserve keeps room for one session, or says why there is none. It comes
// before anything is decided or recorded about the session.
func (r *Recordings) Reserve() (*Reservation, error) {
	free, err := r.free()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot record a session")
	}
	if s := r.Status(); s.Limit > 0 && s.Bytes >= s.Limit {
		return nil, fault.New(fault.Exhausted, "cannot record a session: %d MiB of recordings wait for the bucket, and no more may", s.Bytes>>20).WithHint("handrail recordings")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	size := r.bounds.PerSession
	if free-r.reserved-size < r.bounds.KeepFree {
		return nil, fault.New(fault.Exhausted, "cannot record a session: the disk of the recordings is full (%d MiB free, %d MiB kept for live sessions)",
			free>>20, (r.reserved+r.bounds.KeepFree)>>20).WithHint("make room where %s lies; nothing opens unrecorded", r.deps.Dir)
	}
	r.reserved += size
	return &Reservation{r: r, size: size}, nil
}

// Release gives the room back; more than once is harmless.
func (v *Reservation) Release() {
	v.once.Do(func() {
		v.r.mu.Lock()
		v.r.reserved -= v.size
		v.r.mu.Unlock()
	})
}

// Full says whether a new session would be refused for want of room.
func (r *Recordings) Full() bool {
	v, err := r.Reserve()
	if err != nil {
		return true
	}
	v.Release()
	return false
}

func (r *Recordings) free() (int64, error) {
	if r.deps.Free != nil {
		return r.deps.Free()
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(r.deps.Dir, &st); err != nil {
		return 0, err
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	if r.bounds.Total > 0 {
		free = min(free, r.bounds.Total-r.used())
	}
	return free, nil
}

// used walks the folder; it is only asked when a total is configured.
func (r *Recordings) used() (sum int64) {
	files, _ := filepath.Glob(filepath.Join(r.deps.Dir, "*", "*.rec"))
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			sum += st.Size()
		}
	}
	return sum
}

// Draft is a recording that is decided but not begun: its key exists and its
// header is fixed, so that the ledger can hold the header's hash before the
// first byte.
type Draft struct {
	Header Header
	key    []byte
	bytes  []byte
	chain  [sha256.Size]byte
}

// started is the payload of recording.started.
type started struct {
	V         int    `json:"v"`
	Session   string `json:"session"`
	Head      []byte `json:"head"`       // SHA-256 of the file's head
	KeyCommit []byte `json:"key_commit"` // SHA-256 of the data key
}

// Draft makes the data key and the header of a recording.
func (r *Recordings) Draft(h Header) (*Draft, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	h.V, h.KeyCommit = 3, commitKey(key)
	// There is one way to the data key: the replay key, and then the person's own.
	// Without the replay key the rest of the ring replays nothing. What the replay key opens is sealed to the person too: when they are
	// erased, no key opens it any more, and every byte stays as it was proven.
	inner, err := r.deps.Subjects.Seal(h.Person, key, replayContext(h.Session))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the key of a recording")
	}
	if h.KeyForReplay, err = r.deps.Replay.WrapReplay(inner); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the key of a recording")
	}
	head, err := h.encode()
	if err != nil {
		return nil, err
	}
	return &Draft{Header: h, key: key, bytes: head, chain: sha256.Sum256(head)}, nil
}

// Entry is what the ledger holds of a recording before it begins; it goes into
// the transaction that opens the session.
func (d *Draft) Entry() ledger.Entry {
	return ledger.Entry{
		Action: ActionStarted, Subjects: []string{d.Header.Person}, Session: d.Header.Session, Target: "host/" + d.Header.Host,
		Payload: started{V: 1, Session: d.Header.Session, Head: d.chain[:], KeyCommit: d.Header.KeyCommit}, SealTo: "system",
	}
}

func keyContext(session string) []byte { return []byte("recording " + session) }

func replayContext(session string) []byte { return []byte("replay " + session) }

func commitKey(key []byte) []byte {
	sum := sha256.Sum256(append([]byte("handrail-recording-key-v1\n"), key...))
	return sum[:]
}
