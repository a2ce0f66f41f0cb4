package store

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// benchRecord measures state change + durable leaf with that many callers.
func benchRecord(b *testing.B, c Config, callers int) {
	s := mustOpen(b, c)
	var next atomic.Int64
	took := make([]time.Duration, b.N)
	var wg sync.WaitGroup
	var start time.Time
	begin := sync.OnceFunc(func() { b.ResetTimer(); start = time.Now() })
	ready := make(chan struct{})
	payload := json.RawMessage(`{"v":1,"text":"` + strings.Repeat("x", 350) + `"}`)
	for w := range callers {
		name := fmt.Sprintf("c%d", w)
		mustRecord(b, s, "make "+name, bump(name))
		change := func(tx *Tx) ([]ledger.Entry, error) {
			if _, err := tx.Exec(`UPDATE counter SET n = n + 1 WHERE name = $1`, name); err != nil {
				return nil, err
			}
			return []ledger.Entry{{Action: "counter.bumped", Subjects: []string{"p-00000001"}, Target: "host/h-00000001", Object: name, Version: 1, Payload: payload}}, nil
		}
		wg.Go(func() {
			<-ready
			for {
				i := next.Add(1) - 1
				if i >= int64(b.N) {
					return
				}
				t := time.Now()
				mustRecord(b, s, Once(), change)
				took[i] = time.Since(t)
			}
		})
	}
	begin()
	used, theirs := cpuTime(), shared.Processor()
	close(ready)
	wg.Wait()
	elapsed := time.Since(start)
	used = cpuTime() - used
	theirs = shared.Processor() - theirs
	b.StopTimer()
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(b.N)/elapsed.Seconds(), "records/s")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(theirs.Nanoseconds())/1e3/float64(b.N), "postgres-µs/op")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what this process has used so far: unlike the time by the clock it
// says the same on a busy machine.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail with a good pointer
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRecordSQLite(b *testing.B) {
	for _, callers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { benchRecord(b, testConfig(b), callers) })
	}
}

func BenchmarkRecordPostgres(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c := testConfig(b)
			c.DSN = shared.Database(b)
			benchRecord(b, c, callers)
		})
	}
}

// BenchmarkVerify recomputes a whole database from disk.
func BenchmarkVerify(b *testing.B) {
	s := mustOpen(b, testConfig(b))
	const records, each = 200, 100
	for i := range records {
		mustRecord(b, s, fmt.Sprint(i), func(*Tx) ([]ledger.Entry, error) {
			out := make([]ledger.Entry, each)
			for j := range out {
				out[j] = ledger.Entry{Action: "thing.done", Subjects: []string{"p-00000001"}, Session: "s-00000001", Target: "host/h-00000001", Payload: map[string]int{"v": 1, "j": j}}
			}
			return out, nil
		})
	}
	b.ResetTimer()
	for b.Loop() {
		mustVerify(b, s)
	}
	b.ReportMetric(float64(records*each)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
