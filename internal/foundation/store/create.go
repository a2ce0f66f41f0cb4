package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
)

// suffixDraft is behind the name of a database that is not yet in its place.
const suffixDraft = ".new"

// create makes the parts of a new installation's database that are missing, each
// with its whole schema, beside the place where it will lie: until the rename
// nobody relies on it, so that it need not be safe at each step, and is synced
// once. What was killed before leaves a draft, which the next attempt overwrites.
// PostgreSQL needs none of this.
func (d dialect) create(ctx context.Context, parts map[string][]Migration) error {
	if d.name != "sqlite" {
		return nil
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot open store in %s", d.dir)
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot open store in %s", d.dir)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil { // whoever comes second finds what the first made
		return fault.Wrap(fault.Unavailable, err, "cannot lock %s", d.dir)
	}
	var mu sync.Mutex
	var made []string
	var failed error
	var both sync.WaitGroup
	for part, steps := range parts {
		path := filepath.Join(d.dir, part+".db")
		if there, err := anyOf(path, path+"-wal", path+"-journal"); err != nil || there {
			failed = errors.Join(failed, err)
			continue
		}
		both.Go(func() {
			err := d.draft(ctx, path+suffixDraft, part, steps)
			mu.Lock()
			defer mu.Unlock()
			made, failed = append(made, path), errors.Join(failed, err)
		})
	}
	both.Wait()
	if failed != nil || len(made) == 0 {
		return failed
	}
	for _, path := range made {
		if err := os.Rename(path+suffixDraft, path); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot put %s in its place", path)
		}
	}
	if err := dir.Sync(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot sync %s", d.dir)
	}
	return nil
}

// draft makes one part at path, and returns when it is on disk.
func (d dialect) draft(ctx context.Context, path, part string, steps []Migration) error {
	for _, left := range []string{path, path + "-wal", path + "-shm", path + "-journal"} {
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(fault.Unavailable, err, "cannot remove %s", left)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make %s", path)
	}
	if err := f.Close(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make %s", path)
	}
	db, err := openSQLite(path, "", "journal_mode(MEMORY)", "synchronous(OFF)")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	err = d.migrate(ctx, db, part, steps)
	if err == nil {
		_, err = db.ExecContext(ctx, `PRAGMA journal_mode = WAL`) // the file says so from now on
		err = asFault(err, "make the database")
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if f, err = os.Open(path); err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot sync %s", path)
	}
	return nil
}

// anyOf says whether one of the files is there.
func anyOf(paths ...string) (bool, error) {
	for _, path := range paths {
		_, err := os.Lstat(path)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fault.Wrap(fault.Unavailable, err, "cannot open store")
		}
	}
	return false, nil
}
