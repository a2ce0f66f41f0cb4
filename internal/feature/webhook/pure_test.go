package webhook

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// The vectors are those of the specification's own libraries.
func TestSignaturesAreThoseOfTheSpecification(t *testing.T) {
	for _, v := range []struct{ scheme, key, want string }{
		{SchemeSecret, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
		{SchemeKey, "VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk=", "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="},
	} {
		key, err := base64.StdEncoding.DecodeString(v.key)
		if err != nil {
			t.Fatal(err)
		}
		if got := sign(v.scheme, key, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)); got != v.want {
			t.Errorf("%s: %s, want %s", v.scheme, got, v.want)
		}
	}
}

func TestNoAddressOfTheMachineIsDialled(t *testing.T) {
	allowed := prefixes("169.254.7.0/24")
	for text, ok := range map[string]bool{
		"192.0.2.1": true, "10.1.2.3": true, "192.168.1.9": true, "2001:db8::1": true, "fd12::1": true, "169.254.7.1": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "::": false, "0.1.2.3": false,
		"169.254.169.254": false, "::ffff:169.254.169.254": false, "fe80::1": false, "fd00:ec2::254": false, "fd20:ce::254": false,
		"100.100.100.200": false, "192.0.0.192": false, "224.0.0.1": false, "255.255.255.255": false, "ff02::1": false,
		"64:ff9b::a9fe:a9fe": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2002:a9fe:a9fe::1": false, "::127.0.0.1": false,
		"64:ff9b::c000:201": true,
	} {
		if err := checkAddress(netip.MustParseAddr(text), false, allowed); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	if checkAddress(netip.MustParseAddr("127.0.0.1"), true, nil) != nil || checkAddress(netip.MustParseAddr("::1"), true, nil) != nil {
		t.Error("a hook to this machine does not reach it")
	}
	if checkAddress(netip.MustParseAddr("10.0.0.1"), true, nil) == nil {
		t.Error("a hook to this machine, by HTTP, reaches another")
	}
}

func TestAnAddressIsHTTPSOrThisMachine(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://siem.example.org/in?k=1": true, "https://10.0.0.1:8443": true, "http://localhost:8080/x": true, "http://127.0.0.1/": true, "http://[::1]:80/": true,
		"http://siem.example.org": false, "http://localhost.example.org": false, "http://127.0.0.1.example.org": false, "ftp://a": false, "https:///x": false, "https://user:pass@a": false,
		"https://a#b": false, "https://a b": false, "javascript:1": false, "https:a": false, "//a": false, "": false, "https://ä": false, "http://2130706433/": false,
	} {
		if _, err := checkURL(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"https://a/b", "http://127.0.0.1", "http://[::ffff:127.0.0.1]", "https://a:b@c", "http://0x7f.1/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := checkURL(s)
		if err != nil {
			return
		}
		again, err := url.Parse(u.String())
		if err != nil || u.User != nil || u.Hostname() == "" || len(s) > maxURL || again.Hostname() != u.Hostname() {
			t.Fatalf("%q was taken as %v: %v", s, u, err)
		}
		if u.Scheme != "https" && !ownName(u.Hostname()) {
			t.Fatalf("%q goes to another machine without TLS", s)
		}
	})
}

func TestAReceiverMayAskForTimeWithinReason(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, "99999999": longestWait, "999999999999999999999": 0, "-1": 0, "soon": 0,
		now.Add(time.Hour).Format(http.TimeFormat): time.Hour, now.Add(-time.Hour).Format(http.TimeFormat): 0, now.Add(1e6 * time.Hour).Format(http.TimeFormat): longestWait,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

func TestWhichEntriesAHookIsToldOf(t *testing.T) {
	h := Hook{ID: "w-1", Actions: "grant.* session.opened", Since: 100}
	for action, want := range map[ledger.Action]bool{
		"grant.requested": true, "session.opened": true, "session.closed": false, "grants.counted": false, ActionDelivered: false,
	} {
		if got := h.wants(ledger.Leaf{Action: action, Time: 101}); got != want {
			t.Errorf("%s: %v", action, got)
		}
	}
	if h.wants(ledger.Leaf{Action: "grant.requested", Time: 99}) {
		t.Error("it is told of what was before it")
	}
	if !h.wants(ledger.Leaf{Action: ActionTested, Object: "w-1", Time: 101}) || h.wants(ledger.Leaf{Action: ActionTested, Object: "w-2", Time: 101}) {
		t.Error("a test goes to the one that is tested")
	}
	all := Hook{ID: "w-1", Actions: "*"}
	if all.wants(ledger.Leaf{Action: ActionDelivered, Time: 1}) || !all.wants(ledger.Leaf{Action: "x.y", Time: 1}) {
		t.Error("everything is all but how deliveries went")
	}
}

func TestWhatNamesEntries(t *testing.T) {
	for s, want := range map[string]bool{
		"*": true, "grant.*": true, "grant.requested": true, "a.b.c": true, "read-only.x": true,
		"": false, "grant": false, ".*": false, "grant.": false, "grant*": false, "gr*.x": false, "*.x": false, "Grant.x": false, "1.x": false, "-a.b": false, "a..b": false, "a.*.b": false,
	} {
		if isPattern(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for s, want := range map[string]bool{"siem": true, "a-1_b.c": true, "": false, "-a": false, "w-7k3f9q2m": false, "A": false, "a b": false, "a/b": false} {
		if isName(s) != want {
			t.Errorf("name %q: %v", s, !want)
		}
	}
}
