package socket

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestASocketIsReachedHoweverDeepItLies(t *testing.T) {
	for name, deep := range map[string]string{
		"short": "d", "long": strings.Repeat("d", 120), "deep": strings.Repeat(strings.Repeat("d", 250)+"/", 10),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), deep)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "s")
			if _, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("nothing is there, and it says: %v", err)
			}
			if _, err := Dial(t.Context(), filepath.Join(dir, "none", "s")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("no folder is there, and it says: %v", err)
			}
			l, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			l.Close()
			if _, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("nobody listens any more, and it says: %v", err)
			}
			_ = os.Remove(path)
			if l, err = Listen(path); err != nil {
				t.Fatal(err)
			}
			l.Close()
		})
	}
}

func TestNoFolderStaysOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 120), "s")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if at, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && at == filepath.Dir(path) {
			t.Errorf("fd %s is the folder still", fd.Name())
		}
	}
}
