package wire

import (
	"strings"
	"testing"
)

func TestADestinationHasOneSpelling(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:5432": "127.0.0.1:5432", "localhost:080": "127.0.0.1:80", "[::1]:22": "127.0.0.1:22",
		"DB.internal:1": "db.internal:1", "[2001:DB8::1]:443": "[2001:db8::1]:443", "db:*": "db:*",
	} {
		if got, err := ForwardDestination(in, true); err != nil || got != want {
			t.Errorf("%q is %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "x", ":1", "x:", "x:0", "x:65536", "x:-1", "x:http", "a b:1", "a\n:1", "[fe80::1%eth0]:1", "x:1:2", strings.Repeat("a", 254) + ":1", "-x:*:1", "ä:1"} {
		if got, err := ForwardDestination(bad, true); err == nil {
			t.Errorf("%q is taken, as %q", bad, got)
		}
	}
	if _, err := ForwardDestination("x:*", false); err == nil {
		t.Error("every port is a destination")
	}
}

func TestAGrantForwardsWhatItNames(t *testing.T) {
	granted := []string{"127.0.0.1:5432", "db:*", "[2001:db8::1]:*"}
	for destination, want := range map[string]bool{
		"127.0.0.1:5432": true, "127.0.0.1:5433": false, "db:1": true, "db2:1": false, "[2001:db8::1]:9": true, "": false, "db": false,
	} {
		if ForwardAllowed(granted, destination) != want {
			t.Errorf("%q: want %v", destination, want)
		}
	}
}

// Whatever somebody asks for has one spelling that is its own, and only what is
// spelled so is an order.
func FuzzForwardDestination(f *testing.F) {
	for _, s := range []string{"127.0.0.1:5432", "[::1]:*", "a:1", "\x00:1", "::::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		one, err := ForwardDestination(s, true)
		if err != nil {
			return
		}
		if again, err := ForwardDestination(one, true); err != nil || again != one {
			t.Errorf("%q is %q, and that is %q, %v", s, one, again, err)
		}
		if isDestination(one) == strings.HasSuffix(one, ":*") {
			t.Errorf("%q is an order, or not, and should not be", one)
		}
	})
}
