package spine_test

import (
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"handrail.dev/handrail/test/postgres"
)

// A siege kills the roles of an installation at random points, while people
// work with it, and looks after each kill whether all that is promised holds:
// the ledger verifies from outside and only ever grew, what was acknowledged is
// there exactly once, what was opened is closed, no process of a session lives
// without its session, and nobody has to mend anything.
//
// `make test-faults` runs it, RUNS times. The seed decides who is killed and at
// which point; what the machine does between is its own.

// leaseBound is how long after a kill something of a session may still run: the
// lease, and as much again for a machine that does other things.
const leaseBound = 20 * time.Second

// lifetime is after how many kills an installation is replaced by a new one: each
// is looked at whole after each kill.
const lifetime = 40

// number reads a number of the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	word := os.Getenv(name)
	if word == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q, which is no number", name, word)
	}
	return n
}

func TestNothingIsLostWhoeverIsKilledAndWhenever(t *testing.T) {
	needRoot(t)
	runs := int(number(t, "HANDRAIL_TEST_RUNS", 0))
	if runs == 0 {
		t.Skip("a siege takes long: make test-faults")
	}
	seed := number(t, "HANDRAIL_SIM_SEED", uint64(time.Now().UnixNano()))
	all := resume(t, os.Getenv("HANDRAIL_TEST_TALLY"))
	runs -= all.Runs
	t.Logf("HANDRAIL_SIM_SEED=%d", seed)
	t.Cleanup(all.eachMinute())
	t.Run("sieges", func(t *testing.T) {
		t.Run("sqlite", func(t *testing.T) {
			t.Parallel()
			all.besiege(t, rand.New(rand.NewPCG(seed, 0)), nil, (runs+1)/2)
		})
		t.Run("postgres", func(t *testing.T) {
			t.Parallel()
			db := postgres.Start()
			t.Cleanup(db.Stop)
			all.besiege(t, rand.New(rand.NewPCG(seed, 1)), db, runs/2)
		})
	})
	if all.Violations > 0 { // also those before it was resumed
		t.Errorf("%d violations: %s", all.Violations, strings.Join(all.Failed, ", "))
	}
}

// besiege lays sieges until that many runs are done.
func (all *tally) besiege(t *testing.T, rnd *rand.Rand, db *postgres.Cluster, runs int) {
	for n := 0; n < runs; {
		s := lay(t, rnd, db, all)
		for age := 0; age < lifetime && n < runs; age++ {
			n++
			if !t.Run(strconv.Itoa(n), s.run) {
				break // with a new one: one violation is not to look like many
			}
		}
		s.t = t
		s.stop()
	}
}

// siege is one installation, and who works with it.
type siege struct {
	*installation
	rnd                      *rand.Rand
	all                      *tally
	host                     string
	ada, ben, cleo, dan, eve person
	age                      int
	size                     int    // of the ledger, when it was last looked at
	anchor                   []byte // the newest checkpoint that was seen from outside
	root                     string
	db                       *postgres.Cluster // nil: SQLite
	up                       []string          // how it was started
	fallen, dark             bool              // its supervisor was killed, its database
	restarts                 map[string]int    // of a role, since its supervisor began
}

// lay starts an installation with five people.
func lay(t *testing.T, rnd *rand.Rand, db *postgres.Cluster, all *tally) *siege {
	t.Helper()
	dir, err := os.MkdirTemp("", "siege") // the name of a socket in there has to stay short
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &siege{rnd: rnd, all: all, db: db, restarts: map[string]int{}}
	s.up = upArgs(t, filepath.Join(dir, "data"))
	if db != nil {
		s.up = append(s.up, "--database", db.Database(t))
	}
	s.installation = &installation{t: t, data: filepath.Join(dir, "data")}
	s.installation = s.rises()
	t.Cleanup(func() { s.t = t; s.stop() })
	s.needWrites()
	s.ada = s.first()
	s.host = s.ada.hostname()
	s.ben = s.ada.add("ben", "operator")
	s.cleo = s.ada.add("cleo", "developer")
	s.dan = s.ada.add("dan", "developer")
	s.eve = s.ada.add("eve", "developer")
	hash, err := os.ReadFile(filepath.Join(s.data, "server", "keys", "root.hash"))
	if err != nil {
		t.Fatal(err)
	}
	s.root = strings.TrimSpace(string(hash))
	return s
}

