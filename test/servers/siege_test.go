package servers_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// siege kills servers, their database and the roles of nodes while people work by
// way of both servers, and looks after each kill whether what was acknowledged is
// there once, what was opened is closed, and nothing runs that nobody watches.
type siege struct {
	*house
	rnd    *rand.Rand
	people map[string][2]person // at a, at b
	kills  map[string]int

	mu    sync.Mutex
	acked []entry
	found int
}

// TestServersAndNodesThatAreKilledLoseNothing is run by make test-faults, a tenth
// as often as the siege of one server: each run takes some seconds.
func TestServersAndNodesThatAreKilledLoseNothing(t *testing.T) {
	needRoot(t)
	runs, err := strconv.Atoi(os.Getenv("HANDRAIL_TEST_RUNS"))
	if err != nil || runs <= 0 {
		t.Skip("a siege takes long: make test-faults")
	}
	runs = max(runs/10, 1)
	seed := uint64(time.Now().UnixNano())
	if word := os.Getenv("HANDRAIL_SIM_SEED"); word != "" {
		if seed, err = strconv.ParseUint(word, 10, 64); err != nil {
			t.Fatalf("HANDRAIL_SIM_SEED is %q, which is no number", word)
		}
	}
	t.Logf("HANDRAIL_SIM_SEED=%d", seed)
	h := open(t)
	s := &siege{house: h, rnd: rand.New(rand.NewPCG(seed, 2)), kills: map[string]int{}, people: map[string][2]person{
		"ada": {h.ada, h.ada.via(h.b)}, "ben": {h.ben, h.ben.via(h.b)}, "cleo": {h.cleo, h.cleo.via(h.b)}}}
	began := time.Now()
	for n := range runs {
		blow := s.run(n)
		line, _ := json.Marshal(s.kills)
		fmt.Printf("siege of two servers: %d of %d runs in %s, kills %s, the last of %s; %d changes acknowledged and found once\n",
			n+1, runs, time.Since(began).Round(time.Second), strings.ReplaceAll(string(line), `"`, ""), blow, s.found)
		if t.Failed() {
			t.Fatalf("run %d: killed %s", n+1, blow)
		}
	}
}

func (s *siege) run(n int) (blow string) {
	stop := make(chan struct{})
	var working sync.WaitGroup
	// Each has dice of its own, thrown here.
	for _, work := range []func(*rand.Rand, <-chan struct{}){s.looks, s.asks, s.asks} {
		dice := rand.New(rand.NewPCG(s.rnd.Uint64(), 3))
		working.Go(func() { work(dice, stop) })
	}
	mark := "3" + strconv.Itoa(1000000*(os.Getpid()%1000)+n) // which nobody else sleeps
	long := s.people["cleo"][s.rnd.IntN(2)].begin("ssh", s.host(s.rnd), "--", "setsid sleep "+mark+" & exec sleep "+mark)
	<-time.After(time.Duration(s.rnd.IntN(2500)) * time.Millisecond)
	blow = s.strike()
	close(stop)
	if s.rnd.IntN(4) == 0 { // into the recovery
		<-time.After(time.Duration(s.rnd.IntN(700)) * time.Millisecond)
		blow += " and " + s.strike()
	}
	<-time.After(time.Duration(s.rnd.IntN(4000)) * time.Millisecond) // the other server is alone for so long
	s.revive()
	until(s.t, "both hosts to be usable by way of both servers", func() bool {
		return !slices.ContainsFunc([]string{"web-1", "web-2"}, func(host string) bool {
			return slices.ContainsFunc(s.both("ada"), func(p person) bool { return p.run("ssh", host, "--", "echo in").out != "in\n" })
		})
	})
	working.Wait()
	_ = long.cmd.Process.Kill()
	<-long.done
	until(s.t, "the end of what ran in a session", func() bool { return !runs("sleep", mark) })
	s.settles()
	s.checks()
	return blow
}

func (s *siege) both(name string) []person {
	pair := s.people[name]
	return pair[:]
}

func (s *siege) host(dice *rand.Rand) string { return []string{"web-1", "web-2"}[dice.IntN(2)] }

// looks opens short sessions, one after the other.
func (s *siege) looks(dice *rand.Rand, stop <-chan struct{}) {
	for !over(stop) {
		s.people["cleo"][dice.IntN(2)].run("ssh", s.host(dice), "--", "echo one")
	}
}

// asks for grants, has them agreed to and revoked, each by way of some server.
func (s *siege) asks(dice *rand.Rand, stop <-chan struct{}) {
	for !over(stop) {
		r := s.people["cleo"][dice.IntN(2)].run("elevate", s.host(dice), "--reason", "disk full", "--for", "30m", "-o", "json")
		var ask struct{ ID string }
		if r.code != 0 || json.Unmarshal([]byte(r.out), &ask) != nil {
			continue
		}
		s.ack("grant.requested", ask.ID)
		if s.people["ben"][dice.IntN(2)].run("approve", ask.ID, "--yes").code != 0 {
			continue
		}
		s.ack("grant.activated", ask.ID)
		if s.people["ben"][dice.IntN(2)].run("revoke", ask.ID, "--reason", "enough").code == 0 {
			s.ack("grant.ended", ask.ID)
		}
	}
}

