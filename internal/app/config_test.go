package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func write(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "handrail.toml")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Setenv(configEnv, path)
	return path
}

func TestAFlagWinsOverTheEnvironmentWhichWinsOverTheFile(t *testing.T) {
	path := write(t, "data = \"/of/file\"\nlisten = \"127.0.0.1:1\"\nurl = \"https://file.example\"\n", 0o600)
	t.Setenv("HANDRAIL_LISTEN", "127.0.0.1:2")
	t.Setenv("HANDRAIL_URL", "https://env.example")
	cmd := upCommand("")
	if err := cmd.ParseFlags([]string{"--url", "https://flag.example"}); err != nil {
		t.Fatal(err)
	}
	if err := configure(cmd, nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"data": "/of/file", "listen": "127.0.0.1:2", "url": "https://flag.example", "ssh-listen": ""} {
		if got := cmd.Flags().Lookup(name).Value.String(); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if dir, err := dataFolder(""); err != nil || dir != "/of/file" {
		t.Errorf("a command that asks for no folder uses %q, %v", dir, err)
	}
	all, err := explained()
	if err != nil || len(all) != len(settingNames) {
		t.Fatal(all, err)
	}
	from := map[string]string{}
	for _, s := range all {
		from[s.Name] = s.From
		if s.About == "" {
			t.Errorf("%s is not explained", s.Name)
		}
	}
	if from["data"] != path || from["listen"] != "HANDRAIL_LISTEN" || from["key"] != "default" {
		t.Errorf("%v", from)
	}
}

func TestAConfigurationThatCannotBeMeantIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"lisen = \"x\"\n":           `did you mean "listen"`,
		"frobnicate = \"x\"\n":      `only data, listen`,
		"listen = 7080\n":           "not a text in quotes",
		"listen = \n":               "expected value",
		"[server]\nlisten = \"x\"":  `no setting "server"`,
		strings.Repeat("#", 70_000): "larger than",
	} {
		write(t, text, 0o600)
		_, err := settings()
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	write(t, "listen = \"127.0.0.1:1\"\n", 0o666)
	if _, err := settings(); err == nil || !strings.Contains(err.Error(), "others can write it") {
		t.Errorf("a file that everybody can write was used: %v", err)
	}
	t.Setenv(configEnv, filepath.Join(t.TempDir(), "absent.toml"))
	if _, err := settings(); err == nil {
		t.Error("a file that was named and is not there was passed over")
	}
}

func TestAPasswordInTheDatabaseURLIsNotExplained(t *testing.T) {
	write(t, "", 0o600)
	for _, u := range []string{"postgres://ada:hunter2@db/handrail", "host=db password=hunter2"} {
		t.Setenv("HANDRAIL_DATABASE", u)
		all, err := explained()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if strings.Contains(s.Value, "hunter2") {
				t.Errorf("%s shows %q", s.Name, s.Value)
			}
		}
	}
}

func TestTheDirectorysTableIsReadWithItsFiles(t *testing.T) {
	table := func(more string) string {
		return "listen = \"127.0.0.1:1\"\n[directory]\nurl = \"ldaps://ldap.example.com\"\npeople = \"ou=p,dc=x\"\ngroups = \"ou=g,dc=x\"\n" + more + "\n[directory.map]\noperator = [\"ops\"]\n"
	}
	path := write(t, table("bind-dn = \"cn=r,dc=x\"\nbind-password-file = \"pw\""), 0o600)
	if _, err := readSections(); err == nil {
		t.Error("a password file that is not there is passed over")
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "pw"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := readSections()
	if err != nil || s.Directory.Password != "secret" || s.Directory.Map["operator"][0] != "ops" {
		t.Fatalf("%+v, %v", s.Directory, err)
	}
	text, err := s.hand()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := takeSections(text); err != nil || again.Directory.Password != "secret" {
		t.Errorf("the server gets %+v, %v", again.Directory, err)
	}
	for more, want := range map[string]string{
		"filter = \"x\"":             "there is no setting filter",
		"people-filtr = \"(a=b)\"":   "did you mean \"people-filter\"?",
		"bind-dn = \"cn=r,dc=x\"":    "anonymous",
		"stale-after = \"soon\"":     "stale-after",
		"starttls = true":            "TLS already",
		"ask-first = [\"nobodies\"]": "in no [directory.map]",
	} {
		write(t, table(more), 0o600)
		if _, err := settings(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", more, err, want)
		}
	}
}
