package app

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/host/sandbox"
)

func testRedactor() *redactor { return newRedactor(bytes.Repeat([]byte{7}, saltSize)) }

func TestNamesBecomeMarksAndSecretsGo(t *testing.T) {
	r := testRedactor()
	r.whole = true
	r.learn(aPerson, "ada", "Zacharias", "Åsa")
	r.learn(aHost, "web-1", "web-1.prod.example.com")
	r.learn(aSecret, `hun"ter two&`)
	r.learn(aThing, "ou=People,dc=corp")
	for _, leak := range []struct{ text, gone string }{
		{"ada's session on WEB-1", "ada web-1"},
		{"ZACHARIAS left", "zacharias"},
		{"dial tcp: lookup web-1.prod.example.com", "web-1 example"},
		{`auth hun"ter two& failed`, "hun two&"},
		{"get /?k=" + "hun%22ter+two%26" + "&x", "hun%22"},
		{"xxhun\"ter two&yy", "hun"},
		{"bind as ou=People,dc=corp", "people corp"},
		{"shred /var/x/ada…", "ada"},
		{"“ada”—Ada’s ‹ada›", "ada"},
		{"ÅSA left, or åsa", "åsa"},
		{"mail to someone.else@corp.example", "someone corp"},
		{"read /home" + "/carol/secret-plans: permission denied", "carol plans"},
		{"postgres://bob:pw@db/x refused", "bob pw@"},
		{"connection from 203.0.113.9:4411", "203.0.113.9"},
		{"connection from [2001:db8::17]:4411", "2001:db8"},
		{"lookup db7.internal.corp: no such host", "db7 corp"},
		{"uid=dora,ou=x is locked", "dora"},
		{"Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"},
		{"token=A1b2C3d4E5f6G7h8I9j0K1l2", "a1b2c3d4e5f6"},
		{"key k3y/abcdefghij0123456789ABCDEFGH+x was refused", "abcdefghij01234"},
		{`password="pässwörd in words"`, "pässwörd"},
	} {
		got := strings.ToLower(r.text(leak.text))
		for _, gone := range strings.Fields(leak.gone) {
			if strings.Contains(got, lower(gone)) {
				t.Errorf("%q of %q is in %q", gone, leak.text, got)
			}
		}
	}
	for _, kept := range []string{
		"cannot open the ledger: no space left on device", "/var/lib/handrail/server/state.db", "127.0.0.1:7080", "took 3.2s at 2026-11-21T10:00:00.000Z", "adamant",
		"session s-7k3f9q2m", "local.go:31", "shred -u data/root/root.key",
	} {
		if got := r.text(kept); got != kept {
			t.Errorf("%q became %q", kept, got)
		}
	}
	if a, b := r.text("by ada"), r.text("by Ada"); a != b || a == newRedactor(make([]byte, saltSize)).text("by ada") {
		t.Errorf("marks: %q, %q", a, b)
	}
}

func TestAnyPlantedWordIsGone(t *testing.T) {
	secrets := []string{"secret", "masked", "a", "‹", "person", "aaaa", "ab-", "-", ""}
	for _, w := range secrets {
		r := testRedactor()
		r.learn(aSecret, w) // ends, whatever the word is
		_ = r.text("masked secret aaaaaaa ab- person ‹masked: secret›" + w)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("ada", "time=x level=WARN msg=\"a\" error=\"ada left\"")
	f.Add("pa55", "xpa55y")
	f.Fuzz(func(t *testing.T, word, text string) {
		r := testRedactor()
		r.whole = true
		r.learn(aSecret, word)
		got := lower(string(r.log([]byte(text))))
		if len(word) >= leastInside && !strings.ContainsFunc(word, func(c rune) bool { return c > 127 || !letter(c) }) && !strings.Contains(lower("‹masked: secret›‹masked: line›"), lower(word)) {
			// What another rule put there may hold it by chance; the text's own may not.
			left := got
			for _, kind := range []string{"secret", "line", "value", "login", "home", "directory", "token", "key", "password", "card number", "unknown name", "names"} {
				left = strings.ReplaceAll(left, "‹masked: "+kind+"›", "")
			}
			left = regexp.MustCompile(`[a-z]+-[a-z2-7]{8}`).ReplaceAllString(left, "")
			if strings.Contains(left, lower(word)) && strings.Contains(lower(text), lower(word)) && !strings.Contains(strings.ReplaceAll(lower(text), lower(word), ""), lower(word)) {
				t.Fatalf("%q is left of %q: %q", word, text, got)
			}
		}
	})
}

func TestWithoutAServerOnlyOurOwnWordsAreKept(t *testing.T) {
	r := testRedactor()
	log := strings.Join([]string{
		`time=2026-11-21T10:00:00.000Z level=ERROR msg="a part of the server ended" part=directory error="cannot bind as carol: dial tcp: connection refused"`,
		`time=2026-11-21T10:00:01.000Z level=WARN msg="a role ended and is started again" role=server after=3.2s pause=100ms n=7 who=carol`,
		"handrail: carol said something",
		`{"time":"2026-11-21T10:00:01.000Z","level":"WARN","msg":"no lease","error":"carol: i/o timeout","who":"carol","in":4}`,
		`{"carol":1}{`,
		"goroutine 7 [select, 3 minutes]:",
		"handrail.dev/handrail/internal/app.(*Server).Run(0xc000123, {0x1, 0x2})",
		"\tinternal/app/server.go:440 +0x1f",
		"created by carol",
	}, "\n")
	got := string(r.log([]byte(log)))
	if strings.Contains(got, "carol") {
		t.Errorf("somebody is named:\n%s", got)
	}
	for _, kept := range []string{"a part of the server ended", `part="directory"`, "connection refused", `n="7"`, `after="3.2s"`, "i/o timeout", `"msg":"no lease"`, `"in":"4"`, "goroutine 7 [select", "server.go:440"} {
		if !strings.Contains(got, kept) {
			t.Errorf("%q is not kept:\n%s", kept, got)
		}
	}
}

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

func TestAHeapProfileNamesNoFolder(t *testing.T) {
	raw, err := profile("heap", 0)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := testRedactor()
	r.learn(aThing, filepath.Dir(self))
	clean, err := heapNames(raw, r.known)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(clean))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(zip)
	if err != nil || bytes.Contains(text, []byte(filepath.Dir(self))) || !bytes.Contains(text, []byte("inuse_space")) {
		t.Errorf("%d bytes, folder %v: %v", len(text), bytes.Contains(text, []byte(filepath.Dir(self))), err)
	}
	if _, err := heapNames([]byte("no profile"), r.known); err == nil {
		t.Error("anything is a profile")
	}
	if !slices.ContainsFunc(pprof.Profiles(), func(p *pprof.Profile) bool { return p.Name() == "goroutine" }) {
		t.Error("there is no profile of goroutines")
	}
}
