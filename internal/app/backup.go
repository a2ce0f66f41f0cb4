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
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/host/role"
)

// A backup is two files, each a tar sealed with age. FILE holds the database,
// the recordings and the server's keys, and may be kept for years. FILE.keys
// holds the data keys of people, and only the newest is kept: it opens older
// backups too, but for whoever was erased since. The root key is in neither,
// unless somebody asks for it.
//
//	FILE       manifest.json  database  keys/…  recordings/…  [root.key]
//	FILE.keys  manifest.json  subjects/…  data-keys
const (
	keysSuffix   = ".keys"
	dataKeyTable = "data_keys" // the data keys of several servers (observations)
	maxManifest  = 64 << 10
)

// manifest says what a backup is.
type manifest struct {
	V       int    `json:"v"`
	Made    string `json:"made"`
	Origin  string `json:"origin"`
	Root    string `json:"root"` // hash of the root key
	Entries int64  `json:"entries"`
	Version string `json:"version"`
	RootKey bool   `json:"root_key,omitempty"` // it is in it
}

// backupFDs are where the server's account writes the two parts.
const backupFD, backupKeysFD = 3, 4

func backupCommand(version string) *cobra.Command {
	var data, database string
	var seal sealing
	var withRoot bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy everything of the server into two sealed files, while it runs",
		Long: `Writes FILE (database, recordings, the server's keys) and FILE.keys (the keys of
people's data), sealed with a passphrase or to an age recipient. Keep each FILE
as long as you like, but only the newest FILE.keys: it opens older ones too,
without bringing back anybody who was erased since. The root key is not in it.`,
		Example: `  handrail backup /backup/handrail-monday                              # asks for a passphrase
  handrail backup --recipient age1… /backup/handrail-monday`,
		Args: cobra.ExactArgs(1), PreRunE: configure,
		RunE: func(cmd *cobra.Command, args []string) error {
			if database == "" {
				database = os.Getenv(databaseEnv)
			}
			if dir := os.Getenv(offlineEnv); dir != "" && os.Geteuid() != 0 {
				return backupParts(cmd.Context(), place(dir), database, manifest{Version: version, RootKey: withRoot}, os.NewFile(backupFD, "backup"), os.NewFile(backupKeysFD, "keys"))
			}
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			recipient, err := seal.recipient(cmd)
			if err != nil {
				return err
			}
			var root []byte
			if withRoot {
				if root, err = os.ReadFile(filepath.Join(place(dir).rootKey(), "root.key")); err != nil {
					return fault.Wrap(fault.NotFound, err, "cannot put the root key into the backup")
				}
			}
			return backup(cmd, dir, database, version, args[0], recipient, root)
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder of the server's data")
	cmd.Flags().StringVar(&database, "database", "", "PostgreSQL URL, if the server uses it")
	cmd.Flags().BoolVar(&withRoot, "with-root-key", false, "put the root key in, too: who opens the backup then owns everything")
	seal.flags(cmd, true)
	return cmd
}

// sealing is how files are sealed and opened.
type sealing struct{ to, passphraseFile, identityFile string }

func (s *sealing) flags(cmd *cobra.Command, sealing bool) {
	cmd.Flags().StringVar(&s.passphraseFile, "passphrase-file", "", "file that holds the passphrase")
	if sealing {
		cmd.Flags().StringVar(&s.to, "recipient", "", "age recipient (age1…) instead of a passphrase")
		return
	}
	cmd.Flags().StringVar(&s.identityFile, "identity", "", "age identity file instead of a passphrase")
}

func (s *sealing) recipient(cmd *cobra.Command) (age.Recipient, error) {
	if s.to != "" {
		r, err := age.ParseX25519Recipient(s.to)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot seal to %q", s.to)
		}
		return r, nil
	}
	words, err := readPassphrase(cmd, s.passphraseFile)
	if err != nil {
		return nil, err
	}
	return age.NewScryptRecipient(words)
}

func (s *sealing) identities(cmd *cobra.Command) ([]age.Identity, error) {
	if s.identityFile != "" {
		f, err := os.Open(s.identityFile)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "cannot read the identity")
		}
		defer f.Close()
		ids, err := age.ParseIdentities(f)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the identity")
		}
		return ids, nil
	}
	words, err := readPassphrase(cmd, s.passphraseFile)
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(words)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot use the passphrase")
	}
	return []age.Identity{id}, nil
}

// minPassphrase is short only for a file that nobody else gets hold of.
const minPassphrase = 12

func readPassphrase(cmd *cobra.Command, file string) (string, error) {
	in := cmd.InOrStdin()
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fault.Wrap(fault.NotFound, err, "cannot read the passphrase")
		}
		defer f.Close()
		in = f
	} else {
		fmt.Fprint(cmd.ErrOrStderr(), "passphrase: ")
	}
	raw, err := io.ReadAll(io.LimitReader(onlyLine{in}, maxToken))
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot read the passphrase")
	}
	words := strings.TrimRight(string(raw), "\r\n")
	if len(words) < minPassphrase {
		return "", fault.New(fault.Invalid, "cannot use the passphrase: it has fewer than %d characters", minPassphrase)
	}
	return words, nil
}

