package app

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/host/sandbox"
)

// sound is an installation without a misconfiguration, on a real folder.
func sound(t *testing.T) *checkup {
	t.Helper()
	data := t.TempDir()
	p := place(data)
	if err := keyring.Init(p.keys(), filepath.Join(data, "away"), "test.handrail.internal"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.server(), 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "handrail.toml")
	c := &checkup{data: data, config: config, set: map[string]setting{}, now: time.Now(), files: 1 << 16,
		disk:  func(string) (uint64, error) { return 8 << 30, nil },
		probe: sandbox.Report{Mode: sandbox.RootMode, Floor: sandbox.Full, Landlock: 4, Cgroup: "v2"}}
	c.give("database", "postgres://handrail:planted@db.example.org/handrail?sslmode=verify-full")
	c.write(t, 0o600)
	c.give("url", "https://handrail.example.org:7080")
	c.give("listen", "127.0.0.1:0")
	c.certify(t, "handrail.example.org")
	return c
}

func (c *checkup) give(name, value string) {
	c.set[name] = setting{Name: name, Value: value, From: c.config}
}

func (c *checkup) write(t *testing.T, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(c.config, []byte("# the configuration\n"), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.config, mode); err != nil {
		t.Fatal(err)
	}
}

// certify writes a certificate for browsers.
func (c *checkup) certify(t *testing.T, name string) {
	t.Helper()
	cert, err := ring(t).ServerCertificate([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{file: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.give("cert", file)
	c.give("key", keyFile)
}

func ids(all []finding) (list []string) {
	for _, f := range all {
		list = append(list, f.ID)
	}
	return list
}

func TestASoundInstallationHasNoFinding(t *testing.T) {
	if all := sound(t).run(); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

func TestEachMisconfigurationIsFoundWithItsNextCommand(t *testing.T) {
	for _, c := range []struct {
		id  string
		bad bool
		do  func(*testing.T, *checkup)
	}{
		{"data-open", true, func(t *testing.T, c *checkup) { chmod(t, place(c.data).server(), 0o750) }},
		{"key-open", true, func(t *testing.T, c *checkup) { chmod(t, filepath.Join(place(c.data).keys(), "order.key"), 0o640) }},
		{"root-key-here", false, func(t *testing.T, c *checkup) {
			if err := os.Rename(filepath.Join(c.data, "away"), place(c.data).rootKey()); err != nil {
				t.Fatal(err)
			}
		}},
		{"config-open", true, func(t *testing.T, c *checkup) { c.write(t, 0o644) }},
		{"disk-full", true, func(_ *testing.T, c *checkup) {
			c.disk = func(string) (uint64, error) { return 200 << 20, nil } // what statfs says of a full one
		}},
		{"backup-old", false, func(t *testing.T, c *checkup) {
			if err := place(c.data).noteKeysMade(); err != nil {
				t.Fatal(err)
			}
			if got := c.run(); len(got) > 0 {
				t.Errorf("a new installation without a backup: %v", ids(got))
			}
			c.now = c.now.Add(8 * 24 * time.Hour)
		}},
		{"backup-old", false, func(t *testing.T, c *checkup) {
			if err := noteBackup(place(c.data), backupNote{At: c.now.Add(-6 * 24 * time.Hour)}); err != nil {
				t.Fatal(err)
			}
			if got := c.run(); len(got) > 0 {
				t.Errorf("a backup of last week: %v", ids(got))
			}
			c.now = c.now.Add(2 * 24 * time.Hour)
		}},
		{"confined-elsewhere", false, func(_ *testing.T, c *checkup) {
			c.label, c.enforce = "system_u:system_r:handrail_t:s0", true
		}},
		{"confined-elsewhere", false, func(_ *testing.T, c *checkup) { c.label = "/usr/bin/handrail (enforce)" }},
		{"few-files", false, func(_ *testing.T, c *checkup) { c.files = 1024 }},
		{"sandbox-floor", false, func(_ *testing.T, c *checkup) { c.probe.Floor = sandbox.Reduced }},
		{"no-landlock", false, func(_ *testing.T, c *checkup) { c.probe.Landlock = 0 }},
		{"no-cgroup", true, func(_ *testing.T, c *checkup) { c.probe.Cgroup = "" }},
		{"no-account", false, func(_ *testing.T, c *checkup) { c.nobody = true }},
		{"plain-url", true, func(_ *testing.T, c *checkup) { c.give("url", "http://handrail.example.org:7080") }},
		{"passkey-name", false, func(t *testing.T, c *checkup) {
			c.give("url", "https://192.0.2.7:7080")
			c.certify(t, "192.0.2.7")
		}},
		{"cert-unusable", true, func(t *testing.T, c *checkup) { c.give("key", c.config) }},
		{"cert-expires", false, func(_ *testing.T, c *checkup) { c.now = c.now.Add(80 * 24 * time.Hour) }},
		{"cert-expires", true, func(_ *testing.T, c *checkup) { c.now = c.now.Add(100 * 24 * time.Hour) }},
		{"cert-name", true, func(t *testing.T, c *checkup) { c.certify(t, "other.example.org") }},
		{"port-taken", true, func(t *testing.T, c *checkup) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			c.give("listen", l.Addr().String())
		}},
		{"database-plain", true, func(_ *testing.T, c *checkup) {
			c.give("database", "postgres://handrail@db.example.org/handrail?sslmode=disable")
		}},
		{"database-plain", false, func(_ *testing.T, c *checkup) { c.give("database", "postgres://handrail@db.example.org/handrail") }},
	} {
		t.Run(c.id, func(t *testing.T) {
			at := sound(t)
			c.do(t, at)
			all := at.run()
			if got := ids(all); !slices.Equal(got, []string{c.id}) {
				t.Fatalf("found %v", got)
			}
			if f := all[0]; f.Bad != c.bad || f.Fix == "" || f.What == "" || f.Group == "" {
				t.Errorf("%+v", f)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestPasskeysAreBoundToTheNameOfThePage(t *testing.T) {
	for page, want := range map[string]string{
		"https://handrail.example.org": "handrail.example.org", "https://handrail.example.org:7080": "handrail.example.org",
		"http://localhost:7080": "localhost", "": "localhost",
	} {
		if got := passkeyName(page); got != want {
			t.Errorf("%q: %q, want %q", page, got, want)
		}
	}
}
