package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/role"
)

// Configuration is optional. A flag wins over the environment, which wins over
// one file; `handrail config explain` says which of them gave a value. A
// setting has one name everywhere: --ssh-listen, HANDRAIL_SSH_LISTEN,
// ssh-listen = "…".

// settingNames are what may be configured, in the order they are explained.
// Each is a flag of `handrail up` too.
var settingNames = []string{"data", "listen", "ssh-listen", "url", "cert", "key", "database", "route-listen", "entrance", "log-format", "log-level"}

// maxConfig bounds the file.
const maxConfig = 64 << 10

// configEnv names another file than the default.
const configEnv = "HANDRAIL_CONFIG"

// setting is a value and what gave it.
type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"` // variable, file, flag or default
	About string `json:"about,omitempty"`
}

func envName(name string) string {
	return "HANDRAIL_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// configFile is where the file is looked for; asked says that somebody named
// it, so that it must be there.
func configFile() (path string, asked bool) {
	if path := os.Getenv(configEnv); path != "" {
		return path, true
	}
	if os.Geteuid() == 0 {
		return "/etc/handrail/handrail.toml", false
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", false
	}
	return filepath.Join(dir, "handrail", "handrail.toml"), false
}

// settings are what environment and file give, by name.
func settings() (map[string]setting, error) {
	all := map[string]setting{}
	path, asked := configFile()
	values, err := readConfig(path)
	if err != nil && (asked || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fault.Wrap(fault.Invalid, err, "cannot use the configuration %s", path).WithHint("handrail config explain --help")
	}
	for name, value := range values {
		all[name] = setting{Name: name, Value: value, From: path}
	}
	for _, name := range settingNames {
		if value := os.Getenv(envName(name)); value != "" {
			all[name] = setting{Name: name, Value: value, From: envName(name)}
		}
	}
	return all, nil
}

// readConfig reads the file.
func readConfig(path string) (map[string]string, error) {
	text, err := configText(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(text)
}

// configText is the file. Who can write it chooses what root runs with, so root
// takes it only from root.
func configText(path string) ([]byte, error) {
	if path == "" {
		return nil, fs.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && (int(s.Uid) != os.Geteuid() && s.Uid != 0 || info.Mode().Perm()&0o022 != 0) {
		return nil, fmt.Errorf("others can write it (owner %d, mode %s)", s.Uid, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	return text, nil
}

// parseConfig reads `name = "value"` lines (TOML), and checks the tables. What
// it does not know is an error: a misspelt setting would otherwise be a default
// that nobody wanted.
func parseConfig(text []byte) (map[string]string, error) {
	var raw map[string]any
	if err := toml.Unmarshal(text, &raw); err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, name := range settingNames {
		known[name] = true
	}
	values := map[string]string{}
	for name, v := range raw {
		value, ok := v.(string)
		_, table := v.(map[string]any)
		_, tables := v.([]map[string]any)
		switch {
		case (table || tables) && slices.Contains(sectionNames, name):
			continue
		case !known[name]:
			if near := fault.Nearest(name, settingNames); near != "" {
				return nil, fmt.Errorf("there is no setting %q, did you mean %q?", name, near)
			}
			return nil, fmt.Errorf("there is no setting %q, only %s", name, strings.Join(settingNames, ", "))
		case !ok:
			return nil, fmt.Errorf("%s is not a text in quotes", name)
		}
		values[name] = value
	}
	_, err := parseSections(text)
	return values, err
}

// configure fills the flags that were not given from environment and file.
func configure(cmd *cobra.Command, _ []string) error {
	all, err := settings()
	if err != nil {
		return err
	}
	for name, s := range all {
		if f := cmd.Flags().Lookup(name); f != nil && !f.Changed {
			if err := f.Value.Set(s.Value); err != nil {
				return fault.Wrap(fault.Invalid, err, "cannot use %s of %s", name, s.From)
			}
		}
	}
	format, level := cmd.Flags().Lookup("log-format"), cmd.Flags().Lookup("log-level")
	if format == nil || level == nil {
		return nil
	}
	return role.SetLogging(format.Value.String(), level.Value.String())
}

func configCommand() *cobra.Command {
	explain := &cobra.Command{
		Use:   "explain",
		Short: "Say each setting, its value, and what gave it",
		Long: `A flag wins over the environment, which wins over one optional file. A setting
has one name everywhere: --ssh-listen, HANDRAIL_SSH_LISTEN, ssh-listen = "…".
The file is /etc/handrail/handrail.toml for root, handrail/handrail.toml in the
configuration folder for everybody else, or what HANDRAIL_CONFIG names.

It may have a table for logging in at your company's provider:

  [oidc]
  issuer = "https://id.example.com"
  name = "Example ID"                # on the button of the login page
  client-id = "handrail"
  client-secret-file = "oidc.secret" # mode 600; without it a public client
  person-claim = "email"             # which claim says who somebody is, and
  person-is = "mail"                 # what it holds: mail, name or directory
  mail-domains = ["example.com"]     # ada@example.com is ada
  groups-claim = "groups"            # without it nobody gets a group
  unknown = "refuse"                 # or add: a person without a group
  device-code = false                # handrail login --device
  credentials-may-approve = false    # keys made by such a login never approve

  [oidc.groups]                      # theirs = ours; what is not here is nothing
  "sre-team" = "operator"

  [[workload]]                       # whose word on robots is taken: handrail robot
  issuer = "https://ci.example.com"  # its keys are found there, or at jwks = "…"

And one for how long payloads are kept, by action; leaves and proofs stay:

  [retention]
  "node.reported" = "90d"            # what is not named is kept for ever
  "inspection.*" = "400d"

` + recordingsHelp + `
And one for webhooks, which reach no address of this machine, its link or its
cloud unless it is named here:

  [webhooks]
  allow = ["169.254.7.0/24"]
  ca-file = "receivers.pem"          # authorities of receivers, beside the system's

At the provider, register the redirects URL/login/provider/back and
URL/login/provider/paste, and http://127.0.0.1/handrail for commands. What the
provider says must be in the ID token.

And one for your company's directory (LDAP), which then decides who is who:

  [directory]
` + directoryHelp() + `
  [directory.map]                    # ours = theirs; what is not here is nothing
  operator = ["cn=sre,ou=groups,dc=example,dc=com"]`,
		Example: `  handrail config explain                                  # what 'handrail up' would use, and why
  HANDRAIL_LISTEN=127.0.0.1:8080 handrail config explain   # try a value`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := explained()
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd, all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SETTING\tVALUE\tFROM\tWHAT")
			for _, s := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.Value, s.From, s.About)
			}
			return w.Flush()
		},
	}
	c := &cobra.Command{
		Use: "config", Short: "Explain where each setting comes from", Args: cobra.NoArgs,
		Example: explain.Example,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(explain)
	return c
}

// asJSON says whether -o json was asked for.
func asJSON(cmd *cobra.Command) bool {
	f := cmd.Flag("output")
	return f != nil && f.Value.String() == "json"
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// explained lists every setting in order, those that nobody gave too. What
// each is about is the help of its flag: said once.
func explained() ([]setting, error) {
	given, err := settings()
	if err != nil {
		return nil, err
	}
	flags := upCommand("").Flags()
	var all []setting
	for _, name := range settingNames {
		s, ok := given[name]
		if !ok {
			s = setting{Name: name, From: "default"}
		}
		s.About = flags.Lookup(name).Usage
		if u, err := url.Parse(s.Value); name == "database" && s.Value != "" {
			if s.Value = "(not shown: not a URL)"; err == nil && u.Scheme != "" {
				s.Value = u.Redacted()
			}
		}
		all = append(all, s)
	}
	tables, err := readSections()
	if err != nil {
		return nil, err
	}
	path, _ := configFile()
	return append(all, tables.Recordings.explained(path)...), nil
}
