package ledger

import (
	"archive/zip"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// An export is a zip that verifies with no server:
//
//	README                     what this is, for who opens it by hand
//	checkpoint                 the signed note that everything is verified against
//	checkpoints/N              earlier ones
//	cosigned/N                 those that outside witnesses cosigned
//	bundle                     the trust bundle: root key, log key
//	logkey                     the log key, when there is no bundle
//	tile/entries/N[.p/W]       C2SP entry bundles: 256 leaves, each with its length
//	tile/L/N                   C2SP tiles of 256 hashes
//	payloads/N                 256 payloads: length, salt, payload; erased ones have length 2³²-1
//	recordings/SHA256          pieces of recordings, named by their hash
//
// Nothing is compressed, so that verifying is bound by hashing.

const (
	exportReadme  = "README"
	exportHead    = "checkpoint"
	exportOlder   = "checkpoints/"
	exportCosign  = "cosigned/"
	exportBundle  = "bundle"
	exportLogKey  = "logkey"
	exportPayload = "payloads/"
	exportBlob    = "recordings/"
	erasedLength  = 1<<32 - 1
)

const readmeText = `This is an export of a handrail ledger. It verifies without any server:

    handrail ledger verify FILE --root sha256:…    (the pinned root key, best)
    handrail ledger verify FILE                     (trusts the keys inside)

The layout is C2SP tlog-tiles (checkpoint, tile/, tile/entries/), with the
payloads that the leaves commit to, SHA-256(salt ‖ payload), in payloads/ and
the stored pieces of recordings in recordings/, each named by its SHA-256.
`

// tilePath is the C2SP path of a tile or entry bundle; w is its width.
func tilePath(level string, n int64, w int) string {
	p := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		p = fmt.Sprintf("x%03d/%s", n%1000, p)
	}
	if w < TileWidth {
		p += ".p/" + strconv.Itoa(w)
	}
	return "tile/" + level + "/" + p
}

// ExportWriter writes an export. Entries come in order, each once.
type ExportWriter struct {
	zip      *zip.Writer
	tree     Frontier
	leaves   []byte
	payloads []byte
	pending  int
	err      error
	blobs    map[string]bool
}

// NewExport starts an export. bundle may be nil; then logKey stands in for it,
// and without either the verifier must bring the key.
func NewExport(w io.Writer, bundle []byte, logKey string) *ExportWriter {
	e := &ExportWriter{zip: zip.NewWriter(w), blobs: map[string]bool{}}
	e.file(exportReadme, []byte(readmeText))
	switch {
	case bundle != nil:
		e.file(exportBundle, bundle)
	case logKey != "":
		e.file(exportLogKey, []byte(logKey+"\n"))
	}
	return e
}

func (e *ExportWriter) file(name string, body []byte) {
	if e.err != nil {
		return
	}
	w, err := e.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	if err == nil {
		_, err = w.Write(body)
	}
	e.err = err
}

// Entry adds the next entry.
func (e *ExportWriter) Entry(leaf, salt, payload []byte) error {
	if len(leaf) > MaxLeaf {
		return fault.New(fault.Internal, "cannot export a leaf of %d bytes", len(leaf))
	}
	e.leaves = binary.BigEndian.AppendUint16(e.leaves, uint16(len(leaf)))
	e.leaves = append(e.leaves, leaf...)
	if payload == nil {
		e.payloads = binary.BigEndian.AppendUint32(e.payloads, erasedLength)
	} else {
		e.payloads = binary.BigEndian.AppendUint32(e.payloads, uint32(len(payload)))
		e.payloads = append(append(e.payloads, salt...), payload...)
	}
	e.pending++
	e.tree.Append(HashOf(leaf), func(level int, index int64, tile []byte) {
		e.file(tilePath(strconv.Itoa(level), index, TileWidth), tile)
	})
	if e.pending == TileWidth {
		e.flush()
	}
	return e.err
}

func (e *ExportWriter) flush() {
	if e.pending == 0 {
		return
	}
	n := (e.tree.Size() - 1) / TileWidth
	e.file(tilePath("entries", n, e.pending), e.leaves)
	e.file(exportPayload+strconv.FormatInt(n, 10), e.payloads)
	e.leaves, e.payloads, e.pending = e.leaves[:0], e.payloads[:0], 0
}

