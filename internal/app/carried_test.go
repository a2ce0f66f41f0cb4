package app

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// carrier is a file that carries a program: a script, so that it can be run.
func carrier(t *testing.T) (path string, own, node []byte) {
	t.Helper()
	rnd := rand.NewChaCha8([32]byte{1})
	own = make([]byte, 300_000)
	_, _ = rnd.Read(own)
	node = append([]byte("#!/bin/sh\nexit 7\n"), own[1000:200_000]...)
	path = filepath.Join(t.TempDir(), "carrier")
	if err := carry(own, node, path); err != nil {
		t.Fatal(err)
	}
	return path, own, node
}

func unpackAt(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unpack(f)
}

func TestTheNodesProgramTravelsWithThisOne(t *testing.T) {
	path, own, node := carrier(t)
	if st, err := os.Stat(path); err != nil || st.Size() > int64(len(own)+len(own)/10) {
		t.Errorf("what is in the program already was packed again: %d bytes for %d, %v", st.Size(), len(own), err)
	}
	f, err := unpackAt(path)
	if err != nil || f == nil {
		t.Fatalf("unpack: %v, %v", f, err)
	}
	defer f.Close()
	got, err := os.ReadFile(self(f))
	if err != nil || !bytes.Equal(got, node) {
		t.Fatalf("another program came out: %d bytes, %v", len(got), err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut off")
	}
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SEAL == 0 {
		t.Errorf("seals %x, %v", seals, err)
	}
	err = exec.Command(self(f)).Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		t.Errorf("it does not run: %v", err)
	}
}

func TestAProgramThatCarriesNothingSaysSo(t *testing.T) {
	for _, name := range []string{"/proc/self/exe", os.DevNull} {
		if f, err := unpackAt(name); f != nil || err != nil {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

func TestWhatIsCarriedIsWholeOrNothing(t *testing.T) {
	path, own, _ := carrier(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := len(whole) - carriedTrailer + len(carriedMagic)
	for name, change := range map[string]func(b []byte) []byte{
		"a bit of the packed part": func(b []byte) []byte { b[len(own)+40] ^= 1; return b },
		"a bit of the program":     func(b []byte) []byte { b[150_000] ^= 1; return b },
		"a bit of the sum":         func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a huge length":            func(b []byte) []byte { b[at+6] = 0x7f; return b },
		"a negative length":        func(b []byte) []byte { b[at+7] = 0x80; return b },
		"a huge result":            func(b []byte) []byte { b[at+16+4] = 1; return b },
		"a byte less":              func(b []byte) []byte { return b[1:] },
	} {
		other := filepath.Join(t.TempDir(), "other")
		if err := os.WriteFile(other, change(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := unpackAt(other); f != nil || err == nil {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

func self(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