func over(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}

func (s *siege) ack(action, object string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = append(s.acked, entry{Action: action, Object: object})
}

// strike kills somebody, and says whom.
func (s *siege) strike() string {
	host := s.hosts[s.host(s.rnd)]
	server := []*server{s.a, s.b}[s.rnd.IntN(2)]
	blows := []struct {
		who  string
		blow func()
	}{
		{"a server with its supervisor", server.kill},
		{"a server's role", func() {
			if pid := server.role(); pid != 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}},
		{"both servers", func() { s.a.kill(); s.b.kill() }},
		{"the database", cluster.Crash},
		{"a link", func() { kill(host.PID(), "link") }},
		{"a warden", func() { kill(host.PID(), "warden") }},
		{"the keepers of a host", func() { kill(host.PID(), "handrail-keeper") }},
	}
	b := blows[s.rnd.IntN(len(blows))]
	b.blow()
	s.kills[b.who]++
	return b.who
}

// revive does what whoever watches services does.
func (s *siege) revive() {
	until(s.t, "the database", func() bool {
		if cluster.Runs() {
			return true
		}
		err := cluster.Again()
		if err != nil {
			cluster.Crash()
		}
		return err == nil
	})
	for _, server := range []*server{s.a, s.b} {
		if server.done == nil {
			server.start()
		}
	}
}

// settles ends what is still open.
func (s *siege) settles() {
	var list struct{ Grants []struct{ ID, State string } }
	s.answered(&list, "grants", "--all")
	for _, g := range list.Grants {
		if g.State == "active" || g.State == "requested" {
			s.people["ben"][0].run("revoke", g.ID, "--reason", "the run is over")
		}
	}
	until(s.t, "every session to be closed", func() bool {
		return !slices.ContainsFunc(s.both("ada"), func(p person) bool {
			var list struct{ Sessions []struct{ ID string } }
			r := p.run("sessions", "--live", "-o", "json")
			return r.code != 0 || json.Unmarshal([]byte(r.out), &list) != nil || len(list.Sessions) > 0
		})
	})
	until(s.t, "the spools of brakes to be empty", func() bool {
		for _, server := range []*server{s.a, s.b} {
			b, err := os.ReadFile(filepath.Join(server.data, "server", "brakes"))
			if err != nil || len(b) < 4 || [4]byte(b) != [4]byte{} {
				return false
			}
		}
		return true
	})
}

// answered is what a server says that may be slow to say it.
func (s *siege) answered(into any, args ...string) {
	until(s.t, "an answer to "+strings.Join(args, " "), func() bool {
		r := s.people["ada"][0].run(append(args, "-o", "json")...)
		return r.code == 0 && json.Unmarshal([]byte(r.out), into) == nil
	})
}

// checks looks for all that was acknowledged since the last run.
func (s *siege) checks() {
	count := map[entry]int{}
	// What ended while the database was away is recorded when it is back.
	for late, closed := time.Now().Add(patience), false; !closed && time.Now().Before(late); {
		var list struct{ Entries []entry }
		s.answered(&list, "ledger", "list", "--limit", "1000")
		clear(count)
		for _, e := range list.Entries {
			count[entry{Action: e.Action, Object: e.Object + e.Session}]++
		}
		closed = true
		for e := range count {
			closed = closed && (e.Action != "session.opened" || count[entry{Action: "session.closed", Object: e.Object}] > 0)
		}
	}
	for _, a := range s.acked {
		if n := count[a]; n != 1 {
			s.t.Errorf("%s of %s was acknowledged, and is in the ledger %d times", a.Action, a.Object, n)
		}
	}
	s.found += len(s.acked)
	s.acked = nil
	for e, n := range count {
		if e.Action == "session.opened" && (n != 1 || count[entry{Action: "session.closed", Object: e.Object}] != 1) {
			s.t.Errorf("session %s was opened %d times and closed %d times", e.Object, n, count[entry{Action: "session.closed", Object: e.Object}])
		}
	}
	for _, p := range s.both("ada") {
		if out := p.ok("ledger", "verify"); !strings.Contains(out, "nothing was touched") {
			s.t.Errorf("server %s does not verify its ledger:\n%s", p.at.name, out)
		}
	}
}

// kill ends the processes of a role below one process.
func kill(below int, role string) {
	for _, pid := range children(below) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if words := strings.Split(string(line), "\x00"); words[0] == role || len(words) > 1 && words[1] == role {
			_ = unix.Kill(pid, unix.SIGKILL) // one that ended meanwhile is as dead
		}
	}
}

// children are all processes below one.
func children(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, word := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(word)
			all = append(append(all, child), children(child)...)
		}
	}
	return all
}
