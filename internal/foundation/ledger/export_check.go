package ledger

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// maxBundleFile bounds a file of 256 payloads of at most 1 MiB each.
const maxBundleFile = TileWidth * (1<<20 + 64)

// bundle is 256 entries, or fewer at the end, on their way through a worker.
type bundle struct {
	n        int64
	count    int
	used     []string
	hashes   []tlog.Hash // of the leaves, in order
	root     tlog.Hash   // of all 256, when it is full
	payloads int64
	findings []Finding
	absent   []absentPayload
	pruned   []Pruned
	erased   []string
	chunks   map[int64][]byte
	removed  []string // sessions
	done     chan struct{}
}

func (b *bundle) find(where, what string, args ...any) {
	if len(b.findings) < MaxFindings {
		b.findings = append(b.findings, Finding{Where: where, What: fmt.Sprintf(what, args...)})
	}
}

// entries hashes all leaves and payloads, on all processors, and puts the tree
// together in order. Workers share nothing but the zip, which they only read.
func (v *exportCheck) entries() {
	for n := range v.signed {
		v.sizes = append(v.sizes, n)
	}
	slices.Sort(v.sizes)
	workers := runtime.GOMAXPROCS(0)
	work := make(chan *bundle)
	order := make(chan *bundle, 4*workers) // bounds what is in memory
	for range workers {
		go func() {
			w := worker{r: v.r, files: v.files}
			for b := range work {
				w.check(b)
				close(b.done)
			}
		}()
	}
	go func() {
		defer close(work)
		defer close(order)
		for n := int64(0); n*TileWidth < v.head.N; n++ {
			b := &bundle{n: n, count: int(min(TileWidth, v.head.N-n*TileWidth)), chunks: map[int64][]byte{}, done: make(chan struct{})}
			order <- b
			work <- b
		}
	}()
	for b := range order {
		<-b.done
		v.merge(b)
		if v.progress != nil {
			v.progress(min((b.n+1)*TileWidth, v.head.N), v.head.N)
		}
	}
	v.lastTiles()
}

// worker checks bundles, one after the other, in buffers that it keeps: memory
// that is new each time costs as much as a third of the hashing.
type worker struct {
	r                      io.ReaderAt
	files                  map[string]*zip.File
	leaves, payloads, tile []byte
	text                   [commitLen]byte
	row                    [TileWidth / 2]tlog.Hash
}

// read reads a file of the zip into a buffer that is used again; nil when it is
// not there.
func (w *worker) read(b *bundle, name string, buffer *[]byte) []byte {
	f := w.files[name]
	if f == nil {
		b.find(name, "it is missing")
		return nil
	}
	b.used = append(b.used, name)
	body, err := readStored(w.r, f, maxBundleFile, *buffer)
	if err != nil {
		b.find(name, "%v", err)
		return nil
	}
	if cap(body) <= keptBuffer {
		*buffer = body
	}
	return body
}

// keptBuffer bounds what a worker keeps, since one bundle may be very long.
const keptBuffer = 1 << 20

// check reads and hashes one bundle.
func (w *worker) check(b *bundle) {
	leaves := w.read(b, tilePath("entries", b.n, b.count), &w.leaves)
	payloads := w.read(b, exportPayload+strconv.FormatInt(b.n, 10), &w.payloads)
	tile := w.read(b, tilePath("0", b.n, b.count), &w.tile)
	if leaves == nil {
		return
	}
	b.hashes = make([]tlog.Hash, 0, b.count)
	for i := range b.count {
		seq := b.n*TileWidth + int64(i)
		if len(leaves) < 2 || len(leaves) < 2+int(binary.BigEndian.Uint16(leaves)) {
			b.find(fmt.Sprintf("entry #%d", seq), "it is missing or cut short")
			return
		}
		n := 2 + int(binary.BigEndian.Uint16(leaves))
		// RFC 6962: SHA-256(0x00 ‖ leaf). The length before the leaf was read,
		// so that its last byte can become that zero, and nothing is copied.
		leaves[1] = 0
		own := tlog.Hash(sha256.Sum256(leaves[1:n]))
		leaf := leaves[2:n]
		leaves = leaves[n:]
		b.hashes = append(b.hashes, own)
		if at := i * tlog.HashSize; len(tile) >= at+tlog.HashSize && !bytes.Equal(tile[at:at+tlog.HashSize], own[:]) {
			b.find(fmt.Sprintf("entry #%d", seq), "leaf: it is not the one in its tile")
		}
		if payloads != nil {
			payloads = w.payload(b, seq, leaf, payloads)
		}
	}
	if b.count == TileWidth {
		b.root = perfectRootIn(b.hashes, w.row[:])
	}
	if len(leaves) > 0 || len(payloads) > 0 {
		b.find(tilePath("entries", b.n, b.count), "there is more than %d entries", b.count)
	}
	if tile != nil && len(tile) != b.count*tlog.HashSize {
		b.find(tilePath("0", b.n, b.count), "it has %d bytes instead of %d", len(tile), b.count*tlog.HashSize)
	}
}

