package app

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/host/role"
)

func restoreCommand() *cobra.Command {
	r := restore{}
	var seal sealing
	var rootFile string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a server again from a backup, in a folder that has none",
		Long: `Reads FILE and FILE.keys (or the newest one, by --keys), and signs a new epoch with
the root key: hosts and clients that saw a later ledger accept the older one with
it, and only with it. An entry names the cut. Whoever was erased stays erased.`,
		Example: `  handrail restore /backup/handrail-monday --root-key /media/key/root.key
  handrail restore /backup/handrail-monday --keys /backup/handrail-friday.keys --database postgres://…`,
		Args: cobra.ExactArgs(1), PreRunE: configure,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.database == "" {
				r.database = os.Getenv(databaseEnv)
			}
			if r.file = args[0]; r.keysFile == "" {
				r.keysFile = r.file + keysSuffix
			}
			if rootFile != "" {
				if r.root, err = os.ReadFile(rootFile); err != nil {
					return fault.Wrap(fault.NotFound, err, "cannot read the root key")
				}
			}
			if r.identities, err = seal.identities(cmd); err != nil {
				return err
			}
			return r.run(cmd)
		},
	}
	cmd.Flags().StringVar(&r.data, "data", "", "folder for the server's data")
	cmd.Flags().StringVar(&r.database, "database", "", "URL of an empty PostgreSQL database (default: SQLite in the data folder)")
	cmd.Flags().StringVar(&r.keysFile, "keys", "", "newest file of data keys (default: FILE.keys)")
	cmd.Flags().StringVar(&rootFile, "root-key", "", "file of the root key (default: the backup's, or the data folder's)")
	seal.flags(cmd, false)
	return cmd
}

// restore is one restore. Until its last step the folder has no ring, so that
// no server starts on half of it.
type restore struct {
	data, database, file, keysFile string
	identities                     []age.Identity
	root                           []byte

	p     place
	stage string // where the ring is until it is whole
	m     manifest
}

func (r *restore) run(cmd *cobra.Command) error {
	dir, err := dataFolder(r.data)
	if err != nil {
		return err
	}
	at, err := role.Prepare(dir, true)
	if err != nil {
		return err
	}
	lock, err := at.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	r.p = place(dir)
	r.stage = filepath.Join(r.p.server(), "keys.restoring")
	if left, err := os.ReadDir(r.p.server()); err != nil || len(left) > 0 {
		return fault.New(fault.Conflict, "cannot restore into %s: there is a server's data, or half a restore", r.p.server()).
			WithHint("move %s away first", r.p.server())
	}
	if err := r.check(); err != nil {
		return err
	}
	ring, err := r.unpack(cmd.Context())
	if err != nil {
		return err
	}
	entries, err := r.reopen(cmd.Context(), ring)
	if err != nil {
		return err
	}
	if err := os.Rename(r.stage, r.p.keys()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot put the ring in place")
	}
	if at.Root {
		if err := giveTo(dir, "server", at.Server); err != nil {
			return err
		}
	}
	if err := r.p.noteKeysMade(); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "restored %d entries of %s, backed up %s\n", entries, r.m.Origin, r.m.Made)
	fmt.Fprintln(cmd.ErrOrStderr(), "start the server; hosts follow by themselves. What happened after the backup is lost: see the entry ledger.restored")
	return nil
}

