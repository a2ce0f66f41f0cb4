package servers_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/test/s3"
	"handrail.dev/handrail/test/slapd"
)

// configure is the configuration of all servers that this test starts.
func configure(t *testing.T, parts ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "handrail.toml")
	if err := os.WriteFile(file, []byte(strings.Join(parts, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HANDRAIL_CONFIG", file)
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// company is a real directory, and what the servers are told of it.
func company(t *testing.T) (d *slapd.Server, section string) {
	t.Helper()
	d = slapd.Start(t, slapd.Options{Sync: true, LDIF: slapd.LDIFPerson("emil") + slapd.LDIFPerson("fred") +
		slapd.LDIFGroup("dev", slapd.Person("emil"), slapd.Person("fred"))})
	return d, fmt.Sprintf("[directory]\nurl = %q\nbind-dn = %q\nbind-password-file = %q\npeople = %q\ngroups = %q\nlogin = true\n[directory.map]\ndeveloper = [\"dev\"]\n",
		d.URL(), slapd.Admin, secretFile(t, slapd.Password+"\n"), slapd.People, slapd.Groups)
}

// member logs somebody of the directory in, at that server.
func (h *house) member(name string, at *server) person {
	h.t.Helper()
	var status struct {
		Installation struct{ RootKeyHash string }
	}
	h.ada.json(&status, "status", "-o", "json")
	p := person{h.t, at, h.t.TempDir()}
	login, enter := p.beginTyping("login", "--user", name, "--server", at.page, "--root-key", status.Installation.RootKeyHash)
	enter(name + "-pw\n")
	if login.ends() != 0 {
		h.t.Fatalf("%s cannot log in at %s: %s", name, at.name, login.out)
	}
	return p
}

// leader is the server that leads, and the other one.
func (h *house) leader(p person) (leads, other *server) {
	h.t.Helper()
	all := p.entries("server.leads")
	if len(all) == 0 {
		h.t.Fatal("nobody leads")
	}
	last := slices.MaxFunc(all, func(x, y entry) int { return len(x.Seq)*1000 + strings.Compare(x.Seq, y.Seq) - len(y.Seq)*1000 })
	var list struct{ Servers []struct{ ID, Name string } }
	p.json(&list, "servers", "-o", "json")
	for _, s := range list.Servers {
		if s.ID == last.Object && s.Name == "b" {
			return h.b, h.a
		}
	}
	return h.a, h.b
}

// leaves takes somebody out of the directory in one way, while a write session of
// theirs runs at a server that does not lead, and sees what is left of it.
func (h *house) leaves(t *testing.T, name, sleeper string, at *server, take func()) {
	t.Helper()
	who := h.member(name, at)
	adaThere := h.ada.via(at)
	var ask struct{ ID string }
	who.json(&ask, "elevate", "web-1", "--reason", "disk full", "--for", "30m", "-o", "json")
	adaThere.ok("approve", ask.ID, "--yes")
	session := who.begin("ssh", "--write", "web-1", "--", "setsid sleep "+sleeper+" & echo up; exec sleep "+sleeper)
	session.says("up")
	began := time.Now()
	take()
	until(t, "the end of every process", func() bool { return !runs("sleep", sleeper) })
	dead := time.Since(began)
	if session.ends() == 0 {
		t.Errorf("the session of who left ended well: %s", session.out)
	}
	until(t, "the end of the grant", func() bool {
		return slices.ContainsFunc(adaThere.entries("grant.ended"), func(e entry) bool { return e.Object == ask.ID })
	})
	t.Logf("%s at %s: all processes dead %s after the directory said so, their command ended after %s, the grant's end was seen after %s", name, at.name,
		dead.Round(time.Millisecond), session.over.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if r := who.run("ssh", "--write", "web-1", "--", "true"); r.code == 0 {
		t.Errorf("%s writes after they left", name)
	}
}

// hook is somebody who is told by a webhook.
type hook struct {
	mu   sync.Mutex
	came map[int64][]string // by entry: the ids with which it came
}

// listen starts a receiver, and returns its URL and what the servers are told of it.
func listen(t *testing.T) (h *hook, url, section string) {
	t.Helper()
	h = &hook{came: map[int64][]string{}}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			Type string
			Data struct{ Seq int64 }
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || json.Unmarshal(body, &m) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if m.Type == "session.closed" {
			h.came[m.Data.Seq] = append(h.came[m.Data.Seq], r.Header.Get("Webhook-Id"))
		}
	}))
	t.Cleanup(s.Close)
	ca := secretFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return h, s.URL + "/in", fmt.Sprintf("[webhooks]\nca-file = %q\n", ca)
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.came)
}