// Checkpoint adds an earlier checkpoint.
func (e *ExportWriter) Checkpoint(n int64, signed []byte) error {
	e.file(exportOlder+strconv.FormatInt(n, 10), signed)
	return e.err
}

// Cosigned adds a checkpoint that witnesses cosigned.
func (e *ExportWriter) Cosigned(n int64, signed []byte) error {
	e.file(exportCosign+strconv.FormatInt(n, 10), signed)
	return e.err
}

// Blob adds a piece of a recording, named by the hex of its SHA-256.
func (e *ExportWriter) Blob(hash string, body io.Reader) error {
	if b, err := hex.DecodeString(hash); err != nil || len(b) != 32 || hash != strings.ToLower(hash) {
		return fault.New(fault.Internal, "cannot export a piece of a recording: %.80q is not a SHA-256", hash)
	}
	if e.err != nil || e.blobs[hash] {
		return e.err
	}
	e.blobs[hash] = true
	w, err := e.zip.CreateHeader(&zip.FileHeader{Name: exportBlob + hash, Method: zip.Store})
	if err == nil {
		_, err = io.Copy(w, body)
	}
	e.err = err
	return err
}

// Close adds the checkpoint of exactly the entries that were added.
func (e *ExportWriter) Close(signed []byte) error {
	e.flush()
	row := e.tree.Size()
	for level := 0; row > 0; level++ { // the last tile of each level, not full
		if part := e.tree.Partial(level); len(part) > 0 {
			e.file(tilePath(strconv.Itoa(level), row/TileWidth, len(part)), packTile(part))
		}
		row /= TileWidth
	}
	e.file(exportHead, signed)
	if e.err != nil {
		return e.err
	}
	return e.zip.Close()
}

// ExportOptions say what the verifier trusts already.
type ExportOptions struct {
	RootHash string        // pinned hash of the root key
	LogKey   note.Verifier // or the log key itself, with Origin
	Origin   string
	// Anchor is a checkpoint that the verifier kept from before: the export
	// must extend it. May be nil.
	Anchor []byte
	// Witnesses are outsiders whose cosignatures the verifier wants to see.
	Witnesses []WitnessKey
}

// VerifyExport verifies an export without any server. Pass the root hash or the
// log key; without either, the keys inside are used and the report says so.
// Findings are what is wrong; an error is only what kept it from looking.
func VerifyExport(r io.ReaderAt, size int64, opts ExportOptions, progress func(done, total int64)) (Report, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return Report{}, fault.Wrap(fault.Invalid, err, "cannot read export")
	}
	v := &exportCheck{r: r, files: map[string]*zip.File{}, seen: map[string]bool{}, progress: progress, erased: map[string]bool{}, wanted: map[string]wantedPiece{}, removed: map[string]bool{}}
	for _, f := range z.File {
		if v.files[f.Name] != nil {
			v.find(f.Name, "it stands twice in the zip")
		}
		v.files[f.Name] = f
	}
	if err := v.trust(opts); err != nil {
		return v.report, err
	}
	if v.key != nil {
		v.points(opts)
		v.handOvers()
		v.witnesses(opts.Witnesses)
		v.entries()
		v.absences()
		v.blobs()
	}
	v.strangers()
	v.report.OK = len(v.report.Findings) == 0
	return v.report, nil
}

// MaxFindings bounds a report; what is beyond is counted in More.
const MaxFindings = 100

type exportCheck struct {
	r        io.ReaderAt
	files    map[string]*zip.File
	seen     map[string]bool
	report   Report
	progress func(done, total int64)
	key      note.Verifier
	origin   string
	head     tlog.Tree
	signed   map[int64][]signedPoint
	cosigned [][]byte
	hands    []signedHand
	sizes    []int64 // of signed, in order
	tree     Frontier
	erased   map[string]bool
	absent   []absentPayload
	pruned   []Pruned
	wanted   map[string]wantedPiece // by the hash of a piece
	removed  map[string]bool        // sessions
	broken   bool
}

