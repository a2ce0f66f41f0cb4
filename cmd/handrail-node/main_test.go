package main

import (
	"os"
	"path/filepath"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestEveryRefusalSaysTheNextCommand(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "token")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		kind fault.Kind
	}{
		{[]string{"run", "--data", dir}, fault.NotFound},
		{[]string{"warden", "--data", dir}, fault.NotFound},
		{[]string{"link", "--data", dir}, fault.NotFound},
		{[]string{"join", "--data", dir, "--token-file", empty}, fault.Invalid},
		{[]string{"dance"}, fault.Invalid},
		{[]string{"run", "--wrong"}, fault.Invalid},
		{[]string{"run", "extra"}, fault.Invalid},
	} {
		err := run(t.Context(), c.args)
		f := fault.From(err)
		if err == nil || f.Kind != c.kind || f.Hint == "" {
			t.Errorf("%v: %v (kind %v, hint %q)", c.args, err, fault.KindOf(err), f.Hint)
		}
	}
}

func TestATokenIsReadFromAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("  hr1.word \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readToken(path); err != nil || got != "hr1.word" {
		t.Fatal(got, err)
	}
}
