package spine_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inBundle is every file of a support bundle, unpacked down to the text.
func inBundle(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	all := map[string]string{}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		var body io.Reader = in
		if strings.HasSuffix(h.Name, ".gz") {
			body, err = gzip.NewReader(in)
			must(t, err)
		}
		text, err := io.ReadAll(body)
		must(t, err)
		all[h.Name] = string(text)
	}
}

// Names and secrets are planted wherever people and administrators put them.
// None of them is in the bundle, whether the server runs or not.
func TestASupportBundleNamesNobodyAndHoldsNoSecret(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "handrail.toml")
	for name, text := range map[string]string{
		"oidc.secret": "planted-oidc-secret\n", "ldap.secret": "planted-ldap-secret\n",
		"handrail.toml": `log-format = "json"
log-level = "info"
[oidc]
issuer = "http://127.0.0.1:9/plantedrealm"
client-id = "planted-client"
client-secret-file = "oidc.secret"
mail-domains = ["planted-mail.example"]
[directory]
url = "ldap://127.0.0.1:9"
bind-dn = "cn=plantedreader,dc=planted,dc=example"
bind-password-file = "ldap.secret"
people = "ou=plantedpeople,dc=planted,dc=example"
groups = "ou=plantedgroups,dc=planted,dc=example"
[webhooks]
allow = ["127.0.0.1/32"]
`,
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	t.Setenv("HANDRAIL_CONFIG", config)
	t.Setenv("HANDRAIL_RECORDINGS_SECRET_KEY", "planted-env-secret")
	t.Setenv("PLANTED_TOKEN", "planted-other-secret")
	data := filepath.Join(dir, "planteddata")
	i := up(t, data)
	ada := i.first()
	host := ada.hostname()
	ada.add("zacharias", "operator", "plantedgroup")
	var invited struct{ Token string }
	ada.json(&invited, "host", "invite", "planted-host", "--service", "plantedservice", "-o", "json")
	ada.ok("webhook", "add", "plantedhook", "https://hooks.planted.example/planted-path", "--actions", "grant.*")
	ada.ok("ssh", host, "--", "echo planted-payload")
	ada.run("ssh", "planted-unknown-host", "--", "true")
	i.until("something is said of the directory", func() bool { return strings.Contains(i.errs.String(), "the directory cannot be read") })
	if !strings.Contains(i.errs.String(), `"level":"`) {
		t.Errorf("the roles do not log as JSON:\n%s", i.errs)
	}

	said, err := os.OpenFile(filepath.Join(data, "last.log"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	for _, line := range []string{
		`{"time":"2026-11-21T10:00:00Z","level":"ERROR","msg":"x","error":"ZACHARIAS of plantedgroup at ` + host + ` or planted-host, by plantedhook"}`,
		`time=2026-11-21T10:00:00Z level=WARN msg=x error="plantedservice: cn=plantedreader: planted-ldap-secretplanted-oidc-secret at ` + data + `"`,
		"panic: zacharias@planted-mail.example",
	} {
		_, err = said.WriteString(line + "\n")
		must(t, err)
	}
	must(t, said.Close())

	look := func(file string, parts map[string]string) {
		t.Helper()
		words := []string{"planted", "zacharias", "127.0.0.1:9/", invited.Token, dir}
		for name, text := range parts {
			for _, word := range words {
				if strings.Contains(strings.ToLower(text), strings.ToLower(word)) {
					t.Errorf("%q is in %s of %s:\n%.2000s", word, name, file, text)
				}
			}
			for _, name := range []string{host, "ada"} {
				if found := regexp.MustCompile(`(?i)\b` + regexp.QuoteMeta(name) + `\b`).FindStringIndex(text); found != nil {
					t.Errorf("%q is in %s of %s: …%s…", name, name, file, text[max(found[0]-60, 0):min(found[1]+60, len(text))])
				}
			}
		}
	}
	file, marks := filepath.Join(dir, "with.tar.gz"), filepath.Join(dir, "marks")
	r := ada.run("support", "bundle", "--data", data, "--names", marks, file)
	if r.code != 0 || !strings.Contains(r.out, "heap.pb.gz") || strings.Contains(r.out, "missing") {
		t.Fatalf("the bundle: %d\n%s%s", r.code, r.out, r.err)
	}
	with := inBundle(t, file)
	look("with.tar.gz", with)
	for name, want := range map[string]string{
		"metrics.txt": "handrail_ledger_entries_total", "ledger.json": `"verified":"yes"`, "schema.json": "identity-1-people", "goroutines.txt": "goroutine",
		"nodes.json": `"state": "online"`, "log.txt": `"msg":"the directory cannot be read"`, "heap.pb.gz": "inuse_space", "doctor.json": "directory-old",
	} {
		if !strings.Contains(with[name], want) {
			t.Errorf("%s does not say %s:\n%.1500s", name, want, with[name])
		}
	}
	kept, err := os.ReadFile(marks)
	must(t, err)
	if !regexp.MustCompile(`host-\w{8}\t`+regexp.QuoteMeta(host)).Match(kept) && !regexp.MustCompile(`server-\w{8}\t`+regexp.QuoteMeta(host)).Match(kept) {
		t.Errorf("whose marks they are: %s", kept)
	}
	if out := ada.ok("ledger", "list", "--limit", "5"); !strings.Contains(out, "put together") {
		t.Errorf("the ledger does not tell of it:\n%s", out)
	}
	if r := ada.run("support", "bundle", "--data", data, file); r.code != 1 || !strings.Contains(r.err, "is there already") {
		t.Errorf("over another: %d %s", r.code, r.err)
	}

	i.stop()
	file = filepath.Join(dir, "without.tar.gz")
	if r := ada.run("support", "bundle", "--data", data, file); r.code != 0 || !strings.Contains(r.out, "no server answers") {
		t.Fatalf("without a server: %d\n%s%s", r.code, r.out, r.err)
	}
	without := inBundle(t, file)
	look("without.tar.gz", without)
	if !strings.Contains(without["log.txt"], "the directory cannot be read") {
		t.Errorf("the log is lost with the server:\n%s", without["log.txt"])
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}
