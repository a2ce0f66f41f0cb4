package recording

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
)

// The index of a recording is its text, packed and sealed under a key that is
// made of the recording's own, so that whoever cannot replay it cannot search
// it, and nobody can after an erasure. It lies beside the recording; it can be
// made again, and the ledger does not know it.
//
//	magic  the recording's head  salt  sealed text
//
// Nothing in it is the same for two recordings with the same words.
const (
	indexMagic = "handrail-index-1\n"
	indexName  = "index"
	saltSize   = 32

	maxText      = 8 << 20 // bytes of one recording's text
	maxIndexFile = maxText + maxHeader + 1<<10
)

// text is all lines of a recording.
type text struct {
	lines []Line
	cut   bool // the recording has more text than an index holds
}

// encode packs lines: µs since the line before, kind, length, text.
func (t *text) encode() []byte {
	out := []byte{0}
	if t.cut {
		out[0] = 1
	}
	var last time.Duration
	for _, l := range t.lines {
		out = binary.AppendVarint(out, (l.At - last).Microseconds())
		out = append(out, byte(l.Kind))
		out = binary.AppendUvarint(out, uint64(len(l.Text)))
		out = append(out, l.Text...)
		last = l.At.Truncate(time.Microsecond)
	}
	return out
}

var errIndex = errors.New("the index of a recording cannot be read")

// parseText reads what encode made.
func parseText(b []byte) (*text, error) {
	if len(b) == 0 || b[0] > 1 || len(b) > 2*maxText {
		return nil, errIndex
	}
	t := &text{cut: b[0] == 1}
	all := string(b) // of which lines are parts
	var at int64
	for b = b[1:]; len(b) > 0; {
		d, n := binary.Varint(b)
		if n <= 0 || len(b) == n {
			return nil, errIndex
		}
		kind := Kind(b[n])
		b = b[n+1:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size > 4*maxLine || uint64(len(b)-n) < size || d > 1<<50 || d < -1<<50 {
			return nil, errIndex
		}
		if at += d; at < 0 || at > 1<<53 {
			return nil, errIndex
		}
		from := len(all) - len(b) + n
		t.lines = append(t.lines, Line{At: time.Duration(at) * time.Microsecond, Kind: kind, Text: all[from : from+int(size)]})
		b = b[n+int(size):]
	}
	return t, nil
}

// text reads the recording to its end.
func (rd *Reader) text() (*text, error) {
	t, size := &text{}, 0
	out := func(l Line) {
		if size += len(l.Text) + 8; size > maxText {
			t.cut = true
			return
		}
		t.lines = append(t.lines, l)
	}
	scribes := map[Kind]*scribe{}
	for _, k := range []Kind{Input, Output, Error} {
		scribes[k] = &scribe{kind: k, out: out}
	}
	for !t.cut {
		e, err := rd.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if e.Kind == Typed {
			e.Kind = Input
		}
		if s := scribes[e.Kind]; s != nil {
			s.take(e.Offset, e.Data)
		}
	}
	for _, k := range []Kind{Input, Output, Error} {
		scribes[k].end()
	}
	return t, nil
}

// indexCipher is of one index alone: its salt is never used again.
func indexCipher(dataKey, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, dataKey, salt, "handrail-recording-index-v1", 32)
	if err != nil {
		return nil, err
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

var indexNonce [12]byte

// indexDecoders are kept, since each has buffers of its own.
var indexDecoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxText), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err // of the options: never
	}
	return d
}}

func (r *Recordings) sealIndex(head Header, dataKey []byte, t *text) ([]byte, error) {
	raw, err := head.encode()
	if err != nil {
		return nil, err
	}
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	aead, err := indexCipher(dataKey, salt)
	if err != nil {
		return nil, err
	}
	out := append(append([]byte(indexMagic), raw...), salt...)
	return aead.Seal(out, indexNonce[:], r.enc.EncodeAll(t.encode(), nil), []byte(head.Session)), nil
}

// openIndex opens what sealIndex made. The head in it is whoever's wrote the
// file: it is worth no more than that its key opens the rest, and a key that
// anybody can wrap (version 1) is not taken.
func (r *Recordings) openIndex(session string, raw []byte) (*text, error) {
	rest, ok := bytes.CutPrefix(raw, []byte(indexMagic))
	if !ok || len(raw) > maxIndexFile {
		return nil, errIndex
	}
	in := bytes.NewReader(rest)
	head, _, err := readHeader(in)
	if err != nil || head.Session != session || head.V < 2 || in.Len() < saltSize {
		return nil, errIndex
	}
	key, err := r.dataKey(head)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(commitKey(key), head.KeyCommit) {
		return nil, errIndex
	}
	salt, sealed := rest[len(rest)-in.Len():][:saltSize], rest[len(rest)-in.Len()+saltSize:]
	aead, err := indexCipher(key, salt)
	if err != nil {
		return nil, errIndex
	}
	packed, err := aead.Open(nil, indexNonce[:], sealed, []byte(session))
	if err != nil {
		return nil, errIndex
	}
	dec, ok := indexDecoders.Get().(*zstd.Decoder)
	if !ok {
		return nil, errIndex
	}
	defer indexDecoders.Put(dec)
	plain, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, errIndex
	}
	return parseText(plain)
}

