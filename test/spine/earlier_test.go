package spine_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unpackEarlier lays the data folder of an earlier release where its supervisor
// left it, with the accounts that it had.
func unpackEarlier(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open("../../internal/app/testdata/upgrade/spine.tar.gz")
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			must(t, os.MkdirAll(path, 0o700))
		} else {
			body, err := io.ReadAll(in)
			must(t, err)
			must(t, os.WriteFile(path, body, 0o600))
		}
		must(t, os.Lchown(path, h.Uid, h.Gid))
		must(t, os.Chmod(path, h.FileInfo().Mode().Perm()))
	}
}

// What is in internal/app/testdata/upgrade/spine.tar.gz.
const (
	earlierRoot    = "sha256:EoES0fc2bSW2XwP_62JXiQ"
	earlierSession = "s-0j9c0er2"
)

// The server alone, since the node's certificate in the folder is as old as the
// release.
func TestTheServerTakesOverWhatAnEarlierReleaseLeft(t *testing.T) {
	needRoot(t)
	data := filepath.Join(t.TempDir(), "data")
	unpackEarlier(t, data)
	args := upArgs(t, data)
	args[0] = "server"
	start := func() *installation {
		return rise(t, exec.Command(binary, args...), data)
	}
	i := start()
	defer func() { i.stop() }()
	ada := i.first()
	verify := func() {
		t.Helper()
		if out := ada.ok("ledger", "verify"); !strings.Contains(out, "nothing was touched") || !strings.Contains(out, earlierRoot) {
			t.Errorf("the ledger that it left:\n%s", out)
		}
	}
	verify()
	if out := ada.ok("people"); !strings.Contains(out, "ben") {
		t.Errorf("its people:\n%s", out)
	}
	if out := ada.ok("hosts", "-o", "wide"); !strings.Contains(out, "old-host") || !strings.Contains(out, "staging") {
		t.Errorf("its hosts:\n%s", out)
	}
	if out := ada.ok("replay", earlierSession); out != "from an earlier release\n" {
		t.Errorf("what it recorded: %q", out)
	}
	if out := ada.ok("ledger", "list", "--limit", "60"); !strings.Contains(out, "ran a command on old-host, read-only: echo from an earlier release") {
		t.Errorf("what it wrote down is not told:\n%s", out)
	}
	ada.add("carol")
	i.stop()
	i = start()
	ada.i = i
	verify()
	if out := ada.ok("people"); !strings.Contains(out, "carol") {
		t.Errorf("a person of this release:\n%s", out)
	}
}
