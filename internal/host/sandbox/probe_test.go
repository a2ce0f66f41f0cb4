package sandbox

import (
	"os"
	"sync"
	"testing"
)

// Two probes of one process stand for those of two hosts in containers, which
// have the same process number.
func TestProbesAtOnceDoNotMeet(t *testing.T) {
	needRoot(t)
	reports := make([]Report, 4)
	var all sync.WaitGroup
	for i := range reports {
		all.Go(func() { reports[i] = Probe(t.Context(), nil) })
	}
	all.Wait()
	for _, r := range reports {
		if r.Cgroup != reports[0].Cgroup || r.Cgroup == "" || r.Floor == Brokered {
			t.Errorf("process %d: %+v", os.Getpid(), r)
		}
	}
}