// TestACompanyOnTwoServers is what a company has around handrail, with two
// servers: its directory, a bucket, another system that is told, and new keys.
func TestACompanyOnTwoServers(t *testing.T) {
	long(t)
	needRoot(t)
	d, directory := company(t)
	bucket := s3.Start(t, false)
	told, url, webhooks := listen(t)
	configure(t, directory, webhooks, fmt.Sprintf("[recordings]\nbucket = \"s3://%s/handrail\"\nendpoint = %q\naccess-key = %q\nsecret-file = %q\nkeep-local = \"1s\"\n",
		s3.Bucket, bucket.URL, s3.Access, secretFile(t, s3.Secret+"\n")))
	h := open(t)
	adaB, benB := h.ada.via(h.b), h.ben.via(h.b)

	t.Run("what is in the bucket is replayed and found at either server", func(t *testing.T) {
		h.cleo.ok("ssh", "web-1", "--", "echo a ququxoutput of a")
		h.cleo.via(h.b).ok("ssh", "web-2", "--", "echo a ququxoutput of b")
		until(t, "all recordings to be in the bucket alone", func() bool {
			for _, p := range []person{h.ada, adaB} {
				p.ok("recordings", "move")
				if left, _ := filepath.Glob(filepath.Join(p.at.data, "server", "recordings", "*", "*.rec")); len(left) > 0 {
					return false
				}
			}
			return true
		})
		for _, p := range []person{h.ada, adaB} {
			out := p.ok("sessions", "search", "ququxoutput", "of")
			if !strings.Contains(out, "a ququxoutput of a") || !strings.Contains(out, "a ququxoutput of b") {
				t.Errorf("found at %s:\n%s", p.at.name, out)
			}
			p.ok("ledger", "verify")
		}
		h.b.stop() // its recording is read without it
		var list struct {
			Sessions []struct{ ID, HostName, PersonName string }
		}
		h.ada.json(&list, "sessions", "-o", "json")
		replayed := 0
		for _, s := range list.Sessions {
			if out := h.ada.ok("replay", s.ID, "--speed", "64"); s.PersonName == "cleo" && strings.Contains(out, "ququxoutput of ") {
				replayed++
			}
		}
		if replayed != 2 {
			t.Errorf("%d of 2 are replayed while their homes' other is away", replayed)
		}
		h.b.start()
	})

	t.Run("another system is told once of each, whoever leads", func(t *testing.T) {
		var added struct{ Approval string }
		if r := h.ada.run("webhook", "add", "siem", url, "--actions", "session.closed", "-o", "json"); json.Unmarshal([]byte(r.out), &added) != nil || added.Approval == "" {
			t.Fatalf("webhook add: %d %s%s", r.code, r.out, r.err)
		}
		benB.ok("approve", added.Approval, "--yes")
		for range 3 {
			h.ben.ok("ssh", "web-1", "--", "true")
			benB.ok("ssh", "web-1", "--", "true")
		}
		until(t, "all six", func() bool { return told.count() == 6 })
		leads, other := h.leader(h.ada)
		leads.stop() // it hands over
		late := h.ben.via(other)
		until(t, "a session at the other server", func() bool { return late.run("ssh", "web-1", "--", "true").code == 0 })
		until(t, "the seventh, from the other server", func() bool { return told.count() == 7 })
		leads.start()
		told.mu.Lock()
		defer told.mu.Unlock()
		for seq, ids := range told.came {
			if len(slices.Compact(slices.Clone(ids))) != 1 {
				t.Errorf("entry %d came under %d names: %v", seq, len(ids), ids)
			}
			if len(ids) > 1 {
				t.Logf("entry %d came %d times, under one name", seq, len(ids)) // at least once is promised
			}
		}
	})

	t.Run("new keys act at both servers while sessions go on", h.newKeys)
	t.Run("the server that leads is killed, and who leaves the directory loses all the same", func(t *testing.T) {
		leads, other := h.leader(h.ada)
		fredAt := other
		h.leaves(t, "fred", "30031", fredAt, func() {
			leads.kill()
			d.Leave("dev", slapd.Person("fred"))
		})
		leads.start()
		h.noTwice(h.ada)
		h.noTwice(adaB)
	})
}