// backup seals what the server's account reads.
func backup(cmd *cobra.Command, dir, database, version, file string, to age.Recipient, root []byte) error {
	at, err := role.Prepare(dir, true)
	if err != nil {
		return err
	}
	parts, ends, err := pipes(2)
	if err != nil {
		return err
	}
	m := manifest{Version: version, RootKey: root != nil}
	read := make(chan error, 1)
	go func() {
		var err error
		if at.Root {
			err = asServer(cmd, at, database, ends...)
		} else {
			err = backupParts(cmd.Context(), place(dir), database, m, ends[0], ends[1])
		}
		for _, e := range ends {
			e.Close()
		}
		read <- err
	}()
	var told manifest
	var extra []tarFile
	if root != nil {
		extra = append(extra, tarFile{"root.key", root})
	}
	err = sealed(file, to, parts[0], &told, extra)
	if err == nil {
		err = sealed(file+keysSuffix, to, parts[1], nil, nil)
	}
	for _, p := range parts {
		p.Close() // ends who still writes
	}
	if rerr := <-read; rerr != nil {
		err = rerr
	}
	if err == nil {
		err = errors.Join(os.Rename(file+partial, file), os.Rename(file+keysSuffix+partial, file+keysSuffix))
	}
	if err != nil {
		_ = os.Remove(file + partial)
		_ = os.Remove(file + keysSuffix + partial)
		return exitAs(err)
	}
	if err := noteBackup(place(dir), backupNote{At: time.Now().UTC(), Entries: told.Entries}); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "backed up %d entries to %s\n", told.Entries, file)
	fmt.Fprintf(cmd.ErrOrStderr(), "keep %s apart, and only the newest one\n", file+keysSuffix)
	return nil
}

// partial is the name of a file until it is whole.
const partial = ".partial"

func pipes(n int) (readers, writers []*os.File, err error) {
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fault.Wrap(fault.Exhausted, err, "cannot make a pipe")
		}
		readers, writers = append(readers, r), append(writers, w)
	}
	return readers, writers, nil
}

type tarFile struct {
	name string
	body []byte
}

// sealed copies a tar into a sealed file, with some files more.
func sealed(file string, to age.Recipient, from io.Reader, m *manifest, extra []tarFile) error {
	f, err := os.OpenFile(file+partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write the backup")
	}
	defer f.Close()
	box, err := age.Encrypt(f, to)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot seal the backup")
	}
	out := tar.NewWriter(box)
	in := tar.NewReader(from)
	for err == nil {
		var h *tar.Header
		if h, err = in.Next(); err != nil {
			break
		}
		var body io.Reader = in
		if m != nil && h.Name == "manifest.json" {
			var copied strings.Builder
			body = io.TeeReader(in, &copied)
			if err = out.WriteHeader(h); err == nil {
				_, err = io.Copy(out, body)
			}
			_ = json.Unmarshal([]byte(copied.String()), m)
			continue
		}
		if err = out.WriteHeader(h); err == nil {
			_, err = io.Copy(out, body)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	for _, x := range extra {
		if err == nil {
			err = addFile(out, x.name, x.body)
		}
	}
	err = errors.Join(err, out.Close(), box.Close(), f.Sync())
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write the backup")
	}
	return nil
}

func addFile(out *tar.Writer, name string, body []byte) error {
	err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(body))})
	if err == nil {
		_, err = out.Write(body)
	}
	return err
}

// backupParts writes both parts, unsealed, for who seals them. The database
// comes first: what is destroyed after its snapshot is not in the keys.
func backupParts(ctx context.Context, p place, database string, m manifest, all, keys io.WriteCloser) error {
	defer all.Close()
	defer keys.Close()
	c, ring, err := storeOf(p, database)
	if err != nil {
		return err
	}
	m.V, m.Made, m.Origin, m.Root = 1, time.Now().UTC().Format(time.RFC3339), ring.Origin(), ring.RootHash()
	spool, err := os.CreateTemp(p.server(), ".backup")
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the snapshot")
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the snapshot")
	}
	if m.Entries, err = store.Dump(ctx, c, spool, func(_, table string) bool { return table != dataKeyTable }); err != nil {
		return err
	}
	head, _ := json.Marshal(m) // plain strings and numbers always marshal
	out := tar.NewWriter(all)
	err = addFile(out, "manifest.json", head)
	if err == nil {
		err = addOpen(out, "database", spool)
	}
	if err == nil {
		err = addTree(out, p.keys(), "keys", func(path string) bool { return path != "subjects" && path != "joining.key" })
	}
	if err == nil {
		err = addTree(out, filepath.Join(p.server(), "recordings"), "recordings", nil)
	}
	if err = errors.Join(err, out.Close(), all.Close()); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "cannot read everything for the backup")
	}
	out = tar.NewWriter(keys)
	err = addFile(out, "manifest.json", head)
	if err == nil {
		err = addTree(out, filepath.Join(p.keys(), "subjects"), "subjects", nil)
	}
	if err == nil {
		err = spool.Truncate(0)
	}
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = store.Dump(ctx, c, spool, func(_, table string) bool { return table == dataKeyTable })
	}
	if err == nil {
		err = addOpen(out, "data-keys", spool)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "cannot read the keys for the backup")
	}
	return nil
}

func addOpen(out *tar.Writer, name string, f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size})
	}
	if err == nil {
		_, err = io.Copy(out, f)
	}
	return err
}

// addTree adds the plain files below a folder. What grows meanwhile is taken as
// far as it was; what goes away is left out.
func addTree(out *tar.Writer, dir, as string, take func(path string) bool) error {
	in, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer in.Close()
	return fs.WalkDir(in.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if take != nil && !take(path) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || strings.HasPrefix(filepath.Base(path), ".") {
			return nil
		}
		f, err := in.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: as + "/" + path, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
			return err
		}
		_, err = io.CopyN(out, f, info.Size())
		return err
	})
}
