package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"
)

//go:embed static
var embedded embed.FS

// files serves what never changes under /static/HASH/, where HASH covers all of
// it: scripts import each other by relative path, and a browser may keep each
// file for ever.
type files struct {
	hash string
	byte map[string]*file
}

type file struct {
	plain  []byte
	kind   string
	once   sync.Once
	packed []byte // gzip; made when first asked for
}

func loadFiles() *files {
	f := &files{byte: map[string]*file{}}
	sum := sha256.New()
	err := fs.WalkDir(embedded, "static", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := embedded.ReadFile(p)
		if err != nil {
			return err
		}
		sum.Write([]byte(p))
		sum.Write(b)
		f.byte[strings.TrimPrefix(p, "static/")] = &file{plain: b, kind: kindOf(p)}
		return nil
	})
	if err != nil { // the files are inside the binary: this cannot happen
		panic(err)
	}
	f.hash = hex.EncodeToString(sum.Sum(nil))[:12]
	return f
}

func kindOf(p string) string {
	switch path.Ext(p) {
	case ".css":
		return "text/css; charset=utf-8"
	case ".js", ".mjs":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "text/plain; charset=utf-8"
}

// path is where a file is served.
func (f *files) path(name string) string { return "/static/" + f.hash + "/" + name }

// ServeHTTP implements http.Handler. A page made by an older binary asks for
// an older hash: it gets the file of today, but may not keep it.
func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hash, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/static/"), "/")
	file, ok := f.byte[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", file.kind)
	h.Set("Vary", "Accept-Encoding")
	if hash == f.hash {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_, _ = w.Write(file.plain)
		return
	}
	file.once.Do(func() { file.packed = pack(file.plain, gzip.BestCompression) })
	h.Set("Content-Encoding", "gzip")
	_, _ = w.Write(file.packed)
}

func pack(b []byte, level int) []byte {
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, level)
	_, _ = z.Write(b)
	_ = z.Close()
	return buf.Bytes()
}
