package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/feature/support"
	"handrail.dev/handrail/internal/host/bundle"
	"handrail.dev/handrail/internal/host/mask"
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/sandbox"
)

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
		if path == "" {
			continue
		}
		if err := bundle.Free(path); err != nil {
			return err
		}
	}
	b, err := bundle.Make(cmd.Context(), bundle.Source{
		Dir: dir, Version: version, Config: configOf,
		Doctor: func(ctx context.Context, r *bundle.Redactor) (any, error) {
			report, all, err := examine(ctx, dir)
			return redactFindings(r, report, all), err
		},
		Server: func(ctx context.Context) (bundle.Answer, error) { return askSupport(ctx, dir) },
	})
	if err != nil {
		return err
	}
	if err := b.Write(file); err != nil {
		return err
	}
	if names != "" {
		if err := b.WriteMarks(names); err != nil {
			return err
		}
	}
	return showSupport(cmd, file, b.Manifest)
}

// mostSupport bounds what a server gives.
const mostSupport = 64 << 20

// askSupport has the running server answer.
func askSupport(ctx context.Context, dir string) (bundle.Answer, error) {
	resp, err := postLocal(ctx, dir, "support", localQuestion{})
	if err != nil {
		return bundle.Answer{}, err
	}
	defer resp.Body.Close()
	var a support.Answer
	err = json.NewDecoder(io.LimitReader(resp.Body, mostSupport)).Decode(&a)
	return bundle.Answer(a), err
}

// serveSupport answers on the control socket.
func (s *Server) serveSupport(account int, w http.ResponseWriter, r *http.Request) error {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(2 * support.Patience))
	return json.NewEncoder(w).Encode(support.New(support.Deps{
		Store: s.store, Ring: s.ring, People: s.people, Hosts: s.hosts, Node: s.fleet.Node,
		Self: support.Self{
			Version: s.c.Version, Mode: s.machine.Mode, Server: s.id, Database: map[bool]string{true: "postgres", false: "sqlite"}[s.c.Database != ""],
			Bootstrap: s.bootstrap.Active(), Demo: s.c.Demo, Live: s.sessions.CountLive(),
		},
		Numbers: func(ctx context.Context) ([]byte, error) {
			var e exposition
			err := s.metrics(ctx, &e)
			return e.b.Bytes(), err
		},
		Words: s.supportWords(),
	}).Answer(r.Context(), account))
}

// supportWords are the names and secrets that no table of the store has.
func (s *Server) supportWords() map[string][]string {
	r := bundle.NewRedactor(nil)
	// What the configuration said at the start, which the file may not any more.
	learnSecrets(r, s.c.sections)
	r.Value(s.c.Database)
	r.Value(s.url())
	all := r.Words()
	for _, p := range s.peers.List() {
		all[bundle.Server] = append(all[bundle.Server], p.Name, p.Address, p.SSH)
	}
	list, _, _ := s.circle.List()
	for _, w := range list {
		all[bundle.Thing] = append(all[bundle.Thing], w.Name)
	}
	return all
}

// redactFindings is what the doctor finds, naming nobody.
func redactFindings(r *bundle.Redactor, report sandbox.Report, all []finding) any {
	for i := range all {
		f := &all[i]
		if !r.Whole() && (f.Group == "people" || f.Group == "hosts") {
			f.What, f.Fix = mask.Hidden("names"), mask.Hidden("names")
			continue
		}
		f.What, f.Fix = r.Text(f.What), r.Text(f.Fix)
	}
	for i := range report.Missing {
		report.Missing[i] = r.Text(report.Missing[i])
	}
	for i := range report.Layers {
		report.Layers[i].Detail = r.Text(report.Layers[i].Detail)
	}
	return map[string]any{"sandbox": report, "findings": all}
}

// harmless are the settings of tables whose value is one of ours, a number or a
// time. Every other text is taken for a name.
var harmless = []string{
	"person-claim", "person-is", "groups-claim", "name-claim", "unknown", "id", "stale-after", "every", "keep", "keep-local", "log-format", "log-level",
}

// shownConfig is what the bundle says of the configuration.
type shownConfig struct {
	Settings []setting      `json:"settings"`
	File     string         `json:"file"` // whether there is one
	Tables   map[string]any `json:"tables,omitempty"`
	Environ  []string       `json:"environment,omitempty"` // the names of handrail's variables
	Unread   string         `json:"unread,omitempty"`
}

// configOf is the configuration of this machine, redacted; the redactor learns of it.
func configOf(r *bundle.Redactor) any {
	out := shownConfig{File: "none"}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "HANDRAIL_") {
			out.Environ = append(out.Environ, name)
			r.Value(value)
			if mask.SecretName(name) {
				r.Learn(bundle.Secret, value)
			}
		}
	}
	slices.Sort(out.Environ)
	path, _ := configFile()
	text, err := configText(path)
	switch {
	case err == nil:
		out.File = "read"
	case !errors.Is(err, fs.ErrNotExist):
		out.File = "unusable"
	}
	raw := map[string]any{}
	if err := toml.Unmarshal(text, &raw); err != nil {
		out.Unread = "the file is no TOML"
		raw = nil
	}
	tables, err := readSections()
	learnSecrets(r, tables)
	if err != nil {
		out.Unread = r.Text(err.Error())
	}
	out.Tables = r.Tree(raw, func(key string) bool {
		return slices.Contains(harmless, key) || strings.Contains(key, ".") // an action of [retention]
	})
	given, _ := settings()
	for _, name := range settingNames {
		delete(out.Tables, name) // stands among the settings
		s, ok := given[name]
		if !ok {
			s = setting{Name: name, From: "default"}
		}
		if s.From == path {
			s.From = "file"
		}
		s.About = ""
		switch name {
		case "log-format", "log-level":
		case "listen", "ssh-listen", "route-listen", "entrance":
			s.Value = r.Listen(s.Value)
		case "database", "url":
			s.Value = r.URL(s.Value)
		default:
			s.Value = r.Place(s.Value)
		}
		out.Settings = append(out.Settings, s)
	}
	return out
}

// learnSecrets learns what files and environment gave.
func learnSecrets(r *bundle.Redactor, s sections) {
	if s.OIDC != nil {
		r.Learn(bundle.Secret, string(s.OIDC.Secret.Reveal()))
	}
	if s.Directory != nil {
		r.Learn(bundle.Secret, s.Directory.Password)
	}
	if s.NATS != nil {
		r.Learn(bundle.Secret, strings.Fields(s.NATS.CredentialsText)...)
	}
	if s.Recordings != nil {
		r.Learn(bundle.Secret, s.Recordings.Access, s.Recordings.Secret, s.Recordings.Token)
	}
	if s.Metrics != nil {
		r.Learn(bundle.Secret, s.Metrics.Token)
	}
}

func showSupport(cmd *cobra.Command, file string, m bundle.Manifest) error {
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
