// Package blob keeps bytes under names: put once, never changed, read in
// ranges, deleted as a whole. Two stores do the same: a folder, and a bucket of
// S3-compatible object storage.
//
// What must stay true:
//   - Put never overwrites: of two that put one name, one is told Conflict.
//   - When Put returns nil the bytes survive a power cut, whole.
//   - What is read is exactly the range that was asked for, or an error.
//   - Names that a store lists follow the rule of names, whoever wrote them.
package blob

import (
	"context"
	"io"
	"iter"
	"regexp"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// MaxSize bounds one blob. What is longer is kept as several.
const MaxSize = 64 << 20

const maxName = 200

// Source is what Put reads, perhaps more than once; *bytes.Reader and
// *io.SectionReader are sources.
type Source interface {
	io.ReaderAt
	Size() int64
}

// Info is what a store knows of a blob.
type Info struct {
	Name     string
	Size     int64
	Modified time.Time
}

// Store keeps blobs. Deleting what is not there is no error; putting what is
// there is fault.Conflict; reading what is not there is fault.NotFound.
type Store interface {
	// Put keeps 1 to MaxSize bytes under a new name.
	Put(ctx context.Context, name string, from Source) error
	// Get reads length bytes from an offset; length -1 is to the end. The range
	// lies within the blob and is not empty.
	Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)
	Stat(ctx context.Context, name string) (Info, error)
	// List yields every name that begins with the prefix, in no order. It ends
	// after the first error.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	Delete(ctx context.Context, name string) error
}

// nameRule lets through nothing that means something to a file system, a shell
// or a URL.
var nameRule = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)
})

// ValidName says whether a name may stand for a blob.
func ValidName(name string) bool {
	return len(name) <= maxName && nameRule().MatchString(name)
}

func checkName(name string) error {
	if !ValidName(name) {
		return fault.New(fault.Invalid, "cannot use %.100q as the name of a blob", name)
	}
	return nil
}

func checkPut(name string, from Source) error {
	if err := checkName(name); err != nil {
		return err
	}
	if n := from.Size(); n < 1 || n > MaxSize {
		return fault.New(fault.Invalid, "cannot keep %s: %d bytes, where 1 to %d are allowed", name, n, MaxSize)
	}
	return nil
}

func checkRange(name string, offset, length int64) error {
	if err := checkName(name); err != nil {
		return err
	}
	if offset < 0 || length < -1 || length == 0 || offset > MaxSize || length > MaxSize {
		return outside(name, offset, length)
	}
	return nil
}

func outside(name string, offset, length int64) error {
	return fault.New(fault.Invalid, "cannot read %d bytes of %s from %d: it is not that long", length, name, offset)
}

// checkPrefix lets a prefix end anywhere in a name.
func checkPrefix(prefix string) error {
	if prefix == "" || len(prefix) < maxName && ValidName(strings.TrimSuffix(prefix, "/")) {
		return nil
	}
	return fault.New(fault.Invalid, "cannot list blobs that begin with %.100q", prefix)
}

// exactly reads what was asked for: less is an error, more is not read.
type exactly struct {
	in   io.ReadCloser
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n, err := e.in.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
		if e.left == 0 {
			err = io.EOF
		}
	}
	return n, err
}

func (e *exactly) Close() error { return e.in.Close() }
