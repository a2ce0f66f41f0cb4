package warden

import (
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestAUidIsOneSessionsAtATime(t *testing.T) {
	u := newUIDRange(hostPolicy{UIDFirst: defaultUIDFirst, UIDCount: 20})
	taken := map[uint32]bool{}
	for range u.count {
		u.prepare()
		uid, err := u.take()
		if err != nil {
			t.Fatalf("after %d: %v", len(taken), err)
		}
		if taken[uid] || uid < u.first || uid >= u.first+u.count {
			t.Fatalf("%d was given twice, or is not of the range", uid)
		}
		taken[uid] = true
	}
	if _, err := u.take(); fault.KindOf(err) != fault.Exhausted {
		t.Fatalf("one more than there are: %v", err)
	}
	u.release(u.first + 7)
	if uid, err := u.take(); err != nil || uid != u.first+7 {
		t.Errorf("after one was given back: %d, %v", uid, err)
	}
}
