package sshgate_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/sshgate"
)

// knock connects and says only so much.
func (w *world) knock(words string) net.Conn {
	w.t.Helper()
	c, err := net.DialTCP("tcp", nil, w.addr)
	fatal(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, words)
	fatal(w.t, err)
	return c
}

func TestACrowdOfSilentStrangersKeepsNobodyOut(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	for range 400 {
		w.knock("")
	}
	for range 100 {
		w.knock("SSH-2.0-nobody\r\n")
	}
	if r := ada.run("", "ssh", "web-1@gate", "echo in"); r.out != "in\n" || r.status != 0 {
		t.Fatalf("somebody who speaks was kept out: %+v", r)
	}
}

func TestWhoFindsNoRoomIsToldWhy(t *testing.T) {
	w := newWorldBehind(t, recording.Bounds{}, session.Bounds{}, sshgate.Bounds{Connections: 2})
	ada := w.person("ada", "developer")
	first := ada.dial("web-1")
	ada.dial("web-1")
	for range 10 { // what was not read of its words must not undo ours
		if r := ada.run("", "ssh", "web-1@gate", "true"); r.status != 255 || !strings.Contains(r.err, "2 connections are open here, and there is no room for more") {
			t.Fatalf("got %+v", r)
		}
	}
	first.Close()
	eventually(t, "there is room again", func() bool { return ada.run("", "ssh", "web-1@gate", "true").status == 0 })
}
