package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// BenchmarkGroupsPostgres appends leaves 64 at a time, by 8 callers.
func BenchmarkGroupsPostgres(b *testing.B) {
	c := testConfig(b)
	c.DSN = shared.Database(b)
	s := mustOpen(b, c)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	used, theirs := cpuTime(), shared.Processor()
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				mustRecord(b, s, fmt.Sprint("g-", i), func(*Tx) ([]ledger.Entry, error) {
					all := make([]ledger.Entry, 64)
					for j := range all {
						all[j] = ledger.Entry{Action: "thing.done", Subjects: []string{"p-00000001"}, Session: "s-00000001", Target: "host/h-00000001", Payload: map[string]int{"v": 1, "j": j}}
					}
					return all, nil
				})
			}
		})
	}
	wg.Wait()
	per := 1e3 * 64 * float64(b.N)
	b.ReportMetric(float64((cpuTime()-used).Nanoseconds())/per, "cpu-µs/leaf")
	b.ReportMetric(float64((shared.Processor()-theirs).Nanoseconds())/per, "postgres-µs/leaf")
	b.ReportMetric(64*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
	b.ReportMetric(0, "ns/op")
}
