package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/warden"
)

// A finding is a misconfiguration, with what it costs and the next command.
// Checks look and change nothing; one that cannot look says nothing, but for
// the server's, whose absence is said.
type finding struct {
	ID    string `json:"id"`
	Group string `json:"group"`
	Bad   bool   `json:"bad"` // else: should be settled, but works
	What  string `json:"what"`
	Fix   string `json:"fix"`
}

// checkup is what the checks of this machine look at.
type checkup struct {
	data    string
	config  string // path of the configuration file
	set     map[string]setting
	probe   sandbox.Report
	now     time.Time
	running bool // a server answers on this data folder
	files   uint64
	label   string // that SELinux or AppArmor gives to this process; "" is none
	enforce bool   // SELinux refuses, and does not only log
	nobody  bool   // the account of write sessions is missing, and no start will make it
	disk    func(path string) (free uint64, err error)
}

// The bounds of the checks.
const (
	leastFiles = 4096
	leastFree  = 1 << 30
	certSoon   = 21 * 24 * time.Hour
)

// localChecks are those that need no server, in the order in which they are shown.
var localChecks = []func(*checkup) []finding{
	(*checkup).dataOpen, (*checkup).keysOpen, (*checkup).rootKeyHere, (*checkup).configOpen, (*checkup).diskFull,
	(*checkup).fewFiles, (*checkup).sandboxFloor, (*checkup).noLandlock, (*checkup).noCgroup, (*checkup).noAccount,
	(*checkup).plainURL, (*checkup).namelessURL, (*checkup).certificate, (*checkup).portTaken, (*checkup).plainDatabase,
	(*checkup).backupOld, (*checkup).confinedElsewhere,
}

func newCheckup(ctx context.Context, data string) (*checkup, error) {
	set, err := settings()
	if err != nil {
		return nil, err
	}
	c := &checkup{data: data, set: set, now: time.Now(), disk: freeSpace}
	c.config, _ = configFile()
	c.probe = sandbox.Probe(ctx, nil)
	c.label, c.enforce = securityLabel()
	_, noTool := exec.LookPath("useradd")
	c.nobody = c.probe.Mode == sandbox.RootMode && warden.LacksAccount() && (noTool != nil || role.Place{Dir: data}.Joined())
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		c.files = limit.Max
	}
	return c, nil
}

func freeSpace(path string) (free uint64, err error) {
	var s syscall.Statfs_t
	err = syscall.Statfs(path, &s)
	return s.Bavail * uint64(s.Bsize), err
}

func (c *checkup) run() (all []finding) {
	for _, check := range localChecks {
		all = append(all, check(c)...)
	}
	return all
}

func one(f finding) []finding { return []finding{f} }

// open says whether others than the owner may enter or read a path.
func open(path string, bits os.FileMode) (os.FileMode, bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, false
	}
	return info.Mode().Perm(), info.Mode().Perm()&bits != 0
}

func (c *checkup) dataOpen() []finding {
	if mode, wide := open(place(c.data).server(), 0o077); wide {
		return one(finding{ID: "data-open", Group: "data", Bad: true,
			What: fmt.Sprintf("others may read the server's folder %s (mode %04o): database, recordings", place(c.data).server(), mode),
			Fix:  "chmod 700 " + place(c.data).server()})
	}
	return nil
}

func (c *checkup) keysOpen() (all []finding) {
	list, _ := os.ReadDir(place(c.data).keys())
	for _, e := range list {
		path := filepath.Join(place(c.data).keys(), e.Name())
		if mode, wide := open(path, 0o077); wide {
			all = append(all, finding{ID: "key-open", Group: "data", Bad: true,
				What: fmt.Sprintf("others may read %s (mode %04o); the server will not start with it", path, mode),
				Fix:  "chmod go= " + path + " && handrail keys rotate …   # if somebody may have read it"})
		}
	}
	return all
}

