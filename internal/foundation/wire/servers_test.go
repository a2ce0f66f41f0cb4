package wire_test

import (
	"crypto/ed25519"
	"testing"

	"handrail.dev/handrail/internal/foundation/wire"
)

var (
	orderKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	theirKey = orderKey.Public().(ed25519.PublicKey)
)

func listed() wire.Servers {
	return wire.Servers{V: 1, Origin: "here", Version: 7, Servers: []wire.ServerAt{{ID: "v-1", Address: "a.example:7080"}, {ID: "v-2", Address: "[::1]:7080", Draining: true}}}
}

func TestAListOfServersIsOfOneInstallationAndWellFormed(t *testing.T) {
	signed, err := wire.SignServers(listed(), orderKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.OpenServers(signed, theirKey, "here")
	if err != nil || got.Version != 7 || len(got.Servers) != 2 || !got.Servers[1].Draining {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := wire.OpenServers(signed, theirKey, "elsewhere"); err == nil {
		t.Error("a list of another installation is taken")
	}
	signed[len(signed)-1] ^= 1
	if _, err := wire.OpenServers(signed, theirKey, "here"); err == nil {
		t.Error("a list that nobody signed is taken")
	}
	for what, change := range map[string]func(*wire.Servers){
		"no server":      func(s *wire.Servers) { s.Servers = nil },
		"no version":     func(s *wire.Servers) { s.Version = 0 },
		"no port":        func(s *wire.Servers) { s.Servers[0].Address = "a.example" },
		"port 0":         func(s *wire.Servers) { s.Servers[0].Address = "a.example:0" },
		"a path":         func(s *wire.Servers) { s.Servers[0].Address = "a.example:7080/x" },
		"a node's id":    func(s *wire.Servers) { s.Servers[0].ID = "h-1" },
		"too many":       func(s *wire.Servers) { s.Servers = make([]wire.ServerAt, wire.MaxServers+1) },
		"a long address": func(s *wire.Servers) { s.Servers[0].Address = string(make([]byte, 300)) + ":1" },
	} {
		bad := listed()
		change(&bad)
		if _, err := wire.SignServers(bad, orderKey); err == nil {
			t.Errorf("a list with %s is signed", what)
		}
	}
}

func FuzzServers(f *testing.F) {
	signed, err := wire.SignServers(listed(), orderKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := wire.OpenServers(b, theirKey, "here"); err == nil && len(s.Servers) == 0 {
			t.Error("a list without a server was taken")
		}
	})
}

func FuzzPeerMessages(f *testing.F) {
	ask := wire.PeerAsk{V: 1, Nonce: make([]byte, wire.NonceSize), From: "v-1", To: "v-2", Issued: 1, What: "x"}
	a, err := wire.SignPeerAsk(ask, orderKey)
	if err != nil {
		f.Fatal(err)
	}
	b, err := wire.SignPeerAnswer(wire.PeerAnswer{V: 1, Nonce: ask.Nonce, From: "v-2"}, orderKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a)
	f.Add(b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, askErr := wire.OpenPeerAsk(raw, theirKey)
		_, answerErr := wire.OpenPeerAnswer(raw, theirKey, ask)
		if askErr == nil && answerErr == nil {
			t.Error("one message is both an ask and an answer")
		}
		wire.PeekPeerNonce(raw)
	})
}