// check looks at all that is needed before anything is written.
func (r *restore) check() error {
	var keys manifest
	for file, m := range map[string]*manifest{r.file: &r.m, r.keysFile: &keys} {
		err := r.each(file, func(name string, body io.Reader) error {
			if name != "manifest.json" {
				return errEnough
			}
			return json.NewDecoder(io.LimitReader(body, maxManifest)).Decode(m)
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	if keys.Root != r.m.Root || keys.Made < r.m.Made {
		return fault.New(fault.Conflict, "cannot restore: the keys of %s do not belong to the backup of %s", keys.Made, r.m.Made).
			WithHint("--keys names the newest file of the same installation")
	}
	if r.root != nil || r.m.RootKey {
		return nil
	}
	var err error
	if r.root, err = os.ReadFile(filepath.Join(r.p.rootKey(), "root.key")); err != nil {
		return fault.New(fault.NotFound, "cannot restore without the root key: it signs the new epoch").WithHint("--root-key FILE")
	}
	return nil
}

var errEnough = errors.New("enough was read")

// unpack puts everything in place but the name of the ring's folder.
func (r *restore) unpack(ctx context.Context) (*keyring.Ring, error) {
	if err := os.MkdirAll(filepath.Join(r.stage, "subjects"), 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot restore")
	}
	c := store.Config{DSN: r.dsn(), Migrations: migrations(), Observations: observations()}
	err := r.each(r.file, func(name string, body io.Reader) error {
		switch {
		case name == "manifest.json":
			return nil
		case name == "database":
			return store.Load(ctx, c, body)
		case name == "root.key":
			key, err := io.ReadAll(io.LimitReader(body, maxToken))
			if r.root == nil {
				r.root = key
			}
			return err
		case strings.HasPrefix(name, "keys/"):
			return writeBelow(r.stage, strings.TrimPrefix(name, "keys/"), body)
		case strings.HasPrefix(name, "recordings/"):
			return writeBelow(r.p.server(), name, body)
		}
		return fault.New(fault.Invalid, "cannot restore %q: this version does not know it", name)
	})
	if err != nil {
		return nil, err
	}
	err = r.each(r.keysFile, func(name string, body io.Reader) error {
		switch {
		case name == "manifest.json":
			return nil
		case name == "data-keys":
			return store.LoadMore(ctx, c, body)
		case strings.HasPrefix(name, "subjects/"):
			return writeBelow(r.stage, name, body)
		}
		return fault.New(fault.Invalid, "cannot restore %q: this version does not know it", name)
	})
	if err != nil {
		return nil, err
	}
	return keyring.NewEpoch(r.stage, r.root, time.Now())
}

func (r *restore) dsn() string {
	if r.database != "" {
		return r.database
	}
	return "sqlite:" + r.p.server()
}

// each opens a sealed file and hands out what is in it.
func (r *restore) each(file string, take func(name string, body io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "cannot read the backup")
	}
	defer f.Close()
	open, err := age.Decrypt(f, r.identities...)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot open %s", file).WithHint("is this the passphrase it was sealed with?")
	}
	in := tar.NewReader(open)
	seen := false
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			if !seen {
				return fault.New(fault.Invalid, "cannot read the backup: %s is empty", file)
			}
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read the backup %s", file)
		}
		if h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) {
			return fault.New(fault.Invalid, "cannot restore %q: it is no plain file", h.Name)
		}
		if err := take(h.Name, in); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "cannot restore %s", h.Name)
		}
		seen = true
	}
}

// writeBelow writes a new file below dir; no name leads out of it.
func writeBelow(dir, name string, body io.Reader) error {
	in, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := in.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := in.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Sync(), f.Close())
}

// reopen opens the ledger under the new epoch, records the cut, erases again
// whoever was erased after the backup, and verifies all of it.
func (r *restore) reopen(ctx context.Context, ring *keyring.Ring) (int64, error) {
	bundle, signed := ring.Bundle()
	s, err := store.Open(ctx, store.Config{
		DSN: r.dsn(), Origin: ring.Origin(), Signer: ring.Log(), Verifier: ring.LogVerifier(), Seals: ring.Subjects(), Epoch: bundle.Epoch,
		Spool: r.p.server(), Bundle: func() []byte { return signed }, Migrations: migrations(), Observations: observations(),
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	if d := s.Damage(); d != nil {
		return 0, d
	}
	if isShared(r.dsn()) { // what several servers sealed is read by the keys on their shelf
		if err := ring.Subjects().UseShelf(peer.Shelf(s)); err != nil {
			return 0, err
		}
	}
	size := s.Size()
	if _, err := s.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: ledger.ActionRestored, Payload: map[string]any{
			"v": 1, "epoch": bundle.Epoch, "size": size, "reason": "restored from the backup of " + r.m.Made,
		}}}, nil
	}); err != nil {
		return 0, err
	}
	if err := eraseAgain(ctx, s, ring); err != nil {
		return 0, err
	}
	report, err := s.Verify(ctx, nil)
	if err != nil {
		return 0, err
	}
	if !report.OK {
		return 0, fault.New(fault.Conflict, "cannot restore: the ledger does not verify: %s", report.Findings[0])
	}
	return size, s.Close()
}

// eraseAgain records the erasures that the backup does not know.
func eraseAgain(ctx context.Context, s *store.Store, ring *keyring.Ring) error {
	gone, err := ring.Subjects().Erased()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	err = s.View(ctx, func(v *store.View) error {
		all, err := store.All[string](v, `SELECT object FROM ledger_entry WHERE action = $1`, string(ledger.ActionErased))
		for _, subject := range all {
			known[subject] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, subject := range slices.DeleteFunc(gone, func(subject string) bool { return known[subject] }) {
		_, err := s.Erase(ctx, "restored-erasure-"+subject, subject, ledger.Entry{
			Subjects: []string{ledger.System}, Payload: map[string]any{"v": 1, "ground": "erased before; the backup was older"},
		})
		if err != nil {
			return err
		}
	}
	return nil
}