// newKeys replaces all keys, and sees that the new ones act wherever the old did.
func (h *house) newKeys(t *testing.T) {
	adaB, benB := h.ada.via(h.b), h.ben.via(h.b)
	at, enter := benB.beginTyping("ssh", "web-1", "--", "echo up; while read -r line; do echo got $line; done")
	at.says("up")
	var asked struct{ Rotation struct{ Approval string } }
	r := h.ada.run("keys", "rotate", "log", "order", "ca", "ssh-user-ca", "ssh-host-ca", "--reason", "quarterly", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &asked); err != nil {
		t.Fatalf("%v: %s%s", err, r.out, r.err)
	}
	benB.ok("approve", asked.Rotation.Approval, "--yes")
	h.ada.ok("keys", "sign", "--with", filepath.Join(h.a.data, "root", "root.key"), "--yes")
	began := time.Now()
	for _, p := range []person{h.ada, adaB} {
		until(t, "the new keys to act alone at "+p.at.name, func() bool {
			var now struct {
				Bundle      string
				HandingOver bool
			}
			r := p.run("keys", "list", "-o", "json")
			return r.code == 0 && json.Unmarshal([]byte(r.out), &now) == nil && now.Bundle == "2" && !now.HandingOver
		})
	}
	t.Logf("new keys acted alone at both servers %s after they were signed", time.Since(began).Round(time.Millisecond))
	// Whose vouchers count is signed at one server, and counts at both.
	officers := filepath.Join(t.TempDir(), "offline-ca")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", officers).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	began = time.Now()
	h.ada.ok("voucher", "trust", "--data", h.a.data, "--offline-ca", officers+".pub")
	for _, p := range []person{h.ada, adaB} {
		until(t, "the officers' authority to count at "+p.at.name, func() bool {
			var now struct{ Bundle string }
			p.json(&now, "keys", "list", "-o", "json")
			return now.Bundle == "3"
		})
	}
	t.Logf("a bundle that was signed at one server counted at both after %s", time.Since(began).Round(time.Millisecond))
	if n := len(adaB.entries("keys.trusted")); n != 1 {
		t.Errorf("%d entries of whose vouchers count", n)
	}
	enter("on\n")
	at.says("got on")
	_ = at.cmd.Process.Kill()
	<-at.done
	for _, p := range []person{h.ben, benB} {
		for _, host := range []string{"web-1", "web-2"} {
			until(t, host+" by way of "+p.at.name, func() bool { return p.run("ssh", host, "--", "true").code == 0 })
		}
	}
	long := h.ben.begin("ssh", "web-2", "--", "echo up; sleep 300")
	long.says("up")
	adaB.ok("stop", h.ada.oneLive("ben"), "--reason", "a brake by the new key")
	if long.ends() == 0 {
		t.Errorf("it goes on: %s", long.out)
	}
	h.noTwice(h.ada)
	h.noTwice(adaB)
}
