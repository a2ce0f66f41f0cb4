package sandbox

import (
	"errors"
	"os"
	"strings"
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

// Root's sessions end with their cgroup: where none can be made there are none.
func TestAHostWithoutCgroupsGivesRootNoSessions(t *testing.T) {
	built := Report{Mode: RootMode, Floor: Full, Notifier: true, Layers: []Layer{{Name: "landlock", InForce: true}}}
	if r := built.withoutCgroup(errors.New("no pids.max")); r.Mode != NoShells || r.Floor != Brokered || len(r.Layers) != 0 || !strings.Contains(strings.Join(r.Missing, ""), "no pids.max") {
		t.Errorf("%+v", r)
	}
	built.Mode = UserNamespaceMode
	if r := built.withoutCgroup(nil); r.Mode != UserNamespaceMode || r.Floor != Full || len(r.Missing) != 1 {
		t.Errorf("%+v", r)
	}
}
