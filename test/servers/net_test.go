package servers_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// network is a router and what hangs on it, each in a network namespace of its
// own: any way between two of them can be cut, in either direction. Packets then
// go unanswered, as in a network; nobody hears of a refusal.
//
//	a 10.77.1.2 ─┐          ┌─ web-1 10.77.4.2
//	b 10.77.2.2 ─┤ 10.77.X.1 ├─ web-2 10.77.5.2
//	db 10.77.3.2 ┘ (people)  └─ …
type network struct {
	t     *testing.T
	spots map[string]int
}

func newNetwork(t *testing.T, spots ...string) *network {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need ip (Debian: apt-get install iproute2)")
	}
	n := &network{t: t, spots: map[string]int{}}
	n.make("router")
	n.in("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for i, spot := range spots {
		n.spots[spot] = i + 1
		n.make(spot)
		near, far := fmt.Sprintf("hr%d-%d", os.Getpid()%100000, i), "wire"
		n.ip("link", "add", near, "netns", n.space("router"), "type", "veth", "peer", "name", far, "netns", n.space(spot))
		n.in("router", "ip", "address", "add", n.gateway(spot)+"/30", "dev", near)
		n.in("router", "ip", "link", "set", near, "up")
		n.in(spot, "ip", "address", "add", n.at(spot)+"/30", "dev", far)
		n.in(spot, "ip", "link", "set", far, "up")
		n.in(spot, "ip", "route", "add", "default", "via", n.gateway(spot))
	}
	return n
}

func (n *network) space(spot string) string   { return fmt.Sprintf("hr%d-%s", os.Getpid(), spot) }
func (n *network) at(spot string) string      { return fmt.Sprintf("10.77.%d.2", n.spots[spot]) }
func (n *network) gateway(spot string) string { return fmt.Sprintf("10.77.%d.1", n.spots[spot]) }

func (n *network) make(spot string) {
	n.t.Helper()
	n.ip("netns", "add", n.space(spot))
	n.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.space(spot)).Run() })
	n.in(spot, "ip", "link", "set", "lo", "up")
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (n *network) in(spot string, args ...string) {
	n.t.Helper()
	n.ip(slices.Concat([]string{"netns", "exec", n.space(spot)}, args)...)
}

func (n *network) file(spot string) string { return "/run/netns/" + n.space(spot) }

// join puts the calling thread, which is locked, into the namespace of a spot.
func (n *network) join(spot string) error {
	ns, err := os.Open(n.file(spot))
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}

// cut stops the packets from one spot to another; heal lets them pass again.
func (n *network) cut(from, to string)  { n.rule("add", from, to) }
func (n *network) heal(from, to string) { n.rule("del", from, to) }

func (n *network) rule(verb, from, to string) {
	n.t.Helper()
	n.in("router", "ip", "rule", verb, "from", n.at(from), "to", n.at(to), "blackhole")
}

// part cuts both ways between a spot and each of the others, and returns what heals.
func (n *network) part(spot string, others ...string) (heal func()) {
	n.t.Helper()
	for _, o := range others {
		n.cut(spot, o)
		n.cut(o, spot)
	}
	return func() {
		n.t.Helper()
		for _, o := range others {
			n.heal(spot, o)
			n.heal(o, spot)
		}
	}
}

// place is where a server will be that does not run yet.
func (n *network) place(t *testing.T, name, database string) *server {
	t.Helper()
	s := unplaced(t, name, database)
	s.network, s.net, s.office = n, n.file(name), n.file("router")
	s.page, s.ss = fmt.Sprintf("%s:%d", n.at(name), 7080+n.spots[name]), fmt.Sprintf("%s:%d", n.at(name), 7220+n.spots[name])
	return s
}

// apart is a house whose servers, database and hosts each have a network of
// their own.
func apart(t *testing.T) (*house, *network) {
	t.Helper()
	needRoot(t)
	n := newNetwork(t, "a", "b", "db", "web-1", "web-2")
	db := cluster.Elsewhere(t, n.at("db"), func() error { return n.join("db") })
	return enter(t, n.place(t, "a", db.Over(db.Database(t))), n.file), n
}

// A lock finds a session at a server that the locking one cannot reach: by the
// ledger, which both follow.
func TestALockReachesAServerThatIsOutOfReach(t *testing.T) {
	long(t)
	h, n := apart(t)
	heal := n.part("a", "b")
	cleo, far, host := h.reaches(t, h.cleo)
	session := cleo.begin("ssh", host, "--", "echo up; sleep 300")
	session.says("up")
	h.ada.via(far).ok("lock", "cleo", "--reason", "lost laptop")
	if session.ends() == 0 {
		t.Errorf("a session of who is locked ended well: %s", session.out)
	}
	heal()
	h.noTwice(h.ada)
	h.noTwice(h.ada.via(h.b))
}

