package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/role"
)

// The node's program is small, starts in a third of the time and holds a third
// of the memory, and a node starts processes for each session. So this program
// carries it behind its own end, packed against itself, which has most of it:
//
//	this program | packed node | trailer: magic, three lengths, SHA-256
//
// It is run from memory, sealed: nobody can change it, and a program without a
// passenger (one that was built by hand) runs its roles itself.

const (
	carriedMagic   = "hr-node1"
	carriedTrailer = len(carriedMagic) + 3*8 + sha256.Size
	carriedMost    = 64 << 20 // of each part
	carriedDict    = 0x68726e64
)

// trailer is the end of a program that carries another.
type trailer struct {
	own, packed, plain int64
	sum                [sha256.Size]byte
}

func (t trailer) bytes() []byte {
	b := []byte(carriedMagic)
	for _, n := range []int64{t.own, t.packed, t.plain} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	return append(b, t.sum[:]...)
}

// readTrailer says what a program carries; ok is false where it is nothing.
func readTrailer(f *os.File) (t trailer, ok bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return t, false, err
	}
	b := make([]byte, carriedTrailer)
	if _, err := f.ReadAt(b, st.Size()-int64(len(b))); err != nil || string(b[:len(carriedMagic)]) != carriedMagic {
		return t, false, nil
	}
	at := b[len(carriedMagic):]
	for i, n := range []*int64{&t.own, &t.packed, &t.plain} {
		if *n = int64(binary.LittleEndian.Uint64(at[8*i:])); *n <= 0 || *n > carriedMost {
			return t, false, fault.New(fault.Invalid, "cannot unpack the node's program: a length of %d", *n)
		}
	}
	copy(t.sum[:], at[24:])
	if t.own+t.packed+int64(len(b)) != st.Size() {
		return t, false, fault.New(fault.Invalid, "cannot unpack the node's program: the lengths do not add up")
	}
	return t, true, nil
}

// unpack returns the program that f carries, in memory and sealed; nil where it
// carries none.
func unpack(f *os.File) (*os.File, error) {
	t, ok, err := readTrailer(f)
	if err != nil || !ok {
		return nil, err
	}
	whole, err := unix.Mmap(int(f.Fd()), 0, int(t.own+t.packed), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(whole) }()
	d, err := zstd.NewReader(nil, zstd.WithDecoderDictRaw(carriedDict, whole[:t.own]), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(2*carriedMost), zstd.WithDecoderMaxMemory(carriedMost))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	plain, err := d.DecodeAll(whole[t.own:], make([]byte, 0, t.plain))
	if err == nil && sha256.Sum256(plain) != t.sum {
		err = fault.New(fault.Invalid, "cannot unpack the node's program: it is not the one that was packed")
	}
	if err != nil {
		return nil, err
	}
	return inMemory(plain)
}

// inMemory makes a file without a name that nobody can change and that can be
// run.
func inMemory(program []byte) (*os.File, error) {
	const name, flags = "handrail-node", unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(program); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// nodeOf is how this machine's node is run. Where nothing is carried, or memory
// cannot be run on this host, this very program is the node's, too.
func nodeOf(entrance, version string) role.Node {
	n := role.Node{Entrance: entrance, Version: version}
	if self, err := os.Open(role.Program); err == nil {
		defer self.Close()
		n.Program, n.Release = passenger(self)
	}
	return n
}

// newerNode is the same of the program that is installed now.
func newerNode(ctx context.Context) (role.Node, error) {
	f, version, err := role.Installed(ctx)
	if err != nil {
		return role.Node{}, err
	}
	n := role.Node{Version: version}
	if n.Program, n.Release = passenger(f); n.Program == "" {
		n.Program, n.Release = role.PathOf(f), func() { f.Close() }
		return n, nil
	}
	f.Close()
	return n, nil
}

// passenger is the path of what a program carries; empty where it is nothing or
// cannot be run.
func passenger(carrier *os.File) (path string, release func()) {
	f, err := unpack(carrier)
	if err != nil {
		logger().Warn("the node runs from the whole program, and takes more memory", "error", err)
	}
	if f == nil {
		return "", nil
	}
	if path = role.PathOf(f); unix.Access(path, unix.X_OK) != nil {
		f.Close()
		return "", nil
	}
	return path, func() { f.Close() }
}

// carry writes program, with node packed behind it, to the file at to.
func carry(program, node []byte, to string) error {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(carriedMost), zstd.WithEncoderDictRaw(carriedDict, program))
	if err != nil {
		return err
	}
	packed := e.EncodeAll(node, nil)
	t := trailer{own: int64(len(program)), packed: int64(len(packed)), plain: int64(len(node)), sum: sha256.Sum256(node)}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	// In small writes: a file that was written in large ones lies in large
	// pages, of which a process that needs a part holds the whole.
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.MultiReader(bytes.NewReader(program), bytes.NewReader(packed), bytes.NewReader(t.bytes())), make([]byte, 32<<10))
	return errors.Join(err, f.Close())
}

// carryCommand is the last step of a build.
func carryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "carry NODE-PROGRAM", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Pack the node's program behind this one, as the last step of a build",
		RunE: func(_ *cobra.Command, args []string) error {
			program, err := ownProgram()
			if err != nil {
				return err
			}
			node, err := os.ReadFile(args[0])
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "cannot read the node's program")
			}
			path, err := os.Executable()
			if err != nil {
				return fault.Wrap(fault.Internal, err, "cannot find this program")
			}
			next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".next") // this one runs: it is replaced, not written
			if err = carry(program, node, next); err == nil {
				err = os.Rename(next, path)
			}
			if err != nil {
				return fault.Wrap(fault.Unavailable, err, "cannot pack the node's program")
			}
			return nil
		},
	}
}

// ownProgram is this program without what it carries.
func ownProgram() ([]byte, error) {
	f, err := os.Open(role.Program)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read this program")
	}
	defer f.Close()
	t, ok, err := readTrailer(f)
	if err != nil {
		return nil, err
	}
	in := io.Reader(f)
	if ok {
		in = io.LimitReader(f, t.own)
	}
	program, err := io.ReadAll(in)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read this program")
	}
	return program, nil
}
