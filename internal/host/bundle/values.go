package bundle

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"handrail.dev/handrail/internal/host/mask"
)

// What a configuration says is shown as far as it can name nobody, and learned,
// so that it is found in every other part of the bundle too.

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Tree redacts what tables say. harmless says of which keys the text is one of
// ours, a number or a time; every other text is taken for a name.
func (r *Redactor) Tree(tables map[string]any, harmless func(key string) bool) map[string]any {
	out, _ := r.tree("", tables, harmless).(map[string]any)
	return out
}

func (r *Redactor) tree(key string, v any, harmless func(string) bool) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			shown := k
			if key == "groups" || key == "map" { // of the provider or the directory
				shown = r.Value(k)
			}
			out[shown] = r.tree(k, v[k], harmless)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = r.tree(key, v[i], harmless)
		}
		return out
	case []map[string]any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = r.tree(key, v[i], harmless)
		}
		return out
	case string:
		if harmless(key) {
			return v
		}
		if mask.SecretName(key) && !strings.HasSuffix(key, "-file") && !strings.HasSuffix(key, "_file") {
			r.Learn(Secret, v)
		}
		return r.Value(v)
	default:
		return v
	}
}

// Value learns a text and stands for it.
func (r *Redactor) Value(v string) string {
	if shape().ordinary.MatchString(v) {
		return v
	}
	r.Learn(Thing, v)
	if u, err := url.Parse(v); err == nil && u.Host != "" {
		if !loopback(u.Hostname()) {
			r.Learn(Host, u.Host, u.Hostname())
		}
		if password, has := u.User.Password(); has {
			r.Learn(Secret, password)
		}
		if u.User.Username() != "" {
			r.Learn(Thing, u.User.Username())
		}
	} else if host, _, err := net.SplitHostPort(v); err == nil && host != "" && !loopback(host) {
		r.Learn(Host, host)
	}
	for _, part := range strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == '=' || c == ';' || c == ' ' }) {
		if !shape().ordinary.MatchString(part) && len(part) > leastWord {
			r.Learn(Thing, part) // of a DN, or of a list
		}
	}
	return r.mark(Thing, v)
}

// Listen is an address to listen at, as it may be shown.
func (r *Redactor) Listen(value string) string {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return r.Place(value)
	}
	if host != "" && !loopback(host) {
		r.Learn(Host, host)
		host = r.mark("addr", host)
	}
	return net.JoinHostPort(host, port)
}

// URL is where something is reached, as it may be shown.
func (r *Redactor) URL(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return r.Place(value)
	}
	r.Value(value)
	shown := u.Scheme + "://" + r.mark(Host, u.Hostname())
	if u.Port() != "" {
		shown += ":" + u.Port()
	}
	if mode := u.Query().Get("sslmode"); shape().mode.MatchString(mode) {
		shown += "?sslmode=" + mode
	}
	return shown
}

// Place is a text that may be a folder which every machine has.
func (r *Redactor) Place(value string) string {
	if value == "" || shape().places.MatchString(value) {
		return value
	}
	return r.Value(value)
}

// learnMachine learns who is known on this machine, and what it is called.
func (r *Redactor) learnMachine() {
	if host, err := os.Hostname(); err == nil {
		r.Learn(Server, host)
		if first, _, more := strings.Cut(host, "."); more {
			r.Learn(Server, first)
		}
	}
	for _, name := range []string{"SUDO_USER", "USER", "LOGNAME"} {
		if who := os.Getenv(name); who != "" && who != "root" {
			r.Learn(Person, who)
		}
	}
	text, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || len(f[2]) < 4 || f[0] == "nobody" { // those below 1000 are of the system
			continue
		}
		r.Learn(Person, f[0])
		r.Learn(Person, strings.FieldsFunc(f[4], func(c rune) bool { return c == ',' || c == ' ' })...)
	}
}
