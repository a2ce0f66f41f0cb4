package directory

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/uuid"
)

// Whatever text stands for a name, it has one reference, and the name that is
// read from the canonical form of it is the same again.
func FuzzDN(f *testing.F) {
	for _, s := range []string{"uid=ada,dc=x", `cn=a\2cb+sn=c,dc=x`, "=", ",", `a=\`, "a=#04024869", "uid=a\u202eb,dc=x", "a=b;c=d", strings.Repeat("a=b,", 300) + "c=d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dn, err := parseDN(text)
		if err != nil {
			if r, err := refOf(text); err == nil || r != (ref{}) {
				t.Fatal("what is no name has a reference")
			}
			return
		}
		r, err := refOf(text)
		if err != nil || r == (ref{}) {
			t.Fatal(err)
		}
		again, err := refOf(dn.String())
		if err == nil && again != r && len(dn.String()) <= maxDN && !strings.ContainsAny(text, "#") {
			if canonical(dn) == canonical(mustDN(t, dn.String())) {
				t.Fatalf("%q has two references", text)
			}
		}
	})
}

func mustDN(t *testing.T, s string) *ldap.DN {
	dn, err := parseDN(s)
	if err != nil {
		t.Skip()
	}
	return dn
}

// No settings panic, and what is accepted speaks TLS or to this machine.
func FuzzSettings(f *testing.F) {
	f.Add("ldaps://h", "cn=a,dc=x", "(uid=*)", "member", "1h")
	f.Add("ldap://127.0.0.1:1", "", "(&(a=b)(!(c=d)))", "memberUid", "")
	f.Fuzz(func(t *testing.T, url, bind, filter, member, stale string) {
		c, err := Settings{URL: url, BindDN: bind, Password: "x", People: "ou=p,dc=x", Groups: "ou=g,dc=x", PeopleFilter: filter, Member: member, StaleAfter: stale}.check()
		if err != nil {
			return
		}
		ip := net.ParseIP(c.serverName)
		if !c.tls && !c.StartTLS && c.serverName != "localhost" && (ip == nil || !ip.IsLoopback()) {
			t.Fatalf("%q is read in the clear", url)
		}
	})
}

// stream is a connection from which bytes come and then no more.
type stream struct {
	net.Conn
	r io.Reader
}

func (s stream) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s stream) SetReadDeadline(time.Time) error  { return nil }
func (s stream) SetWriteDeadline(time.Time) error { return nil }

// Whatever a server sends: what is handed on is what came, message by message,
// each well formed and bounded.
func FuzzFrame(f *testing.F) {
	f.Add(startTLSRequest)
	f.Add([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff})
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add([]byte{0x30, 0x05, 0x02, 0x01, 0x01, 0x04, 0x7f})
	f.Add(append([]byte{0x30, 0x82, 0x01, 0x00}, bytes.Repeat([]byte{0x30, 0x82}, 128)...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		fr := &framed{Conn: stream{r: bytes.NewReader(sent)}, idle: time.Second, budget: 1 << 20}
		got, err := io.ReadAll(fr)
		if !bytes.HasPrefix(sent, got) {
			t.Fatal("something else is handed on than came")
		}
		if err == nil && len(got) != len(sent) && !errors.Is(err, io.EOF) {
			t.Fatal("a part is left out and nobody says so")
		}
	})
}

// Whatever the searches that are followed say, in whatever order: no panic, and
// a world that is whole had everything once.
func FuzzSync(f *testing.F) {
	f.Add([]byte{0, 1, 1, 2, 9, 0, 9, 1})
	f.Add([]byte{3, 1, 0, 1, 4, 0, 5, 2, 6, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		c := testConfig(t)
		tr := &tracker{w: newWorld(c)}
		for i := 0; i+1 < len(script) && i < 200; i += 2 {
			var s said
			id := uuid.UUID{15: script[i+1]%8 + 1}
			e := entry("cn=n"+string('a'+script[i+1]%8)+",ou=people,dc=x", id.String(), "uid", "n"+string('a'+script[i+1]%8), "cn", "g", "member", "cn=na,ou=people,dc=x")
			s.from = int(script[i]>>4) % searches
			switch script[i] % 10 {
			case 0, 1, 2, 3:
				s.entry, s.controls = e, []ldap.Control{&ldap.ControlSyncState{State: ldap.ControlSyncStateState(script[i] % 4), EntryUUID: id, Cookie: script}}
			case 4:
				s.controls = []ldap.Control{&ldap.ControlSyncInfo{NewCookie: &ldap.ControlSyncInfoNewCookie{Cookie: script}}}
			case 5:
				s.controls = []ldap.Control{&ldap.ControlSyncInfo{SyncIdSet: &ldap.ControlSyncInfoSyncIdSet{RefreshDeletes: script[i+1]%2 == 0, SyncUUIDs: []uuid.UUID{id, {}}}}}
			case 6:
				s.referral = "ldap://x"
			case 7:
				s.entry = e
			case 8:
				s.controls = []ldap.Control{&ldap.ControlSyncDone{}}
			case 9:
				s.controls = []ldap.Control{&ldap.ControlSyncInfo{RefreshPresent: &ldap.ControlSyncInfoRefreshPresent{RefreshDone: script[i+1]%2 == 1}}}
			}
			before := tr.whole()
			if err := tr.step(s); err != nil {
				return
			}
			if s.referral != "" || s.entry != nil && s.controls == nil {
				t.Fatal("what is not whole was taken in")
			}
			if before && !tr.whole() {
				t.Fatal("a world that was whole is it no more")
			}
		}
		if tr.whole() {
			copied := tr.w.copy()
			copied.stand(c.Map)
		}
	})
}
