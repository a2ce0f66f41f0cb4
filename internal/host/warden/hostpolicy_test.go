package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/wire"
)

func TestTheHostsOwnPolicyIsTheLastWord(t *testing.T) {
	write := func(p *wire.OrderPayload) {
		p.Session.Level, p.Session.Account = wire.LevelWrite, "app"
	}
	for _, c := range []struct {
		name   string
		policy hostPolicy
		change func(*wire.OrderPayload)
	}{
		{"no write here", hostPolicy{NoWrite: true}, write},
		{"another account", hostPolicy{Accounts: []string{"deploy"}}, write},
		{"no root here", hostPolicy{NoRoot: true}, func(p *wire.OrderPayload) { write(p); p.Session.Sudo = true }},
		{"account root without the right", hostPolicy{}, func(p *wire.OrderPayload) { write(p); p.Session.Account = "root" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, n := ready(t, c.policy)
			p := l.payload(0)
			c.change(&p)
			_, err := n.order(l.envelope(n.judge, l.sign(l.entry(p, nil))))
			wantRule(t, err, RulePolicy)
		})
	}
}

func TestAHostCanDemandTheApproversOwnSignatures(t *testing.T) {
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromSigner(priv)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseApprover(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	if err != nil {
		t.Fatal(err)
	}
	policy := hostPolicy{keys: [][]byte{key}}
	request := []byte(`{"person":"p-ada00001","targets":[{"id":"h-00000001"}],"for_ms":600000}`)
	subject := SubjectHash("grant", request)
	sig, err := signer.Sign(rand.Reader, append([]byte("handrail-approve-v1\n"), subject[:]...))
	if err != nil {
		t.Fatal(err)
	}
	good := func() *wire.Authority {
		return &wire.Authority{Kind: "grant", Request: request, Signatures: []wire.Signature{
			{Person: "p-bob00001", Kind: "device", Credential: "d-1", PublicKey: key, Signature: ssh.Marshal(sig)}}}
	}
	for _, c := range []struct {
		name string
		auth func() *wire.Authority
		ok   bool
	}{
		{"signed", good, true},
		{"without any", func() *wire.Authority { return nil }, false},
		{"signed by the requester", func() *wire.Authority { a := good(); a.Signatures[0].Person = "p-ada00001"; return a }, false},
		{"for a request that was changed", func() *wire.Authority {
			a := good()
			a.Request = []byte(`{"person":"p-ada00001","targets":[{"id":"h-00000001"}],"root":true,"for_ms":600000}`)
			return a
		}, false},
		{"by one key under two names, where two are wanted", func() *wire.Authority {
			a := good()
			second := a.Signatures[0]
			second.Person = "p-eve00001"
			a.Signatures = append(a.Signatures, second)
			return a
		}, false},
		{"for another host", func() *wire.Authority {
			a := good()
			a.Request = []byte(`{"person":"p-ada00001","targets":[{"id":"h-00000002"}],"for_ms":600000}`)
			return a
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			policy := policy
			if strings.Contains(c.name, "two are wanted") {
				policy.Approvals = 2
			}
			l, n := ready(t, policy)
			p := l.payload(0)
			p.Session.Level, p.Session.Account, p.Authority = wire.LevelWrite, "app", c.auth()
			_, err := n.order(l.envelope(n.judge, l.sign(l.entry(p, nil))))
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantRule(t, err, RuleAuthority)
		})
	}
}

func TestAForwardedPortIsOneThatWasAgreedTo(t *testing.T) {
	r := request{Person: "p-ada00001", Forwards: []string{"127.0.0.1:5432"}, ForMS: 600_000}
	r.Targets = append(r.Targets, struct {
		ID string `json:"id"`
	}{"h-00000001"})
	p := wire.OrderPayload{Node: "h-00000001", Session: &wire.SessionSpec{Person: "p-ada00001", Kind: wire.SessionForward, Command: "127.0.0.1:5432", RemainingMS: 1}}
	if !r.covers(p) {
		t.Error("the port that was agreed to is refused")
	}
	if p.Session.Command = "127.0.0.1:5433"; r.covers(p) {
		t.Error("another port is let through")
	}
	if p.Session.Kind = wire.SessionShell; !r.covers(p) {
		t.Error("a shell is refused for its command's sake")
	}
}
