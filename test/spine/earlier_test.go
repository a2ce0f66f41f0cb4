package spine_test

import (
	"archive/tar"
	"compress/gzip"
	"database/sql"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/test/postgres"
)

// unpackEarlier lays the data folder of an earlier release where its supervisor
// left it, with the accounts that it had.
func unpackEarlier(t *testing.T, name, dir string) {
	t.Helper()
	f, err := os.Open("../../internal/app/testdata/upgrade/" + name)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			must(t, os.MkdirAll(path, 0o700))
		} else {
			body, err := io.ReadAll(in)
			must(t, err)
			must(t, os.WriteFile(path, body, 0o600))
		}
		must(t, os.Lchown(path, h.Uid, h.Gid))
		must(t, os.Chmod(path, h.FileInfo().Mode().Perm()))
	}
}

// earlierRelease is a data folder in internal/app/testdata/upgrade.
type earlierRelease struct{ file, root, session string }

func TestTheServerTakesOverWhatAnEarlierReleaseLeft(t *testing.T) {
	needRoot(t)
	data := filepath.Join(t.TempDir(), "data")
	e := earlierRelease{"spine.tar.gz", "sha256:EoES0fc2bSW2XwP_62JXiQ", "s-0j9c0er2"}
	unpackEarlier(t, e.file, data)
	e.isTakenOver(t, data)
}

func TestTheServerTakesOverAnEarlierReleaseOnPostgreSQL(t *testing.T) {
	t.Parallel()
	needRoot(t)
	cluster := postgres.Start()
	defer cluster.Stop()
	url := cluster.Database(t)
	data := filepath.Join(t.TempDir(), "data")
	e := earlierRelease{"spine-postgres.tar.gz", "sha256:y4WbiWYfqWRI7WPcV8O_wQ", "s-gxs4qgha"}
	unpackEarlier(t, e.file, data)
	dump, err := os.ReadFile(filepath.Join(data, "database.sql"))
	must(t, err)
	db, err := sql.Open("pgx", url)
	must(t, err)
	_, err = db.ExecContext(t.Context(), string(dump))
	must(t, errors.Join(err, db.Close()))
	e.isTakenOver(t, data, "--database", url)
}

// isTakenOver runs the server alone, since the node's certificate in the folder
// is as old as the release.
func (e earlierRelease) isTakenOver(t *testing.T, data string, more ...string) {
	t.Helper()
	args := append(upArgs(t, data), more...)
	args[0] = "server"
	start := func() *installation { return rise(t, exec.Command(binary, args...), data) }
	i := start()
	defer func() { i.stop() }()
	ada := i.first()
	verify := func() {
		t.Helper()
		if out := ada.ok("ledger", "verify"); !strings.Contains(out, "nothing was touched") || !strings.Contains(out, e.root) {
			t.Errorf("the ledger that it left:\n%s", out)
		}
	}
	verify()
	if out := ada.ok("people"); !strings.Contains(out, "ben") {
		t.Errorf("its people:\n%s", out)
	}
	if out := ada.ok("hosts", "-o", "wide"); !strings.Contains(out, "old-host") || !strings.Contains(out, "staging") {
		t.Errorf("its hosts:\n%s", out)
	}
	if out := ada.ok("replay", e.session); out != "from an earlier release\n" {
		t.Errorf("what it recorded: %q", out)
	}
	if out := ada.ok("ledger", "list", "--limit", "60"); !strings.Contains(out, "ran a command on old-host, read-only: echo from an earlier release") {
		t.Errorf("what it wrote down is not told:\n%s", out)
	}
	ada.add("carol")
	i.stop()
	i = start()
	ada.i = i
	verify()
	if out := ada.ok("people"); !strings.Contains(out, "carol") {
		t.Errorf("a person of this release:\n%s", out)
	}
}
