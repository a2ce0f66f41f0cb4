// Package bundle makes a support bundle: one tar.gz for somebody outside, who is
// to find out what is wrong without learning who works here. manifest.json comes
// first, with the hash of every part. It holds no payload of the ledger, no
// recording and no key. Everything in it went through one Redactor, on this
// machine; what mark stands for whom stays here.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/role"
)

// Manifest says what a bundle holds.
type Manifest struct {
	V        int               `json:"v"`
	Made     string            `json:"made"`
	Version  string            `json:"version"` // of the program that made it
	Server   string            `json:"server"`  // answered, or why not
	Redacted string            `json:"redacted"`
	Entry    *int64            `json:"ledger_entry,omitempty"`
	Files    []File            `json:"files"`
	Missing  map[string]string `json:"missing,omitempty"` // part → why
}

// File is one part of a bundle.
type File struct {
	Name   string `json:"name"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
	About  string `json:"about"`
}

// Source is where the parts come from, beside the machine itself.
type Source struct {
	Dir     string // of the server or node that runs here
	Version string
	// Config and Doctor say, through the redactor, how things are set and what
	// is found wrong. Config comes first: what it teaches is found everywhere.
	Config func(*Redactor) any
	Doctor func(context.Context, *Redactor) (any, error)
	// Server has the running server answer, not redacted yet.
	Server func(context.Context) (Answer, error)
}

// Answer is what a running server gives.
type Answer struct {
	Parts map[string][]byte
	Lacks map[string]string   // part → why it is missing
	Words map[string][]string // kind → names and secrets
	Whole bool                // Words is complete
	Entry int64               // of the ledger; -1: not recorded
}

// Bundle is one that is made, and not written yet.
type Bundle struct {
	Manifest Manifest
	parts    map[string][]byte
	redactor *Redactor
}

// all are what a bundle may hold, in order.
var all = []struct{ name, about string }{
	{"version.json", "this program, and how it was built"},
	{"config.json", "settings and tables, without names and secrets"},
	{"doctor.json", "the sandbox that the kernel gives, and misconfigurations"},
	{"machine.json", "kernel, distribution, memory, disk"},
	{"folder.json", "what lies in the data folder: counts, sizes, owners"},
	{"log.txt", "what the roles said last"},
	{"server.json", "the running server"},
	{"metrics.txt", "its numbers"},
	{"ledger.json", "head and verification; no payload"},
	{"schema.json", "steps of the database's schema"},
	{"nodes.json", "hosts by mark: state, version, floor"},
	{"goroutines.txt", "what the server does just now"},
	{"heap.pb.gz", "what its memory is used for: go tool pprof"},
}

// maxLog is how much of the log goes along, maxPart how much of any part.
const maxLog, maxPart = 512 << 10, 4 << 20

// Make makes every part that can be had. What cannot is named.
func Make(ctx context.Context, src Source) (*Bundle, error) {
	salt, err := readSalt(src.Dir)
	if err != nil {
		return nil, err
	}
	r := NewRedactor(salt)
	b := &Bundle{parts: map[string][]byte{}, redactor: r}
	m := &b.Manifest
	*m = Manifest{V: 1, Made: time.Now().UTC().Format(time.RFC3339), Version: src.Version, Server: "answered", Missing: map[string]string{}}
	said, err := src.Server(ctx)
	// Words first: what is redacted is everything below.
	r.learnMachine()
	if !shape().places.MatchString(src.Dir) {
		r.Learn(Thing, src.Dir)
	}
	config := src.Config(r)
	r.LearnKnown(said.Words)
	r.whole = said.Whole
	if err != nil {
		m.Server = r.Text(fault.From(err).Text)
	} else if said.Entry >= 0 {
		m.Entry = &said.Entry
	}
	m.Redacted = "names by what this installation knows, and by form"
	if !r.whole {
		m.Redacted = "names by form; free text is left out, since nobody could say which names there are"
	}
	b.add("version.json", buildOf(src.Version), nil)
	b.add("config.json", config, nil)
	doctor, err := src.Doctor(ctx, r)
	b.add("doctor.json", doctor, err)
	b.add("machine.json", machineOf(src.Dir), nil)
	folder, err := folderOf(src.Dir)
	b.add("folder.json", folder, err)
	if last, err := role.LastSaid(src.Dir, maxLog); err != nil {
		b.add("log.txt", nil, err)
	} else {
		b.parts["log.txt"] = r.log(last)
	}
	for name, why := range said.Lacks {
		m.Missing[name] = r.Text(why)
	}
	b.theirs(said.Parts)
	for _, p := range all {
		body, has := b.parts[p.name]
		if !has {
			if m.Missing[p.name] == "" {
				m.Missing[p.name] = "no server answers"
			}
			continue
		}
		hash := sha256.Sum256(body)
		m.Files = append(m.Files, File{p.name, len(body), hex.EncodeToString(hash[:]), p.about})
	}
	return b, nil
}

func (b *Bundle) add(name string, v any, err error) {
	if err != nil {
		b.Manifest.Missing[name] = b.redactor.Text(fault.From(err).Text)
		return
	}
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		b.Manifest.Missing[name] = "cannot be written"
		return
	}
	b.parts[name] = append(body, '\n')
}

// theirs redacts what the server gave.
func (b *Bundle) theirs(raw map[string][]byte) {
	r := b.redactor
	for name, body := range raw {
		switch {
		case name == "heap.pb.gz":
			clean, err := heapNames(body, r.known)
			if err != nil {
				b.Manifest.Missing[name] = "cannot be read"
				continue
			}
			b.parts[name] = clean
		case name == "nodes.json" || name == "server.json":
			clean, err := r.fields(body)
			if err != nil || !r.whole {
				b.Manifest.Missing[name] = "the names in it could not be told"
				continue
			}
			b.parts[name] = clean
		default:
			b.parts[name] = []byte(r.known(string(body)))
		}
	}
}

// fields redacts the texts of JSON: what is not known, by its form.
func (r *Redactor) fields(body []byte) ([]byte, error) {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, err
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k := range v {
				if text, ok := v[k].(string); ok && k == "host" {
					v[k] = r.mark(Host, text)
					continue
				}
				v[k] = walk(v[k])
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			return r.Text(v)
		}
		return v
	}
	clean, err := json.MarshalIndent(walk(v), "", "  ")
	return append(clean, '\n'), err
}

func buildOf(version string) any {
	out := struct {
		Version  string            `json:"version"`
		Go       string            `json:"go"`
		Settings map[string]string `json:"settings"`
		Modules  []string          `json:"modules"`
	}{Version: version, Settings: map[string]string{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		out.Go = info.GoVersion
		for _, s := range info.Settings {
			if !strings.Contains(s.Key, "flags") { // they may name folders of who built it
				out.Settings[s.Key] = s.Value
			}
		}
		for _, m := range info.Deps {
			out.Modules = append(out.Modules, m.Path+"@"+m.Version)
		}
	}
	return out
}

// Write writes the bundle into a file that is not there yet, or nothing.
func (b *Bundle) Write(file string) error {
	head, err := json.MarshalIndent(b.Manifest, "", "  ")
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot write the manifest")
	}
	return writeNew(file, func(f io.Writer) error {
		zip := gzip.NewWriter(f)
		out := tar.NewWriter(zip)
		err := put(out, "manifest.json", append(head, '\n'))
		for _, one := range b.Manifest.Files {
			if err == nil {
				err = put(out, one.Name, b.parts[one.Name])
			}
		}
		return errors.Join(err, out.Close(), zip.Close())
	})
}

// WriteMarks writes down, for those who stay here, whose the marks in it are.
func (b *Bundle) WriteMarks(file string) error {
	var text strings.Builder
	for _, mark := range slices.Sorted(maps.Keys(b.redactor.marks)) {
		for _, body := range b.parts {
			if bytes.Contains(body, []byte(mark)) {
				fmt.Fprintf(&text, "%s\t%s\n", mark, b.redactor.secrets(b.redactor.marks[mark]))
				break
			}
		}
	}
	return writeNew(file, func(f io.Writer) error { _, err := io.WriteString(f, text.String()); return err })
}

// Free refuses a file that is there already.
func Free(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fault.New(fault.Conflict, "cannot write %s: it is there already", path).WithHint("name another file")
	}
	return nil
}

// writeNew writes a file that was not there and that only its owner reads; one
// that is not whole does not stay.
func writeNew(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "cannot write %s: it is there already", path).WithHint("name another file")
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", path).WithHint("name a file in a folder that is there and is yours")
	}
	var body bytes.Buffer
	if err = write(&body); err == nil {
		_, err = f.Write(body.Bytes())
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path)
		return fault.Wrap(fault.Unavailable, err, "cannot write %s", path).WithHint("df -h %s", filepath.Dir(path))
	}
	return nil
}

func put(out *tar.Writer, name string, body []byte) error {
	err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(body))})
	if err == nil {
		_, err = out.Write(body)
	}
	return err
}
