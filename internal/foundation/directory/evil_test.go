package directory

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// evil is a directory server that does what a script says.
type evil struct {
	t       *testing.T
	address string
}

// serve answers binds, and hands every search to the script.
func serve(t *testing.T, search func(conn net.Conn, id int64)) *evil {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					p, err := ber.ReadPacket(c)
					if err != nil || len(p.Children) < 2 {
						return
					}
					id, _ := p.Children[0].Value.(int64)
					switch p.Children[1].Tag {
					case ldap.ApplicationBindRequest:
						_, _ = c.Write(result(id, ldap.ApplicationBindResponse, 0, nil))
					case ldap.ApplicationSearchRequest:
						search(c, id)
					}
				}
			}()
		}
	}()
	return &evil{t, l.Addr().String()}
}

func (e *evil) settings() Settings {
	return Settings{URL: "ldap://" + e.address, People: "ou=people,dc=x", Groups: "ou=groups,dc=x", Map: map[string][]string{"operator": {"ops"}}}
}

// read reads it in pages and by push, and returns what was wrong with each.
func (e *evil) read() (paged, pushed error) {
	e.t.Helper()
	c := checked(e.t, e.settings())
	for i, into := range []*error{&paged, &pushed} {
		l, err := c.open(e.t.Context())
		if err != nil {
			*into = err
			continue
		}
		if i == 0 {
			_, *into = l.readAll(e.t.Context())
		} else {
			*into = l.follow(e.t.Context(), func(*world) error { return errors.New("a whole world came") }, signals{})
		}
		l.close()
	}
	return paged, pushed
}

func message(id int64, op *ber.Packet, controls ...*ber.Packet) []byte {
	m := ber.NewSequence("")
	m.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	m.AppendChild(op)
	if len(controls) > 0 {
		all := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "")
		for _, c := range controls {
			all.AppendChild(c)
		}
		m.AppendChild(all)
	}
	return m.Bytes()
}

func result(id int64, tag ber.Tag, code int64, controls []*ber.Packet) []byte {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	op.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""))
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	return message(id, op, controls...)
}

// found is one entry of a search.
func found(id int64, dn string, attributes ...string) []byte {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, dn, ""))
	all := ber.NewSequence("")
	for i := 0; i+1 < len(attributes); i += 2 {
		a := ber.NewSequence("")
		a.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, attributes[i], ""))
		values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		values.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, attributes[i+1], ""))
		a.AppendChild(values)
		all.AppendChild(a)
	}
	op.AppendChild(all)
	return message(id, op)
}

// end is the end of a page, with a cookie for the next.
func end(id int64, cookie string) []byte {
	paging := ldap.NewControlPaging(0)
	paging.SetCookie([]byte(cookie))
	return result(id, ldap.ApplicationSearchResultDone, 0, []*ber.Packet{paging.Encode()})
}

func TestAnEvilDirectoryCostsLittleAndGrantsNothing(t *testing.T) {
	endless := func(conn net.Conn, id int64) {
		for n := 0; ; n++ {
			if _, err := conn.Write(found(id, "uid="+uuidN(n)+",ou=people,dc=x", "entryUUID", uuidN(n), "uid", "u"+uuidN(n)[30:], "cn", "g")); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		search func(net.Conn, int64)
		want   string
	}{
		"hangs up in mid page": {func(conn net.Conn, id int64) {
			_, _ = conn.Write(found(id, "uid=a,dc=x", "entryUUID", uuidN(1), "uid", "a"))
			conn.Close()
		}, "cannot read the directory"},
		"says nothing of its end": {func(conn net.Conn, id int64) { _, _ = conn.Write(result(id, ldap.ApplicationSearchResultDone, 0, nil)) }, "cannot read the directory"},
		"sends what never ends":   {endless, "cannot read the directory"},
		"announces two gigabytes": {func(conn net.Conn, _ int64) {
			_, _ = conn.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff})
		}, "cannot read the directory"},
		"gives one id to two": {func(conn net.Conn, id int64) {
			_, _ = conn.Write(found(id, "cn=a,dc=x", "entryUUID", uuidN(1), "cn", "a"))
			_, _ = conn.Write(found(id, "cn=b,dc=x", "entryUUID", uuidN(1), "cn", "b"))
			_, _ = conn.Write(end(id, ""))
		}, "cannot read the directory"},
		"gives no id":      {func(conn net.Conn, id int64) { _, _ = conn.Write(found(id, "cn=a,dc=x", "cn", "a")) }, "cannot read the directory"},
		"stops at a limit": {func(conn net.Conn, id int64) { _, _ = conn.Write(result(id, ldap.ApplicationSearchResultDone, 4, nil)) }, "cannot read the directory"},
		"speaks no LDAP":   {func(conn net.Conn, _ int64) { _, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n") }, "cannot read the directory"},
		"sends half a group": {func(conn net.Conn, id int64) {
			_, _ = conn.Write(found(id, "cn=a,dc=x", "entryUUID", uuidN(1), "cn", "a", "member;range=0-1499", "uid=x,dc=x"))
			_, _ = conn.Write(end(id, ""))
		}, "cannot read the directory"},
		"has a cookie like a book": {func(conn net.Conn, id int64) { _, _ = conn.Write(end(id, strings.Repeat("c", maxCookie+1))) }, "cannot read the directory"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			paged, pushed := serve(t, c.search).read()
			runtime.GC()
			runtime.ReadMemStats(&after)
			for how, err := range map[string]error{"paged": paged, "pushed": pushed} {
				if err == nil || !strings.Contains(err.Error(), c.want) && !errors.Is(err, errNoPush) {
					t.Errorf("%s: %v", how, err)
				}
			}
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
				t.Errorf("%d MiB are kept of it", grown>>20)
			}
		})
	}
}

// A server that takes the connection and says nothing is left, and nothing
// waits for it longer than it is told to.
func TestADirectoryThatSaysNothingIsLeft(t *testing.T) {
	e := serve(t, func(net.Conn, int64) {})
	c := checked(t, e.settings())
	l, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.readAll(ctx); err == nil {
		t.Error("a company was read from a server that says nothing")
	}
	l.close()
}

func TestTwoEntriesWithOneIdAreNoCompany(t *testing.T) {
	w := newWorld(testConfig(t))
	put := w.newOnly(w.putPerson)
	if err := put(entry("uid=ada,ou=people,dc=x", uuidN(1), "uid", "ada")); err != nil {
		t.Fatal(err)
	}
	if err := put(entry("uid=eve,ou=people,dc=x", uuidN(1), "uid", "eve")); err == nil {
		t.Error("eve took ada's id")
	}
	if err := put(entry("UID=Ada, ou=people, dc=x", uuidN(2), "uid", "eve")); err == nil {
		t.Error("eve took ada's place")
	}
}