// TestAServerThatTheNetworkCutsOffStopsAndComesBack takes each way from one server
// that there is, with a session and a request at it.
func TestAServerThatTheNetworkCutsOffStopsAndComesBack(t *testing.T) {
	long(t)
	h, n := apart(t)
	all := []string{"b", "db", "web-1", "web-2"}
	for _, c := range []struct {
		name string
		cut  func() (heal func())
	}{
		{"from the database", func() func() { return n.part("a", "db") }},
		{"from everything", func() func() { return n.part("a", all...) }},
		{"from the database, which still reaches it", func() func() { n.cut("a", "db"); return func() { n.heal("a", "db") } }},
		{"from the database's answers", func() func() { n.cut("db", "a"); return func() { n.heal("db", "a") } }},
	} {
		t.Run(c.name, func(t *testing.T) { h.cutOff(t, c.cut) })
	}
	t.Run("by a slow line", func(t *testing.T) {
		// This kernel's netem would delay; a narrow line with a short queue delays and loses.
		n.in("a", "tc", "qdisc", "add", "dev", "wire", "root", "tbf", "rate", "512kbit", "burst", "3000", "limit", "12000")
		for _, p := range []person{h.ben, h.ben.via(h.b)} {
			until(t, "a session by way of "+p.at.name, func() bool { return p.run("ssh", "web-1", "--", "true").code == 0 })
		}
		n.in("a", "tc", "qdisc", "del", "dev", "wire", "root")
		h.noTwice(h.ada.via(h.b))
	})
}

// cutOff cuts server a off in one way, and heals it.
func (h *house) cutOff(t *testing.T, cut func() (heal func())) {
	t.Helper()
	adaB, benB := h.ada.via(h.b), h.ben.via(h.b)
	const sleeper = "30017" // which nobody else sleeps
	session := h.ben.begin("ssh", "web-1", "--", "echo up; exec sleep "+sleeper)
	session.says("up")
	id := h.ada.oneLive("ben")
	var ask struct{ ID string }
	h.cleo.json(&ask, "elevate", "web-2", "--reason", "disk full", "--for", "30m", "-o", "json")

	heal := cut()
	began := time.Now()
	dead := make(chan time.Time, 1)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for runs("sleep", sleeper) && time.Since(began) < patience {
			<-tick.C
		}
		dead <- time.Now()
	}()
	until(t, "both hosts to be usable at b", func() bool {
		return benB.run("ssh", "web-1", "--", "true").code == 0 && benB.run("ssh", "web-2", "--", "true").code == 0
	})
	t.Logf("both hosts were usable at b after %s", time.Since(began).Round(time.Millisecond))
	until(t, "a to say that it is cut off", func() bool {
		r := h.ada.run("hosts")
		return r.code != 0 && strings.Contains(r.err, "cut off from the database")
	})
	if r := h.ben.run("approve", ask.ID, "--yes"); r.code == 0 {
		t.Errorf("a server that is cut off approves: %s", r.out)
	}
	if r := h.ben.run("ssh", "web-2", "--", "true"); r.code == 0 {
		t.Error("a server that is cut off opens a session")
	}
	if session.ends() == 0 {
		t.Errorf("the session of a server that is cut off ended well: %s", session.out)
	}
	t.Logf("its process was dead after %s, and its person's command ended after %s",
		(<-dead).Sub(began).Round(time.Millisecond), session.over.Sub(began).Round(time.Millisecond))
	if runs("sleep", sleeper) {
		t.Error("a process outlives the session of a server that is cut off")
	}
	benB.ok("approve", ask.ID, "--yes")
	if shown := h.pageBrake(t, "/grants/"+ask.ID+"/revoke"); !strings.Contains(shown, "Revoked") || !strings.Contains(shown, "cut off from the database") {
		t.Errorf("the page says %s", shown)
	}
	until(t, "the session's end in the ledger", func() bool {
		return slices.ContainsFunc(adaB.entries("session.closed"), func(e entry) bool { return e.Session == id })
	})

	heal()
	began = time.Now()
	until(t, "a to serve again", func() bool { return h.ben.run("ssh", "web-1", "--", "true").code == 0 })
	t.Logf("a served again %s after it was healed", time.Since(began).Round(time.Millisecond))
	if r := h.ben.run("approve", ask.ID, "--yes"); r.code == 0 {
		t.Errorf("what was approved is approved once more: %s", r.out)
	}
	until(t, "one end of the grant, by the page's brake", func() bool {
		return slices.ContainsFunc(adaB.entries("grant.ended"), func(e entry) bool { return e.Object == ask.ID })
	})
	h.noTwice(h.ada)
	h.noTwice(adaB)
}

// pageBrake pulls a brake by the form of a page that was open at server a, and
// says what the answer shows.
func (h *house) pageBrake(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.ada.home, "login.json"))
	if err != nil {
		t.Fatal(err)
	}
	var login struct{ Token string }
	if err := json.Unmarshal(raw, &login); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+h.a.page+path, strings.NewReader("reason=by+the+page"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.AddCookie(&http.Cookie{Name: "handrail_login", Value: login.Token})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // a page's certificate is of our own authority
		DialContext: func(context.Context, string, string) (net.Conn, error) { return h.a.network.dial("router", h.a.page) },
	}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %v\n%s", path, answer.Status, err, body)
	}
	return string(body)
}

// dial connects from a spot.
func (n *network) dial(from, address string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and ends with the thread, which is elsewhere now
		if err = n.join(from); err == nil {
			c, err = net.Dial("tcp", address)
		}
	}()
	<-done
	return c, err
}

// reaches finds a server that reaches a host while the servers do not reach each
// other: the one to which its node is connected.
func (h *house) reaches(t *testing.T, p person) (at person, far *server, host string) {
	t.Helper()
	until(t, "a host that is reached from its own server", func() bool {
		for _, s := range []*server{h.a, h.b} {
			for _, name := range []string{"web-1", "web-2"} {
				if at = p.via(s); at.run("ssh", name, "--", "true").code == 0 {
					host, far = name, h.a
					if s == h.a {
						far = h.b
					}
					return true
				}
			}
		}
		return false
	})
	return at, far, host
}
