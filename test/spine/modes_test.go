package spine_test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ordinary is an account without any power.
const ordinary = 65534

// ordinaryUser is how a process is started as that account.
func ordinaryUser() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
}

// container is how a process is started as root of a user namespace that has
// the usual 65536 accounts, as a container without privileges has.
func container() *syscall.SysProcAttr {
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	return &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true,
	}
}

// Shell text that the wrapped starts share. Each ends by becoming "$@".
const (
	noNamespaces = `echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"`
	// A machine on which nobody ever made the account for write sessions.
	noAccount = `grep -v ^handrail-write: /etc/passwd > "$0/passwd" && chmod 644 "$0/passwd" && mount --bind "$0/passwd" /etc/passwd && exec "$@"`
)

var asOrdinary = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}

// ordinaryFolder is a folder of the ordinary account, with a data folder in it
// still to be made.
func ordinaryFolder(t *testing.T) string {
	t.Helper()
	needRoot(t)
	for _, tool := range []string{"setpriv", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing", tool)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "handrail-ordinary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", dir)
	return dir
}

// account is the number under which everything of a trial runs.
func (i *installation) account() string {
	if i.as != nil && i.as.Credential != nil {
		return strconv.Itoa(int(i.as.Credential.Uid))
	}
	return strconv.Itoa(os.Geteuid())
}

func (i *installation) firstLine() string {
	line, _, _ := strings.Cut(i.out.String(), "\n")
	return line
}

func TestAnOrdinaryUserGetsATrialThatWorks(t *testing.T) {
	if os.Geteuid() != 0 || !wholeRoot() { // it is one already, or as good as
		dir := t.TempDir()
		worksAsTrial(t, up(t, filepath.Join(dir, "data")), dir)
		return
	}
	dir := ordinaryFolder(t)
	words := append([]string{"-m", "sh", "-c", noAccount, t.TempDir()}, asOrdinary...)
	data := filepath.Join(dir, strings.Repeat("d", 120)) // longer than a socket's path may be
	i := upBy(t, exec.Command("unshare", append(append(words, binary), upArgs(t, data)...)...), data)
	i.as = ordinaryUser()
	worksAsTrial(t, i, dir)
}

func worksAsTrial(t *testing.T, i *installation, dir string) {
	t.Helper()
	i.needShells()
	if !strings.Contains(i.firstLine(), "trial") {
		t.Errorf("the first line does not say trial: %s", i.firstLine())
	}
	ada := i.first()
	host := ada.hostname()
	if out := ada.ok("status"); !strings.Contains(out, "trial") {
		t.Errorf("status does not say trial:\n%s", out)
	}
	if out := ada.ok("ssh", host, "--", "whoami"); strings.TrimSpace(out) != "admin" {
		t.Errorf("whoami is %q", out)
	}
	ada.ok("ssh", host, "--", "ps aux && ls /etc && cat /etc/os-release")

	r := ada.run("ssh", host, "--", "touch "+dir+"/x /etc/x /tmp/../var/tmp/handrail-x; ls "+i.data+"; kill -9 1; true")
	if strings.Contains(r.out, "server") {
		t.Errorf("a session sees the data folder:\n%s", r.out)
	}
	for _, file := range []string{dir + "/x", "/var/tmp/handrail-x"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("a read session wrote %s", file)
		}
	}
	if r := ada.run("ssh", host, "--", "test -e "+i.data+"/server"); r.code == 0 {
		t.Error("the data folder is in the session's view")
	}
	if r := ada.refused(2, "host", "set", host, "--env", "production"); !strings.Contains(r.err, "trial") {
		t.Errorf("why a trial cannot be production is not said: %s", r.err)
	}
	ada.ok("ledger", "verify")
	i.needWrites()
	trialJump(t, i, ada, host, dir)
	ada.ok("ledger", "verify")
}

