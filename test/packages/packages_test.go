// Package packages holds that packaging/ gives what an administrator expects: the
// same bytes twice, units that systemd takes, and a package that starts nothing,
// upgrades a node in its place and leaves the data when it is purged.
package packages

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/host/warden"
)

const packaging = "../../packaging"

// need skips where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is missing: test/need.sh installs it", p)
		}
	}
}

func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// standIns are programs in the place of ours, which take minutes to build and pack:
// the manual and the completions are asked for as of the real one.
func standIns(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"handrail": `case $1 in
man) mkdir -p "$2"; echo .TH >"$2/handrail.1"; echo .TH >"$2/handrail.toml.5" ;;
completion) echo "# $2" ;;
esac`,
		"handrail-node": `echo "asked: $*"`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// build makes packages of one format; day sets the time of the commit.
func build(t *testing.T, bin, format string, day int) (files []string) {
	t.Helper()
	out := t.TempDir()
	run(t, []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", 1_700_000_000+day*86400), "FORMATS=" + format}, "bash", packaging+"/build.sh", bin, out)
	files, err := filepath.Glob(filepath.Join(out, "*."+format))
	if err != nil || len(files) != 2 {
		t.Fatalf("packages: %v, %v", files, err)
	}
	return files // handrail-node before handrail_, and handrail-… by the version
}

func TestTheSameCommitGivesTheSamePackages(t *testing.T) {
	for format, tool := range map[string]string{"deb": "dpkg-deb", "rpm": "rpmbuild"} {
		t.Run(format, func(t *testing.T) {
			need(t, tool)
			bin := standIns(t)
			first := build(t, bin, format, 0)
			// In another second, so that whatever holds the time of the build shows it.
			<-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
			for i, again := range build(t, bin, format, 0) {
				a, err := os.ReadFile(first[i])
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(again)
				if err != nil || !bytes.Equal(a, b) || filepath.Base(first[i]) != filepath.Base(again) {
					t.Errorf("%s is another file the second time (%v)", filepath.Base(again), err)
				}
			}
		})
	}
}

func TestAnRPMHoldsWhatTheDebHolds(t *testing.T) {
	need(t, "dpkg-deb", "rpmbuild", "rpm")
	bin := standIns(t)
	debs, rpms := build(t, bin, "deb", 0), build(t, bin, "rpm", 0)
	contents := func(list string) (files []string) {
		for line := range strings.Lines(list) {
			path := strings.TrimPrefix(strings.TrimSpace(line), ".")
			if strings.HasSuffix(path, "/") || path == "/usr/share/doc/handrail" || path == "/usr/share/doc/handrail-node" || path == "/usr/share/handrail" {
				continue
			}
			files = append(files, strings.Replace(path, "/vendor-completions/", "/site-functions/", 1))
		}
		slices.Sort(files)
		return files
	}
	for i := range debs {
		var ofDeb []string
		for line := range strings.Lines(run(t, nil, "dpkg-deb", "-c", debs[i])) {
			words := strings.Fields(line)
			if words[1] != "root/root" {
				t.Errorf("not root's: %s", line)
			}
			ofDeb = append(ofDeb, words[5])
		}
		name := "handrail-node"
		if strings.Contains(debs[i], "handrail_") {
			name = "handrail"
		}
		j := slices.IndexFunc(rpms, func(p string) bool {
			return strings.TrimSpace(run(t, nil, "rpm", "-qp", "--qf", "%{NAME}", p)) == name
		})
		a, b := contents(strings.Join(ofDeb, "\n")), contents(run(t, nil, "rpm", "-qpl", rpms[j]))
		if !slices.Equal(a, b) {
			t.Errorf("%s: the deb has\n%s\nthe rpm\n%s", name, strings.Join(a, "\n"), strings.Join(b, "\n"))
		}
		scripts := run(t, nil, "rpm", "-qp", "--scripts", rpms[j])
		for _, part := range []string{"postinstall", "preuninstall", "postuninstall", "is kept"} {
			if !strings.Contains(scripts, part) {
				t.Errorf("%s: no %q in the scripts\n%s", name, part, scripts)
			}
		}
	}
}

// place is a root of its own, as dpkg has one.
type place struct {
	*testing.T
	dir string
}

func newPlace(t *testing.T) place {
	p := place{t, t.TempDir()}
	for _, dir := range []string{"etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "usr"} {
		if err := os.MkdirAll(p.at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write("var/lib/dpkg/status", "")
	p.write("var/lib/dpkg/available", "")
	p.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	p.write("etc/group", "root:x:0:\n")
	return p
}

func (p place) at(part string) string { return filepath.Join(p.dir, part) }

func (p place) write(name, text string) {
	p.Helper()
	if err := os.WriteFile(p.at(name), []byte(text), 0o644); err != nil {
		p.Fatal(err)
	}
}

func (p place) has(name string) bool {
	_, err := os.Lstat(p.at(name))
	return err == nil
}

func (p place) dpkg(args ...string) string {
	p.Helper()
	return run(p.T, nil, "dpkg", append([]string{"--root=" + p.dir, "--force-script-chrootless", "--force-not-root", "--force-depends", "--force-bad-path"}, args...)...)
}

func TestAPackageIsInstalledUpgradedAndPurged(t *testing.T) {
	need(t, "dpkg", "dpkg-deb", "systemd-sysusers", "systemd-tmpfiles")
	if os.Geteuid() != 0 {
		t.Skip("needs root: the folders belong to accounts")
	}
	bin := standIns(t)
	p := newPlace(t)
	older, newer := build(t, bin, "deb", 0), build(t, bin, "deb", 1)
	said := p.dpkg(append([]string{"-i"}, older...)...)
	for _, want := range []string{"handrail: next: ", "handrail-node: next: "} {
		if strings.Count(said, want) != 1 {
			t.Errorf("the installation does not say %q once:\n%s", want, said)
		}
	}
	if links, _ := filepath.Glob(p.at("etc/systemd/system/*/*")); len(links) > 0 || p.has("etc/handrail/handrail.toml") {
		t.Errorf("something is enabled or configured by being installed: %v", links)
	}
	var data unix.Stat_t
	if err := unix.Stat(p.at("var/lib/handrail-server"), &data); err != nil || data.Mode&0o777 != 0o700 || data.Uid == 0 {
		t.Errorf("the server's folder: mode %o, account %d, %v", data.Mode, data.Uid, err)
	}

	p.write("var/lib/handrail-server/ledger", "what happened")
	p.write("var/lib/handrail/pin", "whom to believe")
	if said = p.dpkg(append([]string{"-i"}, newer...)...); strings.Contains(said, "asked:") {
		t.Errorf("no node runs, and one was upgraded:\n%s", said)
	}
	if err := os.Mkdir(p.at("var/lib/handrail/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.ear("var/lib/handrail/run/node.sock")
	if said = p.dpkg(append([]string{"-i"}, newer...)...); !strings.Contains(said, "asked: upgrade --data "+p.at("var/lib/handrail")+"\n") {
		t.Errorf("a node runs, and was not upgraded:\n%s", said)
	}

	said = p.dpkg("--purge", "handrail", "handrail-node")
	if strings.Count(said, "is kept") != 2 || !p.has("var/lib/handrail-server/ledger") || !p.has("var/lib/handrail/pin") {
		t.Errorf("a purge says or leaves something else:\n%s", said)
	}
	if p.has("usr/bin/handrail") || p.has("usr/lib/systemd/system/handrail-node.service") {
		t.Error("a purge leaves files of the package")
	}
}

// ear makes a socket at a path that may be longer than the kernel takes.
func (p place) ear(name string) {
	p.Helper()
	dir, err := os.Open(filepath.Dir(p.at(name)))
	if err != nil {
		p.Fatal(err)
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(name)))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { l.Close() })
}

// unit reads the values of a key.
func unit(t *testing.T, name, key string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(packaging, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			values = append(values, value)
		}
	}
	return values
}

func TestTheNodesUnitListsWhatItsWardenKeeps(t *testing.T) {
	names := map[uintptr]string{unix.CAP_KILL: "CAP_KILL"} // another one gets its name here and in the unit
	var kept []string
	for _, c := range warden.Capabilities {
		kept = append(kept, names[c])
	}
	if listed := unit(t, "handrail-node.service", "WardenKeeps"); !slices.Equal(listed, []string{strings.Join(kept, " ")}) {
		t.Errorf("the unit lists %v, the warden keeps %v", listed, kept)
	}
}

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func TestSystemdTakesTheUnits(t *testing.T) {
	need(t, "systemd-analyze")
	for name, most := range map[string]float64{"handrail-server.service": 1.5, "handrail-node.service": 10} {
		text, err := os.ReadFile(filepath.Join(packaging, name))
		if err != nil {
			t.Fatal(err)
		}
		// Of the unit only the program may be missing here.
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, regexp.MustCompile(`ExecStart=/usr/bin/\S+`).ReplaceAll(text, []byte("ExecStart=/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		if said := run(t, nil, "systemd-analyze", "verify", "--man=no", path); strings.Contains(said, name) {
			t.Errorf("systemd says of %s:\n%s", name, said)
		}
		said := run(t, nil, "systemd-analyze", "security", "--no-pager", "--offline=true", path)
		m := exposure.FindStringSubmatch(said)
		if m == nil {
			t.Fatalf("no exposure of %s:\n%s", name, said)
		}
		got, err := strconv.ParseFloat(m[1], 64)
		if err != nil || got > most {
			t.Errorf("the exposure of %s is %v, at most %v\n%s", name, got, most, said)
		}
		t.Logf("exposure of %s: %v", name, got)
		for key, want := range map[string]string{"StartLimitIntervalSec": "0", "Restart": "on-failure", "Type": "notify"} {
			if v := unit(t, name, key); !slices.Equal(v, []string{want}) {
				t.Errorf("%s: %s is %v, not %s", name, key, v, want)
			}
		}
	}
}
