package app

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
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/mask"
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/sandbox"
)

// A support bundle is one tar.gz for somebody outside, who is to find out what
// is wrong without learning who works here: manifest.json first, with the hash
// of every part. It holds no payload of the ledger, no recording and no key.
// Everything in it went through one redactor, on this machine.

// supportManifest says what a bundle holds.
type supportManifest struct {
	V        int               `json:"v"`
	Made     string            `json:"made"`
	Version  string            `json:"version"` // of the program that made it
	Server   string            `json:"server"`  // answered, or why not
	Redacted string            `json:"redacted"`
	Entry    *int64            `json:"ledger_entry,omitempty"`
	Files    []supportFile     `json:"files"`
	Missing  map[string]string `json:"missing,omitempty"` // part → why
}

type supportFile struct {
	Name   string `json:"name"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
	About  string `json:"about"`
}

// supportParts are what a bundle may hold, in order.
var supportParts = []struct{ name, about string }{
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

// supportLog is how much of the log goes along.
const supportLog = 512 << 10

func supportCommand(version string) *cobra.Command {
	var data, names string
	bundle := &cobra.Command{
		Use:   "bundle FILE",
		Short: "Write what somebody needs who helps you from outside, naming nobody",
		Long: `Writes one tar.gz: version, configuration, what the doctor finds, the last lines of
the log and, where the server answers, its numbers, schema, ledger head, nodes and
what it does just now. Secrets go; people, hosts and addresses become marks, the
same in each bundle of this installation. What mark stands for whom stays here,
unless --names writes it down. Look into the file before you send it. Where no
server answers, what can be had without it is written.`,
		Example: `  sudo handrail support bundle /tmp/handrail.tar.gz                        # what can be sent
  sudo handrail support bundle --names marks.txt /tmp/handrail.tar.gz      # and, for you, whose marks they are`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := dataFolder(data)
			if err != nil { // a configuration that cannot be read is a reason to need help
				if dir, err = role.DefaultDir(); err != nil {
					return err
				}
			}
			return writeSupport(cmd, examine, dir, version, args[0], names)
		},
	}
	bundle.Flags().StringVar(&data, "data", "", "folder of the server or node that runs here")
	bundle.Flags().StringVar(&names, "names", "", "file for whose marks they are; it stays with you")
	c := &cobra.Command{
		Use: "support", Short: "Get help without telling who works here", Args: cobra.NoArgs,
		Example: bundle.Example,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(bundle)
	return c
}

// examination is what the doctor does.
type examination func(ctx context.Context, data string) (sandbox.Report, []finding, error)

func writeSupport(cmd *cobra.Command, examine examination, dir, version, file, names string) error {
	for _, path := range []string{file, names} {
		if _, err := os.Lstat(path); path != "" && err == nil {
			return fault.New(fault.Conflict, "cannot write %s: it is there already", path).WithHint("name another file")
		}
	}
	salt, err := supportSalt(dir)
	if err != nil {
		return err
	}
	r := newRedactor(salt)
	m, parts := gatherSupport(cmd.Context(), examine, dir, version, r)
	if err := packSupport(file, m, parts); err != nil {
		return err
	}
	if names != "" {
		var text strings.Builder
		for _, mark := range slices.Sorted(maps.Keys(r.marks)) {
			if inAny(parts, mark) {
				fmt.Fprintf(&text, "%s\t%s\n", mark, r.secrets(r.marks[mark]))
			}
		}
		if err := writeNew(names, func(f io.Writer) error { _, err := io.WriteString(f, text.String()); return err }); err != nil {
			return err
		}
	}
	return showSupport(cmd, file, m)
}

func inAny(parts map[string][]byte, mark string) bool {
	for _, body := range parts {
		if bytes.Contains(body, []byte(mark)) {
			return true
		}
	}
	return false
}

