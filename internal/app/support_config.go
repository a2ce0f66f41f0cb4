package app

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"handrail.dev/handrail/internal/host/mask"
)

// The configuration as it leaves: which settings there are, and of their values
// those that can name nobody. What else it says is learned, so that it is found
// in every other part of the bundle too.

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

// config redacts the configuration of this machine, and learns of it.
func (r *redactor) config() shownConfig {
	out := shownConfig{File: "none"}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "HANDRAIL_") {
			out.Environ = append(out.Environ, name)
			if value = r.value(value); mask.SecretName(name) {
				r.learn(aSecret, strings.TrimPrefix(pair, name+"="))
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
	r.secretsOf(tables)
	if err != nil {
		out.Unread = r.text(err.Error())
	}
	out.Tables, _ = r.tree("", raw).(map[string]any)
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
		s.Value, s.About = r.setting(name, s.Value), ""
		out.Settings = append(out.Settings, s)
	}
	return out
}

// tree redacts what a table says.
func (r *redactor) tree(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			shown := k
			if key == "groups" || key == "map" { // of the provider or the directory
				shown = r.value(k)
			}
			out[shown] = r.tree(k, v[k])
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = r.tree(key, v[i])
		}
		return out
	case []map[string]any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = r.tree(key, v[i])
		}
		return out
	case string:
		if slices.Contains(harmless, key) || strings.Contains(key, ".") { // an action of [retention]
			return v
		}
		if mask.SecretName(key) && !strings.HasSuffix(key, "-file") && !strings.HasSuffix(key, "_file") {
			r.learn(aSecret, v)
		}
		return r.value(v)
	default:
		return v
	}
}

// value learns a text and stands for it.
func (r *redactor) value(v string) string {
	if shape().ordinary.MatchString(v) {
		return v
	}
	r.learn(aThing, v)
	if u, err := url.Parse(v); err == nil && u.Host != "" {
		if !loopback(u.Hostname()) {
			r.learn(aHost, u.Host, u.Hostname())
		}
		if password, has := u.User.Password(); has {
			r.learn(aSecret, password)
		}
		if u.User.Username() != "" {
			r.learn(aThing, u.User.Username())
		}
	} else if host, _, err := net.SplitHostPort(v); err == nil && host != "" && !loopback(host) {
		r.learn(aHost, host)
	}
	for _, part := range strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == '=' || c == ';' || c == ' ' }) {
		if !shape().ordinary.MatchString(part) && len(part) > leastWord {
			r.learn(aThing, part) // of a DN, or of a list
		}
	}
	return r.mark(aThing, v)
}

// setting is a setting's value as it may be shown.
func (r *redactor) setting(name, value string) string {
	switch name {
	case "log-format", "log-level":
		return value
	case "listen", "ssh-listen", "route-listen", "entrance":
		host, port, err := net.SplitHostPort(value)
		if err == nil && host != "" && !loopback(host) {
			r.learn(aHost, host)
			host = r.mark("addr", host)
		}
		if err == nil {
			return net.JoinHostPort(host, port)
		}
	case "database", "url":
		u, err := url.Parse(value)
		if err == nil && u.Host != "" {
			r.value(value)
			shown := u.Scheme + "://" + r.mark(aHost, u.Hostname())
			if u.Port() != "" {
				shown += ":" + u.Port()
			}
			if mode := u.Query().Get("sslmode"); shape().mode.MatchString(mode) {
				shown += "?sslmode=" + mode
			}
			return shown
		}
	}
	if value == "" || shape().places.MatchString(value) {
		return value
	}
	return r.value(value)
}

// secretsOf learns what files and environment gave.
func (r *redactor) secretsOf(s sections) {
	if s.OIDC != nil {
		r.learn(aSecret, string(s.OIDC.Secret.Reveal()))
	}
	if s.Directory != nil {
		r.learn(aSecret, s.Directory.Password)
	}
	if s.NATS != nil {
		r.learn(aSecret, strings.Fields(s.NATS.CredentialsText)...)
	}
	if s.Recordings != nil {
		r.learn(aSecret, s.Recordings.Access, s.Recordings.Secret, s.Recordings.Token)
	}
	if s.Metrics != nil {
		r.learn(aSecret, s.Metrics.Token)
	}
}

// machine learns who is known on this machine, and what it is called.
func (r *redactor) machine() {
	if host, err := os.Hostname(); err == nil {
		r.learn(aServer, host)
		if first, _, more := strings.Cut(host, "."); more {
			r.learn(aServer, first)
		}
	}
	for _, name := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if who := os.Getenv(name); who != "" && who != "root" {
			r.learn(aPerson, who)
		}
	}
	text, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || len(f[2]) < 4 || f[0] == "nobody" { // those below 1000 are of the system
			continue
		}
		r.learn(aPerson, f[0])
		r.learn(aPerson, strings.FieldsFunc(f[4], func(c rune) bool { return c == ',' || c == ' ' })...)
	}
}
