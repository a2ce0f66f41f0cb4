package spine_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// expected is an entry that must be in the ledger exactly once.
type expected struct{ action, object string }

// work is what people do while somebody is killed. What the server acknowledged
// is remembered.
type work struct {
	s       *siege
	stop    chan struct{}
	working sync.WaitGroup

	mu    sync.Mutex
	acked []expected
	marks map[string]*process // what a session runs, and the client that asked for it
	void  map[string]bool     // marks of sessions that were ended for good
	held  []string            // grants that are in force
}

// work starts it.
func (s *siege) work() *work {
	w := &work{s: s, stop: make(chan struct{}), marks: map[string]*process{}, void: map[string]bool{}}
	w.working.Go(w.looks)
	w.working.Go(w.writes)
	w.working.Go(w.runs)
	w.working.Go(w.asks)
	switch s.age % 4 {
	case 1:
		w.working.Go(w.locks)
	case 3:
		w.working.Go(w.breaksGlass)
	}
	return w
}

func (w *work) over() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// must remembers what was acknowledged.
func (w *work) must(action, object string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, expected{action, object})
}

// session starts one that runs on, with a process that left its group.
func (w *work) session(p person, write bool) (mark string) {
	mark = marker(w.s.t)
	args := []string{"ssh", w.s.host, "--", "setsid sleep " + mark + " & sleep " + mark}
	if write {
		args = append([]string{"ssh", "--write"}, args[1:]...)
	}
	client := p.start(args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks[mark] = client
	return mark
}

func (w *work) looks() { w.session(w.s.as(w.s.cleo), false) }

// writes asks for a grant, gets it and uses it; in every other run the grant is
// revoked as soon as its session runs.
func (w *work) writes() {
	id := w.granted(w.s.as(w.s.cleo))
	if id == "" {
		return
	}
	mark := w.session(w.s.as(w.s.cleo), true)
	if w.s.age%2 == 0 {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for !w.over() && len(running(mark)) == 0 {
			<-tick.C
		}
		if w.ends(id) {
			w.mu.Lock()
			w.void[mark] = true
			w.mu.Unlock()
			return
		}
	}
	w.mu.Lock()
	w.held = append(w.held, id)
	w.mu.Unlock()
}

// granted asks and has it agreed to; "" if somebody was killed meanwhile.
func (w *work) granted(p person) string {
	id := w.asked(p.run("elevate", w.s.host, "--reason", "disk full", "--for", "30m", "-o", "json"), "grant.requested")
	if id == "" || w.s.as(w.s.ben).run("approve", id, "--yes").code != 0 {
		return ""
	}
	w.must("grant.activated", id)
	return id
}

func (w *work) asked(r result, action string) string {
	var a asked
	if r.code != 0 || json.Unmarshal([]byte(r.out), &a) != nil {
		return ""
	}
	w.must(action, a.ID)
	return a.ID
}

// runs short commands, one after the other.
func (w *work) runs() {
	for p := w.s.as(w.s.dan); !w.over(); {
		p.run("ssh", w.s.host, "--", "echo one")
	}
}

// asks for grants that are agreed to and ended at once.
func (w *work) asks() {
	for p := w.s.as(w.s.eve); !w.over(); {
		w.ends(w.granted(p))
	}
}

// ends has a grant revoked, and says whether that was acknowledged.
func (w *work) ends(id string) bool {
	if id == "" || w.s.as(w.s.ben).run("revoke", id, "--reason", "enough").code != 0 {
		return false
	}
	w.must("grant.ended", id)
	return true
}

// breaksGlass and has it cut short and reviewed.
func (w *work) breaksGlass() {
	id := w.asked(w.s.as(w.s.eve).run("break-glass", w.s.host, "--reason", "site is down", "-o", "json"), "grant.declared")
	if id == "" {
		return
	}
	w.ends(id)
	if w.s.as(w.s.ben).run("review", id, "--verdict", "justified", "--notes", "it was down").code == 0 {
		w.must("grant.reviewed", id)
	}
}

// locks somebody out who has a session.
func (w *work) locks() {
	ada := w.s.as(w.s.ada)
	name := fmt.Sprintf("fay%d", w.s.age)
	var added struct{ Token string }
	r := ada.run("person", "add", name, "--group", "developer", "-o", "json")
	if r.code != 0 || json.Unmarshal([]byte(r.out), &added) != nil {
		return
	}
	fay := person{w.s.installation, w.s.newHome()}
	if fay.runIn(added.Token+"\n", "login", "--token-file", "/dev/stdin").code != 0 {
		return
	}
	mark := w.session(fay, false)
	if ada.run("lock", name, "--reason", "lost laptop").code == 0 {
		w.mu.Lock()
		w.void[mark] = true
		w.mu.Unlock()
	}
}

// standing are the grants that are in force.
func (w *work) standing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// left is what sessions of this run started and still runs.
func (w *work) left() (out []found) { return w.running(func(string, *process) bool { return true }) }

// orphans run although the client of their session has ended, or their person
// was locked out.
func (w *work) orphans() (out []found) {
	return w.running(func(mark string, client *process) bool {
		select {
		case <-client.done:
			return true
		default:
			return w.void[mark]
		}
	})
}

func (w *work) running(which func(mark string, client *process) bool) (out []found) {
	all := everything()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range all {
		if len(f.args) != 2 || f.args[0] != "sleep" {
			continue
		}
		if client := w.marks[f.args[1]]; client != nil && which(f.args[1], client) {
			out = append(out, f)
		}
	}
	return out
}

// hangUp ends the clients of all sessions.
func (w *work) hangUp() {
	w.mu.Lock()
	clients := make([]*process, 0, len(w.marks))
	for _, c := range w.marks {
		clients = append(clients, c)
	}
	w.mu.Unlock()
	for _, c := range clients {
		c.kill()
	}
}

// point is a moment to kill in: the nth time that something changed, and a
// breath after it.
type point struct {
	w      *work
	name   string
	look   func() string
	nth    int
	breath time.Duration
}

func (p point) String() string { return fmt.Sprintf("%s %d + %s", p.name, p.nth, p.breath) }

// point chooses one.
func (s *siege) point(w *work) point {
	file := func(words ...string) func() string {
		path := filepath.Join(append([]string{s.data}, words...)...)
		return func() string { return fingerprint(path) }
	}
	acks := func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		return fmt.Sprint(len(w.acked))
	}
	sessions := func() string { return fmt.Sprint(len(w.left())) }
	keepers := func() string { return fmt.Sprint(s.role("handrail-keeper")) }
	commits, observations := file("server", "state.db-wal"), file("server", "observed.db-wal")
	if s.db != nil {
		commits = func() string { return fingerprint(s.db.Journal()) }
		observations = commits
	}
	points := []point{
		{name: "time", breath: time.Duration(s.rnd.IntN(900)) * time.Millisecond},
		{name: "time", breath: time.Duration(s.rnd.IntN(300)) * time.Millisecond},
		{name: "commit", look: commits, nth: 30},
		{name: "observation", look: observations, nth: 6},
		{name: "recording", look: file("server", "recordings"), nth: 6},
		{name: "brake", look: file("server", "brakes"), nth: 2},
		{name: "journal", look: file("warden"), nth: 8},
		{name: "keeper", look: keepers, nth: 4},
		{name: "session", look: sessions, nth: 4},
		{name: "acknowledgement", look: acks, nth: 8},
	}
	p := points[s.rnd.IntN(len(points))]
	p.w = w
	if p.look != nil {
		p.nth = 1 + s.rnd.IntN(p.nth)
		p.breath = time.Duration(s.rnd.IntN(5000)) * time.Microsecond
	}
	return p
}

// wait returns in that moment, or after two seconds in which it did not come.
func (p point) wait() {
	late := time.NewTimer(2 * time.Second)
	defer late.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	if p.look != nil {
		last := p.look()
		for seen := 0; seen < p.nth; {
			select {
			case <-late.C:
				return
			case <-tick.C:
			}
			if now := p.look(); now != last {
				last = now
				seen++
			}
		}
	}
	<-time.After(p.breath)
}

// fingerprint is another one once something at path, or two folders below it,
// was written.
func fingerprint(path string) string {
	var all []string
	for _, pattern := range []string{"", "*", "*/*"} {
		names, _ := filepath.Glob(filepath.Join(path, pattern))
		for _, name := range names {
			if info, err := os.Lstat(name); err == nil {
				all = append(all, fmt.Sprint(name, info.Size(), info.ModTime().UnixNano()))
			}
		}
	}
	return fmt.Sprint(all)
}