func (c *checkup) rootKeyHere() []finding {
	path := filepath.Join(place(c.data).rootKey(), "root.key")
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	return one(finding{ID: "root-key-here", Group: "data",
		What: "the root key lies on the server: whoever becomes root here speaks for the whole installation",
		Fix:  "print it or copy it to a medium that you put away, then: shred -u " + path})
}

func (c *checkup) configOpen() []finding {
	u, err := url.Parse(c.set["database"].Value)
	if err != nil || u.User == nil || c.set["database"].From != c.config {
		return nil
	}
	if _, has := u.User.Password(); !has {
		return nil
	}
	if mode, wide := open(c.config, 0o044); wide {
		return one(finding{ID: "config-open", Group: "data", Bad: true,
			What: fmt.Sprintf("others may read the database's password in %s (mode %04o)", c.config, mode), Fix: "chmod 600 " + c.config})
	}
	return nil
}

func (c *checkup) diskFull() []finding {
	free, err := c.disk(c.data)
	if err != nil || free >= leastFree {
		return nil
	}
	return one(finding{ID: "disk-full", Group: "machine", Bad: true,
		What: fmt.Sprintf("%d MiB are free for %s: without room for its recording no session opens", free>>20, c.data),
		Fix:  "df -h " + c.data + "   # make room, move the folder, or shorten [retention]"})
}

func (c *checkup) fewFiles() []finding {
	if c.files == 0 || c.files >= leastFiles {
		return nil
	}
	return one(finding{ID: "few-files", Group: "machine",
		What: fmt.Sprintf("a process may open %d files: %d are needed for some hundred sessions", c.files, leastFiles),
		Fix:  "LimitNOFILE=65536 in the unit, or ulimit -n 65536 before the start"})
}

func (c *checkup) sandboxFloor() []finding {
	if c.probe.Floor == sandbox.Full {
		return nil
	}
	return one(finding{ID: "sandbox-floor", Group: "machine", Bad: c.probe.Floor == sandbox.Brokered,
		What: fmt.Sprintf("sessions on this machine have the floor %q, in mode %s: production asks for full", c.probe.Floor, c.probe.Mode),
		Fix:  "run as root of the machine, and see what is lacking above"})
}

func (c *checkup) noLandlock() []finding {
	if c.probe.Landlock > 0 {
		return nil
	}
	return one(finding{ID: "no-landlock", Group: "machine",
		What: "the kernel has no Landlock, one of the two layers that keep a read session from writing",
		Fix:  "Linux 5.13 or newer, with landlock among the values of lsm= at boot"})
}

func (c *checkup) noCgroup() []finding {
	if c.probe.Cgroup != "" {
		return nil
	}
	return one(finding{ID: "no-cgroup", Group: "machine", Bad: true,
		What: "no control group can be made here: sessions have no bound, and cannot be killed as a whole",
		Fix:  "mount -t cgroup2 none /sys/fs/cgroup, if nothing is mounted there; else Delegate=yes in the unit of the warden, or run as root; in a container: --cgroupns=private with a writable /sys/fs/cgroup"})
}

func (c *checkup) noAccount() []finding {
	if !c.nobody {
		return nil
	}
	return one(finding{ID: "no-account", Group: "machine",
		What: "write sessions have no account here: " + warden.WriteAccount + " is missing and could not be made",
		Fix:  warden.AccountAdvice})
}

