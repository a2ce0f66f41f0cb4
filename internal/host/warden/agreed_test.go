package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/wire"
)

func TestAHostCanDemandToSeeWhoAgreedToACoreDump(t *testing.T) {
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseApprover(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	if err != nil {
		t.Fatal(err)
	}
	box, _, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	h := hostPolicy{keys: [][]byte{key}}
	it := wire.ProcessID{PID: 7, Started: 99}
	signed := func(kind, person string, r wire.AgreedLook) *wire.Authority {
		request, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		subject := SubjectHash(kind, request)
		sig, err := signer.Sign(rand.Reader, append([]byte("handrail-approve-v1\n"), subject[:]...))
		if err != nil {
			t.Fatal(err)
		}
		return &wire.Authority{Kind: kind, Request: request, Signatures: []wire.Signature{
			{Person: person, Kind: "device", Credential: "d-1", PublicKey: key, Signature: ssh.Marshal(sig)}}}
	}
	dump := wire.AgreedLook{Person: "p-ada00001", Host: "h-00000001", Process: it, Most: 1000, PauseMS: 500}
	value := wire.AgreedLook{Person: "p-ada00001", Host: "h-00000001", Process: it, Name: "DB_PASSWORD", Key: box}
	changed := func(r wire.AgreedLook, f func(*wire.AgreedLook)) wire.AgreedLook { f(&r); return r }
	for _, c := range []struct {
		name   string
		unmask bool
		with   *wire.Authority
		ok     bool
	}{
		{"a dump that was agreed to", false, signed(kindCore, "p-bob00001", dump), true},
		{"a value that was agreed to", true, signed(kindUnmask, "p-bob00001", value), true},
		{"without anybody", false, nil, false},
		{"agreed to by who asks", false, signed(kindCore, "p-ada00001", dump), false},
		{"agreed to as another kind", false, signed("grant", "p-bob00001", dump), false},
		{"a value's agreement for a dump", false, signed(kindUnmask, "p-bob00001", value), false},
		{"a dump's agreement for a value", true, signed(kindCore, "p-bob00001", dump), false},
		{"of another process", false, signed(kindCore, "p-bob00001", changed(dump, func(r *wire.AgreedLook) { r.Process.Started++ })), false},
		{"of another host", false, signed(kindCore, "p-bob00001", changed(dump, func(r *wire.AgreedLook) { r.Host = "h-00000002" })), false},
		{"for another person", false, signed(kindCore, "p-bob00001", changed(dump, func(r *wire.AgreedLook) { r.Person = "p-eve00001" })), false},
		{"of less", false, signed(kindCore, "p-bob00001", changed(dump, func(r *wire.AgreedLook) { r.Most-- })), false},
		{"with a shorter pause", false, signed(kindCore, "p-bob00001", changed(dump, func(r *wire.AgreedLook) { r.PauseMS-- })), false},
		{"of another variable", true, signed(kindUnmask, "p-bob00001", changed(value, func(r *wire.AgreedLook) { r.Name = "PATH" })), false},
		{"for another reader", true, signed(kindUnmask, "p-bob00001", changed(value, func(r *wire.AgreedLook) { r.Key = other })), false},
	} {
		p := wire.OrderPayload{Kind: wire.KindInspect, Order: "o-1", Node: "h-00000001", Authority: c.with,
			Inspect: &wire.InspectSpec{ID: "n-1", Person: "p-ada00001", What: wire.InspectCore, PauseMS: 500, Core: &wire.CoreSpec{Process: it, Most: 1000, Key: box}}}
		if c.unmask {
			p.Inspect = &wire.InspectSpec{ID: "n-1", Person: "p-ada00001", What: wire.InspectEnv, Unmask: &wire.UnmaskSpec{Process: it, Name: "DB_PASSWORD", Key: box}}
		}
		err := h.check(p)
		var r *refusal
		if c.ok != (err == nil) || err != nil && (!errors.As(err, &r) || r.rule != RuleAuthority) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := h.check(wire.OrderPayload{Kind: wire.KindInspect, Inspect: &wire.InspectSpec{What: wire.InspectCore, Core: &wire.CoreSpec{}}}); err != nil {
		t.Errorf("the question of what a dump would be needs nobody: %v", err)
	}
}
