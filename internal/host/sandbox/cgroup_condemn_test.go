package sandbox

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

func TestWhoKnowsOnlyTheNameEndsASessionAtOnce(t *testing.T) {
	needRoot(t)
	cg := fled(t)
	if cg.Layout() == "v1" {
		t.Skip("version 1 alone cannot kill a group as a whole")
	}
	groups := HoldGroups()
	defer groups.Close()
	if cg.Condemned() {
		t.Error("it was condemned before anybody did")
	}
	for _, name := range []string{"", "nobody-" + filepath.Base(cg.Path()), "../" + parentName + "/" + filepath.Base(cg.Path())} {
		if _, ok := groups.Condemn(name); ok {
			t.Errorf("%q was condemned", name)
		}
	}
	if n, ok := groups.Condemn(filepath.Base(cg.Path())); !ok || n < 120 {
		t.Fatalf("%d of at least 120 processes were condemned", n)
	}
	if !cg.Condemned() {
		t.Error("its keeper would not know")
	}
	gone, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := cg.Procs()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-gone.Done():
			t.Fatalf("%d processes outlived it", len(pids))
		}
	}
}
