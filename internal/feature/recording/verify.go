package recording

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func bytesReader(b []byte) io.Reader { return bytes.NewReader(b) }

// claim is what the ledger says about one recording.
type claim struct {
	session string
	head    []byte // hash of the head
	pieces  []claimed
	digest  *Digest
	removed bool
}

// claimed is one piece that the ledger knows; size 0 is a hole.
type claimed struct {
	hash  string
	size  int64
	entry int64
}

// VerifyBlobs compares every recording on disk with what the ledger says. It
// needs no key. Findings name the session and the piece.
func (r *Recordings) VerifyBlobs(ctx context.Context, entries func(fn func(store.Recorded) error) error) (int64, []ledger.Finding, error) {
	// The folder is listed before the ledger is read: a recording that begins
	// meanwhile is then in neither, or in the ledger only, never a stranger.
	files, err := filepath.Glob(filepath.Join(r.deps.Dir, "*", "*"))
	if err != nil {
		return 0, nil, err
	}
	objects, err := r.inBucket(ctx)
	if err != nil {
		return 0, nil, err
	}
	claims, order, findings, err := readClaims(entries)
	if err != nil {
		return 0, findings, err
	}
	for _, f := range files {
		session := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(f), ".rec"), ".idx")
		if path, err := r.path(session); err != nil || path != f && indexPath(path) != f || claims[session] == nil {
			findings = append(findings, ledger.Finding{Where: "recording " + filepath.Base(f), What: "is not in the ledger"})
		}
	}
	for session := range objects {
		if claims[session] == nil {
			findings = append(findings, ledger.Finding{Where: "recording " + session + " in the bucket", What: "is not in the ledger"})
		}
	}
	away, err := r.elsewhere(ctx)
	if err != nil {
		return 0, findings, err
	}
	var checked int64
	for some := range slices.Chunk(order, 200) {
		places, err := r.places(ctx, some...)
		if err != nil {
			return checked, findings, err
		}
		for _, session := range some {
			if err := ctx.Err(); err != nil {
				return checked, findings, err
			}
			if away[session] && places[session].State != stateBucket {
				continue
			}
			findings = append(findings, r.check(ctx, claims[session], places[session], away[session])...)
			checked++
		}
	}
	return checked, findings, nil
}

// inBucket are the sessions of which there are objects.
func (r *Recordings) inBucket(ctx context.Context) (map[string]bool, error) {
	if r.archive == nil || r.archive.Bucket == nil {
		return nil, nil
	}
	found := map[string]bool{}
	for o, err := range r.archive.Bucket.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		if session, ok := ofPart(o.Name); ok {
			found[session] = true
		}
	}
	return found, nil
}

// elsewhere are the sessions that other servers answer for.
func (r *Recordings) elsewhere(ctx context.Context) (map[string]bool, error) {
	if r.deps.Elsewhere == nil {
		return nil, nil
	}
	return r.deps.Elsewhere(ctx)
}

// readClaims folds the ledger into one claim a recording.
func readClaims(entries func(fn func(store.Recorded) error) error) (map[string]*claim, []string, []ledger.Finding, error) {
	claims := map[string]*claim{}
	var order []string
	var findings []ledger.Finding
	var gone []string
	err := entries(func(e store.Recorded) error {
		a := e.Parsed.Action
		if a == ActionRemoved {
			if removed, ok := payloadRemoved(e.Payload); ok {
				gone = append(gone, removed.Sessions...)
				return nil
			}
			findings = append(findings, ledger.Finding{Where: fmt.Sprintf("entry #%d", e.Seq), What: "cannot be read"})
			return nil
		}
		if a != ActionStarted && a != ActionChunks && a != ActionClosed {
			return nil
		}
		c := claims[e.Parsed.Session]
		if c == nil {
			c = &claim{session: e.Parsed.Session}
			claims[c.session] = c
			order = append(order, c.session)
		}
		if e.Payload == nil {
			findings = append(findings, ledger.Finding{Where: fmt.Sprintf("payload of #%d", e.Seq), What: "is missing: " + string(a)})
			return nil
		}
		if what := c.fold(a, e); what != "" {
			findings = append(findings, ledger.Finding{Where: fmt.Sprintf("entry #%d", e.Seq), What: what})
		}
		return nil
	})
	for _, session := range gone {
		if c := claims[session]; c != nil {
			c.removed = true
		}
	}
	return claims, order, findings, err
}

// fold adds one entry; it returns what is wrong with it.
func (c *claim) fold(a ledger.Action, e store.Recorded) string {
	switch a {
	case ActionStarted:
		var p started
		if json.Unmarshal(e.Payload, &p) != nil {
			return "cannot be read"
		}
		c.head = p.Head
	case ActionClosed:
		var d Digest
		if json.Unmarshal(e.Payload, &d) != nil {
			return "cannot be read"
		}
		c.digest = &d
	default:
		var p ledger.Chunks
		if json.Unmarshal(e.Payload, &p) != nil || len(p.Hashes) != len(p.Sizes) || p.First < 0 || p.First > 1<<32 {
			return "cannot be read"
		}
		for i, h := range p.Hashes {
			if what := c.claim(p.First+int64(i), claimed{hash: h, size: p.Sizes[i], entry: e.Seq}); what != "" {
				return what
			}
		}
	}
	return ""
}

