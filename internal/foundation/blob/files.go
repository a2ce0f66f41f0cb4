package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Files keeps blobs as files of a folder, names as paths.
type Files struct{ root *os.Root }

// OpenFiles opens a folder, which must be there: a folder that is made because
// a disk is not mounted would take what is meant for the disk.
func OpenFiles(dir string) (*Files, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, err, "cannot open the folder of blobs").WithHint("mkdir %s", dir)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the folder of blobs")
	}
	return &Files{root: root}, nil
}

// unfinished begins the names of files that are not whole yet.
const unfinished = ".put-"

// Put writes a file of another name, makes it durable, and links it to its own.
func (f *Files) Put(ctx context.Context, name string, from Source) error {
	if err := checkPut(name, from); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep %s", name)
	}
	dir := path.Dir(name)
	if err := f.root.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep %s", name)
	}
	raw := make([]byte, 12)
	_, _ = rand.Read(raw) // never fails
	part := path.Join(dir, unfinished+hex.EncodeToString(raw))
	defer func() { _ = f.root.Remove(part) }()
	err := f.write(part, from)
	if err == nil {
		err = f.root.Link(part, name)
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "cannot keep %s: there is one of that name", name)
	}
	for err == nil {
		err = f.syncDir(dir)
		if dir == "." {
			break
		}
		dir = path.Dir(dir)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep %s", name)
	}
	return nil
}

func (f *Files) write(part string, from Source) error {
	out, err := f.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.NewSectionReader(from, 0, from.Size()))
	if err == nil && n != from.Size() {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, out.Sync(), out.Close())
}

func (f *Files) syncDir(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get reads a range of a file.
func (f *Files) Get(_ context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := checkRange(name, offset, length); err != nil {
		return nil, err
	}
	in, err := f.root.Open(name)
	if err != nil {
		return nil, f.absent(err, name, "read")
	}
	st, err := in.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fault.New(fault.NotFound, "cannot read %s: it is no blob", name)
	}
	if err == nil {
		if length == -1 {
			length = st.Size() - offset
		}
		if length < 1 || offset+length > st.Size() {
			err = outside(name, offset, length)
		}
	}
	if err == nil {
		_, err = in.Seek(offset, io.SeekStart)
	}
	if err != nil {
		in.Close()
		return nil, err
	}
	return &exactly{in: in, left: length}, nil
}

// Stat says how long a blob is.
func (f *Files) Stat(_ context.Context, name string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, err
	}
	st, err := f.root.Lstat(name)
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, f.absent(err, name, "find")
	}
	return Info{Name: name, Size: st.Size(), Modified: st.ModTime()}, nil
}

func (f *Files) absent(err error, name, verb string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "cannot %s %s: there is no such blob", verb, name)
	}
	return fault.Wrap(fault.Unavailable, err, "cannot %s %s", verb, name)
}

// List walks the folder.
func (f *Files) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		start := "."
		if at := strings.LastIndexByte(prefix, '/'); at > 0 {
			start = prefix[:at]
		}
		err := fs.WalkDir(f.root.FS(), start, func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // nothing of that prefix, or deleted meanwhile
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(name, prefix) || !ValidName(name) {
				return err
			}
			st, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && !yield(Info{Name: name, Size: st.Size(), Modified: st.ModTime()}, nil) {
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			yield(Info{}, fault.Wrap(fault.Unavailable, err, "cannot list blobs"))
		}
	}
}

// Delete removes a file, and its folder if that was the last.
func (f *Files) Delete(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot delete %s", name)
	}
	dir := path.Dir(name)
	if dir != "." {
		_ = f.root.Remove(dir) // only if it is empty
	}
	if err := f.syncDir(path.Dir(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot delete %s", name)
	}
	return nil
}