// page is the page's address, if one is configured.
func (c *checkup) page() (*url.URL, bool) {
	u, err := url.Parse(c.set["url"].Value)
	return u, err == nil && u.Host != ""
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (c *checkup) plainURL() []finding {
	u, ok := c.page()
	if !ok || u.Scheme != "http" || loopback(u.Hostname()) {
		return nil
	}
	return one(finding{ID: "plain-url", Group: "address", Bad: true,
		What: fmt.Sprintf("the page is given out as %s: logins would cross the network in clear, and browsers refuse passkeys", u),
		Fix:  fmt.Sprintf("url = \"https://%s\"", u.Host)})
}

func (c *checkup) namelessURL() []finding {
	u, ok := c.page()
	if !ok {
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err != nil || ip.IsLoopback() {
		return nil
	}
	return one(finding{ID: "passkey-name", Group: "address",
		What: fmt.Sprintf("the page is given out as %s: passkeys are bound to a name and do not work with an address", u),
		Fix:  "give the machine a name and: url = \"https://NAME:PORT\""})
}

func (c *checkup) certificate() (all []finding) {
	file, key := c.set["cert"].Value, c.set["key"].Value
	if file == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(file, key)
	if err == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	if err != nil {
		return one(finding{ID: "cert-unusable", Group: "address", Bad: true, What: "the certificate for browsers cannot be used: " + err.Error(), Fix: "cert and key of the configuration: " + file + ", " + key})
	}
	if left := pair.Leaf.NotAfter.Sub(c.now); left < certSoon {
		all = append(all, finding{ID: "cert-expires", Group: "address", Bad: left < 0,
			What: fmt.Sprintf("the certificate for browsers ends %s", pair.Leaf.NotAfter.UTC().Format(time.RFC3339)),
			Fix:  "renew " + file + ", then start the server again"})
	}
	if u, ok := c.page(); ok && pair.Leaf.VerifyHostname(u.Hostname()) != nil {
		all = append(all, finding{ID: "cert-name", Group: "address", Bad: true,
			What: fmt.Sprintf("the certificate for browsers is not for %s", u.Hostname()), Fix: "get one for that name, or set url to a name that it has: " + strings.Join(pair.Leaf.DNSNames, ", ")})
	}
	return all
}

func (c *checkup) portTaken() (all []finding) {
	if c.running {
		return nil
	}
	for _, name := range []string{"listen", "ssh-listen"} {
		at := c.set[name].Value
		if at == "" {
			continue
		}
		l, err := net.Listen("tcp", at)
		if err == nil {
			l.Close()
			continue
		}
		if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			all = append(all, finding{ID: "port-taken", Group: "address", Bad: true,
				What: fmt.Sprintf("%s = %q cannot be opened: %v", name, at, err), Fix: "ss -ltnp 'sport = :" + at[strings.LastIndex(at, ":")+1:] + "'   # who has it"})
		}
	}
	return all
}

func (c *checkup) plainDatabase() []finding {
	u, err := url.Parse(c.set["database"].Value)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") || u.Hostname() == "" || loopback(u.Hostname()) {
		return nil
	}
	switch mode := u.Query().Get("sslmode"); mode {
	case "verify-full", "verify-ca":
		return nil
	default:
		return one(finding{ID: "database-plain", Group: "database", Bad: mode == "disable",
			What: fmt.Sprintf("the database at %s is not known by its certificate (sslmode %q): who sits in between reads the password", u.Hostname(), mode),
			Fix:  "add sslmode=verify-full&sslrootcert=FILE to database"})
	}
}

// examine runs all checks, the server's too.
func examine(ctx context.Context, data string) (sandbox.Report, []finding, error) {
	c, err := newCheckup(ctx, data)
	if err != nil {
		return sandbox.Report{}, nil, err
	}
	var theirs []finding
	answer, err := askLocal(ctx, data, "checkup", localQuestion{})
	switch {
	case err == nil:
		c.running = true
		if err := json.Unmarshal(answer.Report, &theirs); err != nil {
			return c.probe, nil, fault.Wrap(fault.Internal, err, "cannot read what the server found")
		}
	case fault.KindOf(err) == fault.Denied:
		c.running = true
		theirs = one(finding{ID: "not-asked", Group: "server", What: "the server was not asked: its folder belongs to another account", Fix: "sudo handrail doctor"})
	}
	return c.probe, append(c.run(), theirs...), nil
}

func writeFindings(w io.Writer, all []finding) {
	group := ""
	for _, f := range all {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		word := "should"
		if f.Bad {
			word = "BAD"
		}
		fmt.Fprintf(w, "  %-6s %s\n         %s\n", word, f.What, f.Fix)
	}
	if len(all) == 0 {
		fmt.Fprintln(w, "\nno misconfiguration found")
	}
}