// gatherSupport makes every part that can be had. What cannot is named.
func gatherSupport(ctx context.Context, examine examination, dir, version string, r *redactor) (*supportManifest, map[string][]byte) {
	m := &supportManifest{V: 1, Made: time.Now().UTC().Format(time.RFC3339), Version: version, Server: "answered", Missing: map[string]string{}}
	raw := supportAnswer{}
	resp, err := postLocal(ctx, dir, "support", localQuestion{})
	if err == nil {
		err = json.NewDecoder(io.LimitReader(resp.Body, supportAll)).Decode(&raw)
		resp.Body.Close()
	}
	// Words first: what is redacted is everything below.
	r.machine()
	if !shape().places.MatchString(dir) {
		r.learn(aThing, dir)
	}
	config := r.config()
	for _, kind := range []string{aSecret, aPerson, aServer, aHost, aThing} {
		r.learn(kind, raw.Words[kind]...)
	}
	r.whole = raw.Whole
	if err != nil {
		m.Server = r.text(fault.From(err).Text)
	} else if raw.Entry >= 0 {
		m.Entry = &raw.Entry
	}
	m.Redacted = "names by what this installation knows, and by form"
	if !r.whole {
		m.Redacted = "names by form; free text is left out, since nobody could say which names there are"
	}
	parts := map[string][]byte{}
	add := func(name string, v any, err error) {
		if err != nil {
			m.Missing[name] = r.text(fault.From(err).Text)
			return
		}
		body, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			m.Missing[name] = "cannot be written"
			return
		}
		parts[name] = append(body, '\n')
	}
	add("version.json", buildOf(version), nil)
	add("config.json", config, nil)
	doctor, err := r.doctor(ctx, examine, dir)
	add("doctor.json", doctor, err)
	add("machine.json", machineOf(dir), nil)
	folder, err := folderOf(dir)
	add("folder.json", folder, err)
	if said, err := role.LastSaid(dir, supportLog); err != nil {
		add("log.txt", nil, err)
	} else {
		parts["log.txt"] = r.log(said)
	}
	for name, why := range raw.Lacks {
		m.Missing[name] = r.text(why)
	}
	r.theirs(m, raw.Parts, parts)
	for _, p := range supportParts {
		body, has := parts[p.name]
		if !has {
			if m.Missing[p.name] == "" {
				m.Missing[p.name] = "no server answers"
			}
			continue
		}
		hash := sha256.Sum256(body)
		m.Files = append(m.Files, supportFile{p.name, len(body), hex.EncodeToString(hash[:]), p.about})
	}
	return m, parts
}

// theirs redacts what the server gave.
func (r *redactor) theirs(m *supportManifest, raw, parts map[string][]byte) {
	for name, body := range raw {
		switch {
		case name == "heap.pb.gz":
			clean, err := heapNames(body, r.known)
			if err != nil {
				m.Missing[name] = "cannot be read"
				continue
			}
			parts[name] = clean
		case name == "nodes.json" || name == "server.json":
			clean, err := r.fields(body)
			if err != nil || !r.whole {
				m.Missing[name] = "the names in it could not be told"
				continue
			}
			parts[name] = clean
		default:
			parts[name] = []byte(r.known(string(body)))
		}
	}
}

// fields redacts the texts of JSON: what is not known, by its form.
func (r *redactor) fields(body []byte) ([]byte, error) {
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
					v[k] = r.mark(aHost, text)
					continue
				}
				v[k] = walk(v[k])
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			return r.text(v)
		}
		return v
	}
	clean, err := json.MarshalIndent(walk(v), "", "  ")
	return append(clean, '\n'), err
}

// doctor is what the doctor finds, naming nobody.
func (r *redactor) doctor(ctx context.Context, examine examination, dir string) (any, error) {
	report, all, err := examine(ctx, dir)
	if err != nil {
		return nil, err
	}
	for i := range all {
		f := &all[i]
		if !r.whole && (f.Group == "people" || f.Group == "hosts") {
			f.What, f.Fix = mask.Hidden("names"), mask.Hidden("names")
			continue
		}
		f.What, f.Fix = r.text(f.What), r.text(f.Fix)
	}
	for i := range report.Missing {
		report.Missing[i] = r.text(report.Missing[i])
	}
	for i := range report.Layers {
		report.Layers[i].Detail = r.text(report.Layers[i].Detail)
	}
	return map[string]any{"sandbox": report, "findings": all}, nil
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

// packSupport writes the bundle, or nothing.
func packSupport(file string, m *supportManifest, parts map[string][]byte) error {
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot write the manifest")
	}
	return writeNew(file, func(f io.Writer) error {
		zip := gzip.NewWriter(f)
		out := tar.NewWriter(zip)
		err := addFile(out, "manifest.json", append(head, '\n'))
		for _, one := range m.Files {
			if err == nil {
				err = addFile(out, one.Name, parts[one.Name])
			}
		}
		return errors.Join(err, out.Close(), zip.Close())
	})
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

func showSupport(cmd *cobra.Command, file string, m *supportManifest) error {
	if asJSON(cmd) {
		return printJSON(cmd, m)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PART\tBYTES\tWHAT")
	for _, f := range m.Files {
		fmt.Fprintf(w, "%s\t%d\t%s\n", f.Name, f.Size, f.About)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Missing)) {
		fmt.Fprintf(w, "%s\t-\tmissing: %s\n", name, m.Missing[name])
	}
	err := w.Flush()
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s; redacted: %s\nlook into it before you send it: tar -xzf %s\n", file, m.Redacted, file)
	return err
}
