package sensor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/wire"
)

func value(t *testing.T, facts []wire.Fact, name string) string {
	t.Helper()
	for _, f := range facts {
		if f.Name == name {
			return f.Value
		}
	}
	t.Fatalf("there is no fact %s", name)
	return ""
}

func TestThisMachineHasFacts(t *testing.T) {
	facts := Read("/")
	for _, name := range []string{"cpus", "memory_total_bytes", "memory_available_bytes", "uptime_seconds", "disk_root_total_bytes", "disk_root_free_bytes"} {
		if n, err := strconv.ParseInt(value(t, facts, name), 10, 64); err != nil || n <= 0 {
			t.Errorf("%s is %q", name, value(t, facts, name))
		}
	}
	for _, f := range facts {
		if f.Name == "" || f.Source == "" || f.Value == "" && f.Name != "addresses" && f.Name != "product" {
			t.Errorf("%+v is empty", f)
		}
	}
}

func TestAFactThatCannotBeReadSaysSo(t *testing.T) {
	root := t.TempDir()
	facts := Read(root)
	if len(facts) != len(sources) {
		t.Fatalf("%d of %d facts: some are left out", len(facts), len(sources))
	}
	if v := value(t, facts, "kernel"); v != "unreadable: ENOENT" {
		t.Errorf("kernel is %q", v)
	}
	if v := value(t, facts, "load1"); v != "unreadable: ENOENT" {
		t.Errorf("load1 is %q", v)
	}
}

func TestFactsAreOneLineOfText(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=evil\nPRETTY_NAME=\"Evil \x1b[2J\u202e OS"+strings.Repeat("!", 9000)+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if v := value(t, Read(root), "os"); strings.ContainsAny(v, "\x1b\u202e") || !strings.HasPrefix(v, "Evil") || len(v) > 2*maxValue {
		t.Fatalf("os is %q", v)
	}
}

func TestADeltaHasOnlyWhatChanged(t *testing.T) {
	before := []wire.Fact{{Name: "a", Value: "1"}, {Name: "b", Value: "1"}}
	now := []wire.Fact{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}, {Name: "c", Value: "1"}}
	if d := Delta(before, now); len(d) != 2 || d[0].Name != "b" || d[1].Name != "c" {
		t.Fatalf("%+v", d)
	}
}
