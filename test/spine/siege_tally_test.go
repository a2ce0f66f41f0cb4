package spine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// tally is what all sieges came to. In a file, it goes on where an earlier one
// was interrupted.
type tally struct {
	mu    sync.Mutex
	began time.Time
	file  string // "": it is not kept

	Runs, Violations, Entries, Confirmed int
	Kills, Points                        map[string]int
	Healthy                              map[string]time.Duration // the longest, by who was killed
	Gone                                 time.Duration            // the longest that an orphan lived
	Took                                 time.Duration
	Failed                               []string
}

func resume(t *testing.T, file string) *tally {
	t.Helper()
	a := &tally{file: file, Kills: map[string]int{}, Points: map[string]int{}, Healthy: map[string]time.Duration{}}
	if file != "" {
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, a)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("cannot go on with %s: %v", file, err)
		}
	}
	a.began = time.Now().Add(-a.Took)
	return a
}

func (a *tally) add(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// ends notes the end of a run.
func (a *tally) ends(t *testing.T, blow string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.Skipped() {
		return
	}
	a.Runs++
	if t.Failed() {
		a.Violations++
		a.Failed = append(a.Failed, t.Name()+" ("+blow+")")
	}
	a.Took = time.Since(a.began)
	if a.file == "" {
		return
	}
	b, err := json.Marshal(a)
	if err == nil {
		err = os.WriteFile(a.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(a.file+".new", a.file)
	}
	if err != nil {
		t.Errorf("the tally is not kept: %v", err)
	}
}

// eachMinute says how far it is, until the returned function says it for the
// last time.
func (a *tally) eachMinute() (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for over := false; !over; {
			select {
			case <-tick.C:
			case <-stop:
				over = true
			}
			fmt.Println(a)
		}
	}()
	return func() { close(stop); <-done }
}

func (a *tally) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	round := map[string]string{}
	for who, d := range a.Healthy {
		round[who] = d.Round(time.Millisecond).String()
	}
	line := func(v any) string { b, _ := json.Marshal(v); return strings.ReplaceAll(string(b), `"`, "") }
	return fmt.Sprintf("siege: %d runs in %s, kills %s at %s; longest until healthy %s; longest until every orphan was dead %s; "+
		"%d changes acknowledged and found once in ledgers of %d entries; violations: %d",
		a.Runs, time.Since(a.began).Round(time.Second), line(a.Kills), line(a.Points), line(round), a.Gone.Round(time.Millisecond),
		a.Confirmed, a.Entries, a.Violations)
}