type signedPoint struct {
	where string
	tree  tlog.Tree
}

type absentPayload struct {
	seq    int64
	sealer string
	action Action
	at     int64
}

func (v *exportCheck) find(where, what string, args ...any) {
	if len(v.report.Findings) >= MaxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, Finding{Where: where, What: fmt.Sprintf(what, args...)})
}

// read returns a whole file of the zip and remembers that it was looked at.
func (v *exportCheck) read(name string, limit int64) ([]byte, bool) {
	f := v.files[name]
	if f == nil {
		return nil, false
	}
	v.seen[name] = true
	b, err := readStored(v.r, f, limit, nil)
	if err != nil {
		v.find(name, "%v", err)
		return nil, false
	}
	return b, true
}

// readStored reads a file where it lies: it is stored, not compressed, and the
// zip's own checksum is not needed beside SHA-256. It reads into buffer where
// that is long enough.
func readStored(r io.ReaderAt, f *zip.File, limit int64, buffer []byte) ([]byte, error) {
	if f.Method != zip.Store || f.UncompressedSize64 != f.CompressedSize64 || f.UncompressedSize64 > uint64(limit) {
		return nil, fault.New(fault.Invalid, "it is compressed or too long")
	}
	at, err := f.DataOffset()
	if err != nil {
		return nil, err
	}
	b := buffer[:0]
	if uint64(cap(b)) < f.UncompressedSize64 {
		b = make([]byte, 0, f.UncompressedSize64+f.UncompressedSize64/8) // the next may be a little longer
	}
	b = b[:f.UncompressedSize64]
	if _, err := r.ReadAt(b, at); err != nil && !(err == io.EOF && len(b) == 0) {
		return nil, err
	}
	return b, nil
}

// trust settles which key signs, and says on whose word.
func (v *exportCheck) trust(opts ExportOptions) error {
	bundle, hasBundle := v.read(exportBundle, MaxBundle)
	var b Bundle
	if hasBundle {
		var err error
		if b, err = openBundle(bundle); err != nil {
			v.find(exportBundle, "%v", err)
			hasBundle = false
		}
	}
	switch {
	case opts.LogKey != nil:
		v.key, v.origin, v.report.Trust = opts.LogKey, opts.Origin, "the log key that you passed in"
		return nil
	case opts.RootHash != "":
		if !hasBundle {
			return fault.New(fault.Invalid, "cannot verify export: it has no readable trust bundle, so the root key says nothing about it").WithHint("pass the log key instead")
		}
		if RootHash(b.RootKey) != opts.RootHash {
			v.find(exportBundle, "it is signed by root key %s, not by %s", RootHash(b.RootKey), opts.RootHash)
			return nil
		}
		v.report.Trust = "the root key that you passed in"
	case hasBundle:
		v.report.Trust = "the export's own word: its root key is " + RootHash(b.RootKey) + ", compare it with the one you know"
	}
	vkey := b.LogKey
	if !hasBundle {
		raw, ok := v.read(exportLogKey, 4096)
		if !ok {
			v.find(exportLogKey, "it is missing")
			return nil
		}
		vkey = strings.TrimSpace(string(raw))
		v.report.Trust = "the export's own word: the log key inside, " + vkey
	}
	key, err := logKeys([]string{vkey})
	if err == nil && hasBundle {
		key, err = b.LogEver()
	}
	if err != nil {
		v.find(exportLogKey, "%v", err)
		return nil
	}
	if v.key, v.origin = key, b.Origin; v.origin == "" {
		v.origin = key.Name()
	}
	return nil
}