// trialJump writes as the one account that there is.
func trialJump(t *testing.T, i *installation, ada person, host, dir string) {
	t.Helper()
	ben := ada.add("ben", "operator")
	var ask asked
	ada.json(&ask, "elevate", host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "10m", "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	out := ada.ok("ssh", "--write", host, "--", "touch "+dir+"/written && id -u && ls "+i.data+" 2>/dev/null; true")
	if _, err := os.Stat(dir + "/written"); err != nil || strings.TrimSpace(out) != i.account() {
		t.Errorf("a write session of a trial: %q, %v", out, err)
	}
}

// TestWithoutShellsEverythingElseWorks runs where the kernel grants nobody a
// user namespace: for an ordinary user, and for root of a container.
func TestWithoutShellsEverythingElseWorks(t *testing.T) {
	for name, words := range map[string][]string{"ordinary user": asOrdinary, "root of a container": {"env"}} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(ordinaryFolder(t), "data")
			cmd := exec.Command("sh", append(append([]string{"-c", noNamespaces, "sh"}, words...), append([]string{binary}, upArgs(t, data)...)...)...)
			cmd.SysProcAttr = container()
			i := upBy(t, cmd, data)
			i.withoutShells(t)
		})
	}
}

func (i *installation) withoutShells(t *testing.T) {
	if line := i.firstLine(); !strings.Contains(line, "without shells") {
		t.Errorf("the first line does not say what is missing: %s", line)
	}
	if !strings.Contains(i.out.String(), "What to do: ") {
		t.Errorf("it does not say what to do:\n%s", i.out)
	}
	page, err := http.Get(i.link)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	if body, _ := io.ReadAll(page.Body); page.StatusCode != http.StatusOK || !strings.Contains(string(body), "handrail") {
		t.Errorf("the page answers %s", page.Status)
	}
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	var ask asked
	ada.json(&ask, "elevate", host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "10m", "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	if out := ada.ok("status"); !strings.Contains(out, "no-shells") {
		t.Errorf("status does not say no-shells:\n%s", out)
	}
	for _, words := range [][]string{{"ssh", host, "--", "true"}, {"ssh", "--write", host, "--", "true"}} {
		if r := ada.refused(255, words...); !strings.Contains(r.err, "can give no shells") || !strings.Contains(r.err, "What to do: ") {
			t.Errorf("the refusal does not say which layer is missing and what to do: %s", r.err)
		}
	}
	ada.ok("ledger", "verify")
}

func TestRootOfAContainerGetsATrial(t *testing.T) {
	data := filepath.Join(ordinaryFolder(t), "data")
	cmd := exec.Command(binary, upArgs(t, data)...)
	cmd.SysProcAttr = container()
	i := upBy(t, cmd, data)
	if !strings.Contains(i.firstLine(), "trial") {
		t.Errorf("the first line does not say trial: %s", i.firstLine())
	}
	ada := i.first()
	host := ada.hostname()
	if out := ada.ok("ssh", host, "--", "whoami"); strings.TrimSpace(out) != "admin" {
		t.Errorf("whoami is %q", out)
	}
	var ask asked
	ada.json(&ask, "elevate", host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "10m", "-o", "json")
	ada.add("ben", "operator").ok("approve", ask.ID, "--yes")
	if r := ada.refused(255, "ssh", "--write", host, "--", "true"); !strings.Contains(r.err, "root of a container") || !strings.Contains(r.err, "next: ") {
		t.Errorf("what lacks for a write session is not said: %s", r.err)
	}
	ada.ok("ledger", "verify")
}

func TestATrialNodeIsNoProductionHost(t *testing.T) {
	dir := ordinaryFolder(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ada.hostname()
	node := person{&installation{t: t, as: ordinaryUser()}, dir}
	data := filepath.Join(dir, "node")
	token := node.i.tokenFile(ada.invite("web-2", "--env", "production"))
	node.ok("join", "--name", "web-2", "--data", data, "--token-file", token)
	running := node.start("node", "--data", data)
	running.waitFor("without root")
	if state := ada.stateOf("web-2"); state == "online" {
		t.Error("a node without root is a production host")
	}
	ada.ok("ledger", "verify")
}