// as is a person of this siege in the run that goes on.
func (s *siege) as(p person) person { return person{s.installation, p.home} }

// run is one kill, or two.
func (s *siege) run(t *testing.T) {
	s.installation.t = t
	s.age++
	w := s.work()
	blow, point := s.choose(), s.point(w)
	t.Cleanup(func() {
		s.all.ends(t, blow)
		if t.Failed() {
			kept, _ := os.MkdirTemp("", "handrail-siege")
			_ = exec.Command("cp", "-a", s.data, kept).Run()
			t.Logf("run %d: killed %s at %s; what was left: %s\n%s", s.age, blow, point, kept, s.errs)
		}
	})
	point.wait()
	began := s.strike(blow)
	close(w.stop)
	s.all.add(func() { s.all.Points[point.name]++ })
	if s.rnd.IntN(4) == 0 { // into the recovery
		again := s.choose()
		<-time.After(time.Duration(s.rnd.IntN(700)) * time.Millisecond)
		s.revive()
		began = s.strike(again)
		blow += " and " + again
	}
	s.revive()
	s.recovers(w, began, blow)
	s.settles(w)
	s.check(w)
}

// choose says whom to kill.
func (s *siege) choose() string {
	weights := []struct {
		who  string
		part int
	}{{"server", 30}, {"link", 14}, {"warden", 14}, {"keepers", 12}, {"supervisor", 16}, {"everything", 14}, {"database", 25}}
	if s.db == nil {
		weights = weights[:len(weights)-1]
	}
	total := 0
	for _, w := range weights {
		total += w.part
	}
	n := s.rnd.IntN(total)
	for _, w := range weights {
		if n -= w.part; n < 0 {
			// A role that dies again and again is started ever later; a new
			// supervisor begins anew.
			if s.restarts[w.who] >= 3 && w.who != "database" {
				return "supervisor"
			}
			s.restarts[w.who]++
			return w.who
		}
	}
	panic("the dice show more than all weights")
}

// strike kills and returns when.
func (s *siege) strike(who string) time.Time {
	s.t.Helper()
	pids := s.victims(who)
	at := time.Now()
	if s.db != nil && (who == "database" || who == "everything") {
		s.db.Crash()
		s.dark = true
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // one that ended meanwhile is as dead
	}
	s.fallen = s.fallen || who == "supervisor" || who == "everything"
	s.all.add(func() { s.all.Kills[who]++ })
	return at
}

func (s *siege) victims(who string) (pids []int) {
	keepers := func() []int { return s.role("handrail-keeper") }
	switch who {
	case "server":
		return s.role("server-role")
	case "database":
		return nil
	case "link", "warden":
		return s.role(who)
	case "keepers":
		return keepers()
	case "everything":
		for _, r := range []string{"server-role", "link", "warden"} {
			pids = append(pids, s.role(r)...)
		}
		pids = append(pids, keepers()...)
	}
	return append([]int{s.cmd.Process.Pid}, pids...)
}

// revive does what whoever watches services does: what was started once is
// started again, with the same words, once all of it is gone.
func (s *siege) revive() {
	s.t.Helper()
	if s.dark {
		<-time.After(time.Duration(s.rnd.IntN(4000)) * time.Millisecond) // who brakes meanwhile waits for 2 s
		s.until("the database to start again", func() bool {
			err := s.db.Again()
			if err != nil {
				s.db.Crash()
			}
			return err == nil
		})
		s.dark = false
	}
	if !s.fallen {
		return
	}
	<-s.done
	s.until("the end of every role", func() bool {
		return !slices.ContainsFunc(processesOf(s.data), func(f found) bool { return f.args[0] == "handrail" })
	})
	// One that is being killed has no name any more, and may still hold a port.
	for _, address := range []string{s.page, s.ssh} {
		s.until("the port "+address+" to be free", func() bool {
			l, err := net.Listen("tcp", address)
			if err == nil {
				l.Close()
			}
			return err == nil
		})
	}
	before := s.installation
	if strings.Contains(before.errs.String(), "panic:") {
		s.t.Errorf("somebody panicked:\n%s", before.errs)
	}
	next := s.rises()
	next.page, next.ssh = before.page, before.ssh
	s.installation, s.fallen = next, false
	s.restarts = map[string]int{}
}

