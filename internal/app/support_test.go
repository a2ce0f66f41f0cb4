package app

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/host/sandbox"
)

// unpacked is every file of a bundle, those inside of it unpacked too.
func unpacked(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = in
		if strings.HasSuffix(h.Name, ".gz") {
			if body, err = gzip.NewReader(in); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(text)
	}
}

func TestABundleIsMadeWithoutAServerAndNamesNobody(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "handrail.toml")
	t.Setenv(configEnv, config)
	t.Setenv("HANDRAIL_RECORDINGS_SECRET_KEY", "planted-env-secret")
	t.Setenv("SUDO_USER", "zacharias")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("oidc.secret", "planted-oidc-secret\n")
	write("ldap.secret", "planted-ldap-secret\n")
	write("m.token", "planted-metrics-token\n")
	write("handrail.toml", `data = "`+dir+`"
url = "https://shell.planted-corp.example:7080"
database = "postgres://planteduser:planted-db-secret@db.planted-corp.example/handrail?sslmode=disable"
log-format = "text"
[oidc]
issuer = "https://id.planted-corp.example"
client-id = "planted-client"
client-secret-file = "oidc.secret"
mail-domains = ["planted-corp.example"]
groups-claim = "groups"
[oidc.groups]
"planted-sre" = "operator"
[directory]
url = "ldap://ldap.planted-corp.example"
starttls = true
bind-dn = "cn=plantedreader,dc=planted-corp,dc=example"
bind-password-file = "ldap.secret"
people = "ou=plantedpeople,dc=planted-corp,dc=example"
groups = "ou=plantedgroups,dc=planted-corp,dc=example"
[retention]
"node.*" = "90d"
[metrics]
listen = "127.0.0.1:7083"
token_file = "m.token"
`)
	write("last.log", `time=2026-11-21T10:00:00.000Z level=WARN msg="the directory cannot be read" error="cn=plantedreader: zacharias: planted-ldap-secret: connection refused"`+"\n")
	file, names := filepath.Join(t.TempDir(), "b.tar.gz"), filepath.Join(t.TempDir(), "marks")
	look := func(context.Context, string) (sandbox.Report, []finding, error) {
		return sandbox.Report{Floor: sandbox.Full, Missing: []string{"zacharias left it in " + dir}},
			[]finding{{ID: "cert-unusable", Group: "address", What: "shell.planted-corp.example", Fix: "rm " + dir}, {ID: "floor-below", Group: "hosts", What: "unknownhost", Fix: "x"}}, nil
	}
	run := func() error {
		cmd := &cobra.Command{}
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		cmd.SetContext(t.Context())
		return writeSupport(cmd, look, dir, "1.2.3", file, names)
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, names} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second bundle over the first: %v", err)
	}
	parts := unpacked(t, file)
	for name, text := range parts {
		for _, word := range []string{"planted", "zacharias", "unknownhost", dir} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(word)) {
				t.Errorf("%q is in %s:\n%s", word, name, text)
			}
		}
	}
	for name, want := range map[string]string{
		"manifest.json": `"sha256"`, "version.json": "1.2.3", "config.json": `"node.*": "90d"`, "doctor.json": `"floor"`, "machine.json": `"release"`,
		"folder.json": `"bytes"`, "log.txt": "connection refused",
	} {
		if !strings.Contains(parts[name], want) {
			t.Errorf("%s has no %s:\n%s", name, want, parts[name])
		}
	}
	for _, want := range []string{`"operator"`, `"sslmode=disable"`, `"HANDRAIL_RECORDINGS_SECRET_KEY"`} {
		if !strings.Contains(parts["config.json"], strings.Trim(want, `"`)) {
			t.Errorf("the configuration lacks %s:\n%s", want, parts["config.json"])
		}
	}
	if !strings.Contains(parts["manifest.json"], "heap.pb.gz") {
		t.Errorf("what is missing is not said:\n%s", parts["manifest.json"])
	}
	kept, err := os.ReadFile(names)
	if err != nil || !strings.Contains(string(kept), "planted-client") || strings.Contains(string(kept), "-secret") {
		t.Errorf("whose marks they are: %s %v", kept, err)
	}
}