// payload checks the next payload against the leaf and returns what follows.
func (w *worker) payload(b *bundle, seq int64, leaf, rest []byte) []byte {
	bad := func(what string) { b.find(fmt.Sprintf("payload of #%d", seq), "%s", what) }
	if len(rest) < 4 {
		bad("it is missing")
		return nil
	}
	size := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	// Reading every leaf in full would cost more than hashing it; what is read
	// here decides, and the rest is held by the hash.
	action := actionOf(leaf)
	if action == "" {
		b.find(fmt.Sprintf("entry #%d", seq), "leaf: it is malformed")
	}
	if action == ActionErased || size == erasedLength {
		l, err := ParseLeaf(leaf)
		if err != nil {
			b.find(fmt.Sprintf("entry #%d", seq), "leaf: %v", err)
		}
		if action == ActionErased {
			b.erased = append(b.erased, l.Object)
		}
		if size == erasedLength {
			b.absent = append(b.absent, absentPayload{seq, l.Sealer(), l.Action, l.Time})
			return rest
		}
	}
	if uint64(len(rest)) < 32+uint64(size) {
		bad("it is cut short")
		return nil
	}
	sum := sha256.Sum256(rest[:32+size]) // salt and payload lie together
	base64.StdEncoding.Encode(w.text[:], sum[:])
	if bytes.Equal(w.text[:], CommitOf(leaf)) {
		b.payloads++
	} else {
		bad("it is not the one that the leaf commits to")
	}
	if action == ActionPruned {
		if p, err := ParsePruned(rest[32 : 32+size]); err != nil || p.Through > seq {
			bad("it does not say what was pruned")
		} else {
			b.pruned = append(b.pruned, p)
		}
	}
	if action == ActionChunks {
		b.chunks[seq] = bytes.Clone(rest[32 : 32+size])
	}
	if action == ActionRemoved {
		var r Removed
		if json.Unmarshal(rest[32:32+size], &r) != nil {
			bad("it does not say what was removed")
		}
		b.removed = append(b.removed, r.Sessions...)
	}
	return rest[32+size:]
}

// merge appends a bundle to the tree; bundles come in order.
func (v *exportCheck) merge(b *bundle) {
	for _, f := range b.findings {
		v.find(f.Where, "%s", f.What)
	}
	for _, name := range b.used {
		v.seen[name] = true
	}
	v.report.Payloads += b.payloads
	v.absent = append(v.absent, b.absent...)
	v.pruned = append(v.pruned, b.pruned...)
	for _, s := range b.erased {
		v.erased[s] = true
	}
	for _, session := range b.removed {
		v.removed[session] = true
	}
	for seq, payload := range b.chunks {
		v.chunksOf(seq, payload)
	}
	if v.tree.Size() != b.n*TileWidth {
		return // something is missing before; it is named
	}
	if len(b.hashes) == TileWidth && !v.signedInside(b.n*TileWidth, TileWidth) {
		v.tree.appendTile(b.root, v.tile)
		v.report.Entries += TileWidth
		for _, p := range v.signed[v.tree.Size()] {
			v.root(p)
		}
		return
	}
	for _, h := range b.hashes {
		v.tree.Append(h, v.tile)
		v.report.Entries++
		for _, p := range v.signed[v.tree.Size()] {
			v.root(p)
		}
	}
}

// signedInside says whether a signed root lies within the next n entries, so
// that the tree must be there one by one.
func (v *exportCheck) signedInside(from, n int64) bool {
	i := sort.Search(len(v.sizes), func(i int) bool { return v.sizes[i] > from })
	return i < len(v.sizes) && v.sizes[i] < from+n
}

// tile compares a full tile of a higher level; the lowest ones are compared
// hash by hash in check.
func (v *exportCheck) tile(level int, index int64, want []byte) {
	if level == 0 {
		return
	}
	v.compareTile(tilePath(strconv.Itoa(level), index, TileWidth), want)
}

func (v *exportCheck) compareTile(name string, want []byte) {
	got, ok := v.read(name, TileBytes)
	switch {
	case !ok:
		v.find(name, "it is missing")
	case !bytes.Equal(got, want):
		v.find(name, "it is not made from what lies below it")
	}
}

// lastTiles compares the tiles that are not full.
func (v *exportCheck) lastTiles() {
	if v.tree.Size() != v.head.N {
		v.find(exportHead, "%d of its %d entries are there", v.tree.Size(), v.head.N)
		return
	}
	row := v.head.N / TileWidth
	for level := 1; row > 0; level++ {
		if part := v.tree.Partial(level); len(part) > 0 {
			v.compareTile(tilePath(strconv.Itoa(level), row/TileWidth, len(part)), packTile(part))
		}
		row /= TileWidth
	}
}

// root compares a signed root with the tree at that size.
func (v *exportCheck) root(p signedPoint) {
	if v.tree.Tree().Hash == p.tree.Hash {
		return
	}
	if v.broken { // for the same reason as the first
		v.report.More++
		return
	}
	v.broken = true
	v.find(p.where, "the first %d entries are not those that were signed", p.tree.N)
}

// absences judges payloads that are not there, now that all that was erased or
// pruned is known.
func (v *exportCheck) absences() {
	for _, a := range v.absent {
		switch covered := func(p Pruned) bool { return p.Covers(a.seq, a.action, a.at) }; {
		case v.erased[a.sealer]:
			v.report.Erased++
		case slices.ContainsFunc(v.pruned, covered):
			v.report.Pruned++
		default:
			v.find(fmt.Sprintf("payload of #%d", a.seq), "it is missing, and no entry says that %s was erased", a.sealer)
		}
	}
}

// sum is the hex SHA-256 of a piece, read without loading it.
func (v *exportCheck) sum(f *zip.File) (string, error) {
	at, err := f.DataOffset()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(v.r, at, int64(f.CompressedSize64))); err != nil {
		return "", err
	}
	return strings.ToLower(hex.EncodeToString(h.Sum(nil))), nil
}