func (c *claim) claim(n int64, p claimed) string {
	if p.size <= 0 {
		return fmt.Sprintf("piece %d of session %s has no size", n, c.session)
	}
	for int64(len(c.pieces)) <= n {
		if int64(len(c.pieces)) < n-1<<20 {
			return fmt.Sprintf("piece %d of session %s comes from nowhere", n, c.session)
		}
		c.pieces = append(c.pieces, claimed{})
	}
	if had := c.pieces[n]; had.size != 0 && (had.hash != p.hash || had.size != p.size) {
		return fmt.Sprintf("piece %d of session %s was another in #%d", n, c.session, had.entry)
	}
	c.pieces[n] = p
	return ""
}

// check compares a recording with its claim, wherever it lies: its file, and its
// objects too where there are both.
func (r *Recordings) check(ctx context.Context, c *claim, p place, away bool) (findings []ledger.Finding) {
	add := func(format string, args ...any) []ledger.Finding {
		return append(findings, ledger.Finding{Where: "recording " + c.session, What: fmt.Sprintf(format, args...)})
	}
	path, err := r.path(c.session)
	if err != nil {
		return add("has an impossible name")
	}
	f, err := os.Open(path)
	switch {
	case err == nil:
		defer f.Close()
		findings = c.compare(f)
	case !errors.Is(err, os.ErrNotExist):
		return add("cannot be read: %v", err)
	case len(c.pieces) > 0 && !c.removed && p.State != stateBucket && !away:
		return add("is missing")
	}
	if p.State != stateBucket || c.removed {
		return findings
	}
	in, err := r.objects(ctx, p)
	if err != nil {
		return add("cannot be read: %v", err)
	}
	defer in.Close()
	found := c.compare(in)
	if err := broken(in); err != nil {
		return add("cannot be read: %v", err)
	}
	for _, f := range found {
		f.What += " (in the bucket)"
		findings = append(findings, f)
	}
	return findings
}

// compare reads a recording and says in what it is not what the ledger claims.
func (c *claim) compare(f io.Reader) (findings []ledger.Finding) {
	add := func(where, format string, args ...any) {
		findings = append(findings, ledger.Finding{Where: "recording " + c.session + where, What: fmt.Sprintf(format, args...)})
	}
	in := bufio.NewReaderSize(f, 256<<10)
	buf := make([]byte, 0, 128<<10)
	for n, p := range c.pieces {
		if p.size == 0 {
			add(fmt.Sprintf(" piece %d", n), "is not in the ledger")
			return findings
		}
		var ok bool
		if buf, ok = samePiece(in, p, buf); !ok {
			add(fmt.Sprintf(" piece %d", n), "does not have the bytes that #%d commits to", p.entry)
			return findings // what follows has no place to start from
		}
	}
	findings = append(findings, c.checkEnd(in)...)
	return findings
}

func samePiece(in io.Reader, p claimed, buf []byte) ([]byte, bool) {
	h := newHasher()
	if int64(cap(buf)) < min(p.size, 128<<10) {
		buf = make([]byte, 0, 128<<10)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, io.LimitReader(struct{ io.Reader }{in}, p.size), buf[:cap(buf)])
	sum := h.next()
	return buf, err == nil && n == p.size && hex.EncodeToString(sum[:]) == p.hash
}

// checkEnd checks what follows the last piece that the ledger knows.
func (c *claim) checkEnd(in io.Reader) (findings []ledger.Finding) {
	where := "recording " + c.session
	if c.digest == nil {
		if len(c.pieces) > 0 {
			return nil // live: the rest is not told yet
		}
		_, raw, err := readHeader(in)
		h := newHasher()
		h.Write(raw)
		if sum := h.next(); err != nil || c.head != nil && !bytes.Equal(sum[:], c.head) {
			return []ledger.Finding{{Where: where + " piece 0", What: "does not have the head that the ledger commits to"}}
		}
		return nil
	}
	if n := len(c.pieces); int64(n) != c.digest.Pieces || n > 0 && c.pieces[n-1].hash != c.digest.Hash {
		findings = append(findings, ledger.Finding{Where: where, What: "does not end as its closing entry says"})
	}
	if n, _ := io.Copy(io.Discard, in); n > 0 {
		findings = append(findings, ledger.Finding{Where: where, What: fmt.Sprintf("has %d bytes after its end", n)})
	}
	return findings
}

// ExportBlobs hands out every piece that the ledger knows, for an export.
func (r *Recordings) ExportBlobs(ctx context.Context, entries func(fn func(store.Recorded) error) error, put func(hash string, body io.Reader) error) error {
	claims, order, _, err := readClaims(entries)
	if err != nil {
		return err
	}
	away, err := r.elsewhere(ctx)
	if err != nil {
		return err
	}
	for _, session := range order {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.exportOne(ctx, claims[session], away[session], put); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recordings) exportOne(ctx context.Context, c *claim, away bool, put func(hash string, body io.Reader) error) error {
	if len(c.pieces) == 0 || c.removed {
		return nil
	}
	f, err := r.source(ctx, c.session)
	if away && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot export the recording of session %s", c.session)
	}
	defer f.Close()
	for _, p := range c.pieces {
		piece := io.LimitReader(f, p.size)
		if err := put(p.hash, piece); err != nil {
			return err
		}
		// What put has not read, because it had that piece, is passed over.
		if _, err := io.Copy(io.Discard, piece); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot export the recording of session %s", c.session)
		}
		if err := broken(f); err != nil {
			return err
		}
	}
	return nil
}
