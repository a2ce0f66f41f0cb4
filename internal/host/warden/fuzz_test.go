package warden

import (
	"encoding/binary"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
)

// FuzzJudge gives the judge bytes that nobody honest made. Nothing of it may
// be accepted, whatever else happens.
func FuzzJudge(f *testing.F) {
	l, n := ready(f, hostPolicy{})
	good := l.sign(l.entry(l.payload(0), nil))
	f.Add(wire.Envelope{Order: good[:len(good)-1]}.Marshal())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := wire.ParseEnvelope(b); err == nil {
			if _, err := n.judge.order(e); err == nil && string(e.Order) != string(good) {
				t.Fatal("an order that no server made is accepted")
			}
		}
		if _, _, err := n.judge.brake(b); err == nil {
			t.Fatal("a brake that no server made is accepted")
		}
		if _, err := n.judge.answer(make([]byte, wire.NonceSize), b, 0, nil); err == nil {
			t.Fatal("a lease that no server made is accepted")
		}
	})
}

// FuzzSocket writes bytes to the warden's socket protocol.
func FuzzSocket(f *testing.F) {
	f.Add([]byte(`{"op":"order","data":"aGVsbG8="}`), uint32(32))
	f.Add([]byte(`{"op":"`), uint32(1<<31))
	f.Fuzz(func(t *testing.T, body []byte, claimed uint32) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		there := os.NewFile(uintptr(fds[0]), "there")
		defer there.Close()
		here, err := net.FileConn(there)
		if err != nil {
			t.Fatal(err)
		}
		defer here.Close()
		_, _ = unix.Write(fds[1], append(binary.BigEndian.AppendUint32(nil, claimed), body...))
		unix.Close(fds[1])
		var m message
		if _, err := receive(here.(*net.UnixConn), &m, true, 0); err == nil && int(claimed) > len(body) {
			t.Fatal("a message that was cut short is read")
		}
	})
}
