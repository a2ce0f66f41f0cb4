package app

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
)

// testdata/upgrade holds data folders as releases left them. They are never
// changed. spine.tar.gz is of the release before the company's directory: one
// host, two people, two recorded sessions, 39 entries.
const earlierEntries = 39

// earlier unpacks the data folder of an earlier release.
func earlier(t *testing.T) place {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open("testdata/upgrade/spine.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return place(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var body []byte
			if body, err = io.ReadAll(in); err == nil {
				err = os.WriteFile(path, body, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// opened opens the store of a place with steps beyond those of this release.
func opened(t *testing.T, p place, more ...store.Migration) (*store.Store, error) {
	t.Helper()
	c, _, err := storeOf(p, "")
	if err != nil {
		t.Fatal(err)
	}
	c.Migrations = append(c.Migrations, more...)
	return store.Open(t.Context(), c)
}

// whole says that a store is what the earlier release left, and takes entries.
func whole(t *testing.T, s *store.Store) {
	t.Helper()
	report, err := s.Verify(t.Context(), nil)
	if err != nil || !report.OK || report.Entries < earlierEntries || report.Payloads < earlierEntries {
		t.Fatalf("the ledger of an earlier release: %+v, %v", report, err)
	}
	var names []string
	err = s.View(t.Context(), func(v *store.View) (err error) {
		names, err = store.All[string](v, `SELECT name FROM people ORDER BY name`)
		return err
	})
	if err != nil || !slices.Equal(names, []string{"admin", "ben"}) {
		t.Errorf("people %v, %v", names, err)
	}
}

func TestADatabaseOfANewerReleaseIsRefused(t *testing.T) {
	p := earlier(t)
	s, err := opened(t, p, store.Migration{Name: "later-1-more", SQL: "CREATE TABLE later (a BIGINT)"})
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and nothing was changed by the refusal
		_, err := opened(t, p)
		if f := fault.From(err); f.Kind != fault.Conflict || !strings.Contains(f.Text, "a newer handrail wrote it") || !strings.Contains(f.Text, "later-1-more") || f.Hint == "" {
			t.Fatalf("a newer database: %v, next %q", err, f.Hint)
		}
	}
	if s, err = opened(t, p, store.Migration{Name: "later-1-more", SQL: "CREATE TABLE later (a BIGINT)"}); err != nil {
		t.Fatal(err)
	}
	whole(t, s)
	_ = s.Close()
}

// endless never ends: who runs it stands in the middle of the migration, behind
// every step of this release, before the commit.
var endless = store.Migration{Name: "later-2-endless", SQL: `CREATE TABLE endless (n BIGINT); INSERT INTO endless WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c`}

const migrateEnv = "HANDRAIL_TEST_MIGRATE"

// migrateWithoutEnd is what the process does that is killed.
func migrateWithoutEnd(p place) error {
	c, _, err := storeOf(p, "")
	if err == nil {
		c.Migrations = append(c.Migrations, endless)
		_, err = store.Open(context.Background(), c)
	}
	return fmt.Errorf("the migration ended: %w", err)
}

func TestAMigrationThatIsKilledIsDoneAgain(t *testing.T) {
	p := earlier(t)
	before, err := os.Stat(filepath.Join(p.server(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), migrateEnv+"="+string(p))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		// What does not fit into memory any more is written before the commit.
		grown := func() bool {
			var size int64
			for _, name := range []string{"state.db", "state.db-wal"} {
				if info, err := os.Stat(filepath.Join(p.server(), name)); err == nil {
					size += info.Size()
				}
			}
			return size > before.Size()+4<<20
		}
		tick := time.NewTicker(10 * time.Millisecond)
		late := time.NewTimer(2 * time.Minute)
		for !grown() {
			select {
			case <-tick.C:
			case err := <-done:
				t.Fatalf("it ended by itself: %v", err)
			case <-late.C:
				_ = cmd.Process.Kill()
				t.Fatal("nothing of the migration is on disk")
			}
		}
		tick.Stop()
		late.Stop()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-done
	}
	for range 2 {
		s, err := opened(t, p)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
