package store

import (
	"testing"
	"time"
)

func TestIDsMadeLaterSortLater(t *testing.T) {
	at := time.Now()
	a, b, c := onceAt(at), onceAt(at), onceAt(at.Add(time.Microsecond))
	if a == b || len(a) > maxID {
		t.Errorf("%q and %q are no ids of two Records", a, b)
	}
	if c <= a || c <= b {
		t.Errorf("%q does not sort after %q and %q", c, a, b)
	}
}