// textOf is the text of a recording that has ended: of its index, which is made
// if there is none, or if it does not open.
func (r *Recordings) textOf(ctx context.Context, session string) (*text, error) {
	raw, err := r.indexBytes(ctx, session)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		t, err := r.openIndex(session, raw)
		if !errors.Is(err, errIndex) {
			return t, err
		}
	}
	t, _, err := r.makeIndex(ctx, session)
	return t, err
}

// indexBytes finds an index, here or in the bucket; nil is none.
func (r *Recordings) indexBytes(ctx context.Context, session string) ([]byte, error) {
	path, err := r.path(session)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(indexPath(path))
	if err == nil {
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, maxIndexFile+1))
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read the index of session %s", session)
		}
		return raw, nil
	}
	if _, err := os.Stat(path); err == nil || r.archive == nil || r.archive.Bucket == nil {
		return nil, nil
	}
	in, err := r.archive.Bucket.Get(ctx, folderOf(session)+indexName, 0, -1)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer in.Close()
	raw, err := io.ReadAll(io.LimitReader(in, maxIndexFile+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the index of session %s", session)
	}
	return raw, nil
}

// makeIndex reads the whole recording, and keeps its index where it lies. That
// it cannot be kept is no failure: it is made again.
func (r *Recordings) makeIndex(ctx context.Context, session string) (*text, []byte, error) {
	rd, err := r.Open(ctx, session)
	if err != nil {
		return nil, nil, err
	}
	defer rd.Close()
	t, err := rd.text()
	if err != nil || rd.head.V < 2 {
		return t, nil, err
	}
	if rd.ending == 0 && !t.cut || r.isLive(session) {
		return t, nil, nil // it goes on
	}
	key, err := r.dataKey(rd.head)
	if err != nil {
		return t, nil, err
	}
	raw, err := r.sealIndex(rd.head, key, t)
	if err != nil {
		return t, nil, err
	}
	path, err := r.path(session)
	if err != nil {
		return t, nil, err
	}
	if _, err := os.Stat(path); err == nil {
		err = writeAside(indexPath(path), raw)
		if err != nil {
			r.deps.Log.Warn("the index of a recording could not be kept", "session", session, "error", err)
		}
	} else if r.archive != nil && r.archive.Bucket != nil {
		r.putIndex(ctx, session, raw)
	}
	return t, raw, nil
}

// writeAside replaces a file whose loss would cost nothing but time.
func writeAside(path string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".idx-")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// putIndex puts an index into the bucket, in place of one that does not open.
func (r *Recordings) putIndex(ctx context.Context, session string, raw []byte) {
	if len(raw) == 0 || len(raw) > blob.MaxSize {
		return
	}
	name := folderOf(session) + indexName
	err := r.archive.Bucket.Put(ctx, name, bytes.NewReader(raw))
	if fault.KindOf(err) == fault.Conflict && err != nil {
		had, gerr := r.archive.Bucket.Get(ctx, name, 0, -1)
		if gerr != nil {
			return
		}
		there, _ := io.ReadAll(io.LimitReader(had, maxIndexFile+1))
		had.Close()
		if _, err = r.openIndex(session, there); !errors.Is(err, errIndex) {
			return // another server was first, and its index is as good
		}
		if err = r.archive.Bucket.Delete(ctx, name); err == nil {
			err = r.archive.Bucket.Put(ctx, name, bytes.NewReader(raw))
		}
	}
	if err != nil {
		r.deps.Log.Warn("the index of a recording could not be put into the bucket", "session", session, "error", err)
	}
}

// shareIndex puts the index of a file that goes to the bucket there too. Without
// the replay key there is none, and nobody can search.
func (r *Recordings) shareIndex(ctx context.Context, session string) {
	raw, err := r.indexBytes(ctx, session)
	if err == nil && raw == nil {
		_, raw, err = r.makeIndex(ctx, session)
	}
	if err != nil {
		r.deps.Log.Info("a recording has no index", "session", session, "error", err)
		return
	}
	r.putIndex(ctx, session, raw)
}

// Find calls found with the lines of a recording that hold some words, whatever
// their case, until it says false. cut says that the end was not searched.
func (r *Recordings) Find(ctx context.Context, session, words string, found func(Line) bool) (cut bool, err error) {
	t, err := r.textOf(ctx, session)
	if err != nil {
		return false, err
	}
	words = strings.ToLower(words)
	for _, l := range t.lines {
		if strings.Contains(strings.ToLower(l.Text), words) && !found(l) {
			break
		}
	}
	return t.cut, nil
}