// points opens the checkpoints: the newest, the earlier ones, the verifier's own.
func (v *exportCheck) points(opts ExportOptions) {
	v.signed = map[int64][]signedPoint{}
	b, ok := v.read(exportHead, MaxCheckpoint)
	if !ok {
		v.find(exportHead, "it is missing")
		return
	}
	var err error
	if v.head, err = OpenCheckpoint(b, v.origin, v.key); err != nil {
		v.find(exportHead, "%v", err)
		return
	}
	v.report.Checkpoint = fmt.Sprintf("%d %s", v.head.N, v.head.Hash)
	v.noteSigners(exportHead, b)
	v.signed[v.head.N] = append(v.signed[v.head.N], signedPoint{exportHead, v.head})
	for name := range v.files {
		for prefix, what := range map[string]string{exportOlder: "checkpoint at ", exportCosign: "cosigned checkpoint at "} {
			if size, ok := strings.CutPrefix(name, prefix); ok {
				v.point(name, what, size)
			}
		}
	}
	if opts.Anchor == nil {
		return
	}
	tree, err := OpenCheckpoint(opts.Anchor, v.origin, v.key)
	switch {
	case err != nil:
		v.find("your checkpoint", "%v", err)
	case tree.N > v.head.N:
		v.find("ledger", "it was rolled back: the export holds %d entries, your checkpoint has %d", v.head.N, tree.N)
	default:
		v.signed[tree.N] = append(v.signed[tree.N], signedPoint{"your checkpoint", tree})
	}
}

// point opens one checkpoint beside the newest.
func (v *exportCheck) point(name, what, size string) {
	b, ok := v.read(name, MaxCheckpoint)
	if !ok {
		return
	}
	tree, err := OpenCheckpoint(b, v.origin, v.key)
	switch {
	case err != nil:
		v.find(what+size, "%v", err)
	case strconv.FormatInt(tree.N, 10) != size || tree.N > v.head.N:
		v.find(what+size, "it is the one of size %d", tree.N)
	default:
		v.report.Checkpoints++
		v.noteSigners(name, b)
		v.signed[tree.N] = append(v.signed[tree.N], signedPoint{what + size, tree})
		if strings.HasPrefix(name, exportCosign) {
			v.cosigned = append(v.cosigned, b)
		}
	}
}

// witnesses says how far each outsider cosigned; one that never did is a
// finding, since the verifier wanted to see it.
func (v *exportCheck) witnesses(keys []WitnessKey) {
	for _, k := range keys {
		w := Witnessed{Name: k.Name()}
		for _, b := range v.cosigned {
			tree, err := OpenCheckpoint(b, v.origin, v.key)
			if c := Cosignatures(b, k); err == nil && len(c) == 1 && tree.N >= w.Entries {
				w.Entries, w.Time = tree.N, c[0].Time
			}
		}
		if w.Time == 0 {
			v.find("witness "+k.Name(), "it cosigned no checkpoint of this export")
			continue
		}
		v.report.Witnesses = append(v.report.Witnesses, w)
	}
}

// blobs compares every piece of a recording with its name, and every name that
// an entry commits to with what is there.
func (v *exportCheck) blobs() {
	for hash, w := range v.wanted {
		f, seq := v.files[exportBlob+hash], w.entry
		if f == nil && v.removed[w.session] {
			continue
		}
		if f == nil {
			v.find("recording "+hash, "it is missing; entry #%d commits to it", seq)
			continue
		}
		got, err := v.sum(f)
		switch {
		case err != nil:
			v.find("recording "+hash, "%v", err)
		case got != hash:
			v.find("recording "+hash, "its content is not what entry #%d commits to", seq)
		default:
			v.report.Recordings++
		}
	}
}

// strangers are files that nothing vouches for.
func (v *exportCheck) strangers() {
	for name := range v.files {
		hash, blob := strings.CutPrefix(name, exportBlob)
		if _, wanted := v.wanted[hash]; v.seen[name] || name == exportReadme || name == exportLogKey || blob && wanted || v.key == nil {
			continue
		}
		v.find(name, "no entry vouches for it")
	}
}

// chunksOf adds the pieces that an entry commits to.
func (v *exportCheck) chunksOf(seq int64, payload []byte) {
	var c Chunks
	if json.Unmarshal(payload, &c) != nil {
		return
	}
	for _, h := range c.Hashes {
		v.wanted[h] = wantedPiece{entry: seq, session: c.Session}
	}
}

// wantedPiece is whose a piece is, and the entry that commits to it.
type wantedPiece struct {
	entry   int64
	session string
}