// rises starts it again, and again where a machine that does other things did not
// let the server come up in the time that it has.
func (s *siege) rises() (next *installation) {
	s.t.Helper()
	s.until("a start", func() bool {
		var err error
		next, err = tryRise(s.t, exec.Command(binary, s.up...), s.data)
		if err != nil && !strings.Contains(err.Error(), "did not come up in") {
			s.t.Fatal(err)
		}
		return err == nil
	})
	return next
}

// recovers waits until nothing runs that has no session, and a session opens.
func (s *siege) recovers(w *work, began time.Time, blow string) {
	s.t.Helper()
	var gone, healthy time.Duration
	orphans := make(chan []found, 1)
	// A machine that does other things is slow to kill as well: the time counts
	// from when a session opens again. If none does, the wait for it ends in vain.
	opened := make(chan time.Time, 1)
	var bound <-chan time.Time
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		left := w.orphans()
		for late := false; len(left) > 0 && !late; left = w.orphans() {
			select {
			case at := <-opened:
				bound = time.After(time.Until(at.Add(leaseBound)))
			case <-bound:
				late = true
			case <-tick.C:
			}
		}
		gone = time.Since(began)
		orphans <- left
	}()
	s.until("a session to open again", func() bool { return s.as(s.ada).run("ssh", s.host, "--", "echo in").out == "in\n" })
	healthy = time.Since(began)
	opened <- time.Now()
	if left := <-orphans; len(left) > 0 {
		s.t.Errorf("%s after the %s was killed these still run, and who started them is gone: %v", gone, blow, left)
	}
	first, _, _ := strings.Cut(blow, " ")
	s.all.add(func() {
		s.all.Healthy[first] = max(s.all.Healthy[first], healthy)
		s.all.Gone = max(s.all.Gone, gone)
	})
}

// settles ends what people started and waits until all of it is over.
func (s *siege) settles(w *work) {
	s.t.Helper()
	w.working.Wait()
	w.hangUp()
	for _, id := range w.standing() {
		// An end that was recorded before its answer could be given stands.
		if r := s.insists(s.ben, "revoke", id, "--reason", "the run is over"); r.code != 0 && !strings.Contains(r.err, "it is ended") {
			s.t.Fatalf("revoke: exit %d: %s%s", r.code, r.out, r.err)
		}
		w.must("grant.ended", id)
	}
	s.until("the end of every process of a session", func() bool { return len(w.left()) == 0 })
	s.until("every session to be closed", func() bool {
		var list struct{ Sessions []struct{ State string } }
		s.reads(&list, "sessions", "--live", "-o", "json")
		for _, one := range list.Sessions {
			if one.State == "live" {
				return false
			}
		}
		return true
	})
	s.until("the spool of brakes to be empty", func() bool {
		b, err := os.ReadFile(filepath.Join(s.data, "server", "brakes"))
		return err == nil && len(b) > 4 && [4]byte(b) == [4]byte{}
	})
}

// insists has a command answered by a server that may be slow to answer.
func (s *siege) insists(p person, args ...string) (r result) {
	s.t.Helper()
	s.until("an answer to "+strings.Join(args, " "), func() bool {
		r = s.as(p).run(args...)
		return r.code != 1 || !slices.ContainsFunc(unanswered, func(words string) bool { return strings.Contains(r.err, words) })
	})
	return r
}

// unanswered is what a command says whose server, or its database, was too slow.
var unanswered = []string{"cannot reach the server", "deadline exceeded", "cannot record", "the database"}

// must is insists for what has to work.
func (s *siege) must(args ...string) string {
	s.t.Helper()
	r := s.insists(s.ada, args...)
	if r.code != 0 {
		s.t.Fatalf("handrail %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// reads is must for what prints JSON.
func (s *siege) reads(into any, args ...string) {
	s.t.Helper()
	if out := s.must(args...); json.Unmarshal([]byte(out), into) != nil {
		s.t.Fatalf("handrail %s printed no JSON:\n%s", strings.Join(args, " "), out)
	}
}
