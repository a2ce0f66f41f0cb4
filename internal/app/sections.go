package app

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/oidc"
)

// sections are the tables of the configuration file. What has a table has more
// to say than a flag can; it is read by the supervisor, secrets with it, and
// handed to the server, whose account may not read the files.
type sections struct {
	OIDC      *oidc.Config        `toml:"oidc"`
	Directory *directory.Settings `toml:"directory"`
	NATS      *natsSection        `toml:"nats"`
	Workloads []oidc.Issuer       `toml:"workload"` // whose word on robots is taken
	Retention retention           `toml:"retention"`
	File      string              `toml:"-"` // that has them
	Webhooks  *webhookSection     `toml:"webhooks"`

	Recordings *recordingsSection `toml:"recordings"`
	Metrics    *metricsSection    `toml:"metrics"`
}

// sectionNames are the tables that there are.
var sectionNames = []string{"oidc", "directory", "nats", "workload", "retention", "recordings", "webhooks", "metrics"}

// parseSections reads the tables. What it does not know is an error here too.
func parseSections(text []byte) (sections, error) {
	var s sections
	meta, err := toml.Decode(string(text), &s)
	if err != nil {
		return s, err
	}
	for _, key := range meta.Undecoded() {
		if len(key) > 1 { // settings without a table are parseConfig's
			return s, unknownInSection(key)
		}
	}
	if s.OIDC != nil {
		if *s.OIDC, err = s.OIDC.Complete(); err != nil {
			return s, err
		}
	}
	for _, w := range s.Workloads {
		if err := w.Check(); err != nil {
			return s, err
		}
	}
	if s.Directory != nil {
		if err := s.Directory.CheckText(); err != nil {
			return s, err
		}
	}
	if err := s.Recordings.check(); err != nil {
		return s, err
	}
	if _, err = s.Webhooks.networks(); err != nil {
		return s, err
	}
	if err := s.Metrics.check(); err != nil {
		return s, err
	}
	_, err = s.Retention.rules(time.Now())
	return s, err
}

// readSections reads the tables of the configuration file, if there is one.
func readSections() (sections, error) {
	path, asked := configFile()
	text, err := configText(path)
	if err != nil {
		if !asked && errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return sections{File: path}, err
	}
	s, err := parseSections(text)
	if err != nil {
		return s, err
	}
	s.File = path
	if s.OIDC != nil && s.OIDC.SecretFile != "" {
		s.OIDC.Secret, err = secretFile(path, s.OIDC.SecretFile)
	}
	if s.Directory != nil && err == nil {
		err = completeDirectory(path, s.Directory)
	}
	if err == nil {
		err = s.NATS.complete(path)
	}
	if err == nil {
		err = s.Recordings.complete(path)
	}
	if err == nil {
		err = s.Webhooks.complete(path)
	}
	if err == nil {
		err = s.Metrics.complete(path)
	}
	return s, err
}

const maxSecret = 4 << 10

// secretFile reads a secret that only its owner can read. A relative name is
// beside the configuration.
func secretFile(config, name string) (keyring.Secret, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(config), name)
	}
	f, err := os.Open(name)
	if err != nil {
		return keyring.Secret{}, fault.Wrap(fault.Invalid, err, "cannot read the client's secret")
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0) {
		return keyring.Secret{}, fault.New(fault.Invalid, "cannot use the secret in %s: others may read it (mode %s)", name, info.Mode().Perm()).WithHint("chmod 600 %s", name)
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, maxSecret))
	}
	if err != nil {
		return keyring.Secret{}, fault.Wrap(fault.Invalid, err, "cannot read the client's secret")
	}
	secret := strings.TrimSpace(string(text))
	if secret == "" || len(secret) > maxSecret/2 {
		return keyring.Secret{}, fault.New(fault.Invalid, "cannot use the secret in %s: it is empty or too long", name)
	}
	return keyring.NewSecret([]byte(secret)), nil
}

// configureUp is configure for what starts a server: the tables too.
func (c *UpConfig) configureUp(cmd *cobra.Command, args []string) error {
	err := configure(cmd, args)
	if err == nil {
		c.sections, err = readSections()
	}
	return err
}

// handed is the tables as they go to the server's process, in its environment:
// an argument would show the secret to everybody on the machine.
type handed struct {
	OIDC       *oidc.Config        `json:"oidc,omitempty"`
	OIDCSecret string              `json:"oidc_secret,omitempty"`
	Directory  *directory.Settings `json:"directory,omitempty"` // with its password
	NATS       *natsSection        `json:"nats,omitempty"`      // with its credentials
	Workloads  []oidc.Issuer       `json:"workloads,omitempty"`
	Retention  retention           `json:"retention,omitempty"`
	File       string              `json:"file,omitempty"`
	Recordings *recordingsSection  `json:"recordings,omitempty"` // with its secret
	Webhooks   *webhookSection     `json:"webhooks,omitempty"`
	Metrics    *metricsSection     `json:"metrics,omitempty"` // with its token
}

const sectionsEnv = "HANDRAIL_SECTIONS"

// hand is what the supervisor puts into the environment of the server.
func (s sections) hand() (string, error) {
	h := handed{OIDC: s.OIDC, Directory: s.Directory, NATS: s.NATS, Workloads: s.Workloads, Retention: s.Retention, File: s.File, Recordings: s.Recordings, Webhooks: s.Webhooks, Metrics: s.Metrics}
	if s.OIDC != nil {
		h.OIDCSecret = string(s.OIDC.Secret.Reveal())
	}
	text, err := json.Marshal(h)
	return string(text), err
}

// takeSections is hand's other end.
func takeSections(text string) (sections, error) {
	var h handed
	if text != "" {
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			return sections{}, fault.Wrap(fault.Internal, err, "cannot read the configuration that was handed over")
		}
	}
	if h.OIDC != nil {
		h.OIDC.Secret = keyring.NewSecret([]byte(h.OIDCSecret))
	}
	return sections{OIDC: h.OIDC, Directory: h.Directory, NATS: h.NATS, Workloads: h.Workloads, Retention: h.Retention, File: h.File, Recordings: h.Recordings, Webhooks: h.Webhooks, Metrics: h.Metrics}, nil
}
