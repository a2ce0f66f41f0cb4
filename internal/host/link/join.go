package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// JoinOptions say how to join.
type JoinOptions struct {
	Hostname  string   // "": the machine's own
	UID, GID  int      // owner of the folder's files, where this process may say
	Addresses []string // further server addresses, tried in order after the token's
	Witnesses []byte   // C2SP tlog-policy that this host demands of each order; nil demands none
	Dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

// Joined is what a join brings; the warden's pin is made of it.
type Joined struct {
	Node, Name string
	RootHash   string
	Bundle     []byte // signed trust bundle
	Address    string
}

const (
	joinTimeout = 30 * time.Second
	maxReply    = 1 << 20
)

// Join makes a key on this host, exchanges the token for a certificate, and
// writes both into dir. The server is known by the root key hash in the token;
// nothing is trusted on first use.
func Join(ctx context.Context, token, dir string, o JoinOptions) (Joined, error) {
	if IsJoined(dir) {
		return Joined{}, fault.New(fault.Conflict, "cannot join: %s belongs to an installation already", dir).
			WithHint("to leave it, stop handrail and remove %s", dir)
	}
	t, err := ledger.ParseToken(strings.TrimSpace(token))
	if err != nil {
		return Joined{}, err
	}
	if o.Hostname == "" {
		if o.Hostname, err = os.Hostname(); err != nil {
			return Joined{}, fault.Wrap(fault.Unavailable, err, "cannot join: the machine has no name")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	j := joiner{token: token, t: t, o: o, dir: dir}
	for _, address := range append([]string{t.Address}, o.Addresses...) {
		if j.address, err = hostPort(address); err != nil {
			return Joined{}, err
		}
		var out Joined
		if out, err = j.try(ctx); err == nil || fault.KindOf(err) != fault.Unavailable {
			return out, err
		}
	}
	return Joined{}, err
}

// hostPort takes an address with or without a scheme.
func hostPort(s string) (string, error) {
	for _, scheme := range []string{"https://", "http://"} {
		s = strings.TrimPrefix(s, scheme)
	}
	s = strings.TrimSuffix(s, "/")
	if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
		return "", fault.New(fault.Invalid, "cannot use address %q: it is not HOST:PORT", s)
	}
	return s, nil
}

type joiner struct {
	token, dir, address string
	t                   ledger.Token
	o                   JoinOptions
}

func (j joiner) try(ctx context.Context) (Joined, error) {
	bundle, signed, err := j.trust(ctx)
	if err != nil {
		return Joined{}, err
	}
	key, csr, err := newKey(j.o.Hostname)
	if err != nil {
		return Joined{}, err
	}
	roots, err := pool(bundle)
	if err != nil {
		return Joined{}, err
	}
	var reply struct {
		Host        string `json:"host"`
		Name        string `json:"name"`
		Certificate []byte `json:"certificate"`
		Bundle      []byte `json:"bundle"`
		Address     string `json:"address"`
	}
	ask := map[string]any{"token": j.token, "hostname": j.o.Hostname, "csr": csr}
	verified := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName}
	if err := j.post(ctx, verified, "/handrail.v1.Hosts/Join", ask, &reply); err != nil {
		return Joined{}, err
	}
	if !wire.ValidID('h', reply.Host) {
		return Joined{}, fault.New(fault.Internal, "cannot join: the server answered with host id %q", reply.Host)
	}
	if err := checkCertificate(reply.Certificate, key, roots, reply.Host); err != nil {
		return Joined{}, err
	}
	if newer, err := ledger.OpenBundle(reply.Bundle, j.t.RootHash); err == nil && newer.Version >= bundle.Version {
		signed = reply.Bundle
	}
	out := Joined{Node: reply.Host, Name: reply.Name, RootHash: j.t.RootHash, Bundle: signed, Address: j.address}
	return out, j.store(out, key, reply.Certificate, reply.Address)
}

// trust fetches the trust bundle. This one connection is not verified, because
// what verifies is what it brings: a bundle signed by the root key whose hash
// the token carries. Nothing secret is sent over it.
func (j joiner) trust(ctx context.Context) (ledger.Bundle, []byte, error) {
	var reply struct {
		Bundle []byte `json:"bundle"`
	}
	blind := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ServerName: serverName,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			return nil
		}}
	if err := j.post(ctx, blind, "/handrail.v1.Logins/Trust", map[string]any{}, &reply); err != nil {
		return ledger.Bundle{}, nil, err
	}
	b, err := ledger.OpenBundle(reply.Bundle, j.t.RootHash)
	if err != nil {
		return b, nil, fault.Wrap(fault.Denied, err, "cannot trust the server at %s", j.address).
			WithHint("ask for a new token; if it happens again, somebody stands between this host and the server")
	}
	return b, reply.Bundle, nil
}

// connectKinds are the Connect codes by name.
var connectKinds = map[string]fault.Kind{
	"invalid_argument": fault.Invalid, "unauthenticated": fault.Unauthenticated, "permission_denied": fault.Denied,
	"failed_precondition": fault.NeedsApproval, "not_found": fault.NotFound, "aborted": fault.Conflict,
	"resource_exhausted": fault.Exhausted, "unavailable": fault.Unavailable, "data_loss": fault.Partial,
}

// post calls one method of the API in its JSON form.
func (j joiner) post(ctx context.Context, c *tls.Config, path string, ask, reply any) error {
	body, err := json.Marshal(ask)
	if err != nil {
		return err
	}
	dial := j.o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	tr := &http.Transport{TLSClientConfig: c, DialContext: dial, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+j.address+path, bytes.NewReader(body))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot use address %q", j.address)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connect-Protocol-Version", "1")
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot reach the server at %s", j.address)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot hear the server at %s", j.address)
	}
	if res.StatusCode != http.StatusOK {
		var e struct {
			Code, Message string
			Details       []struct{ Debug struct{ Hint string } }
		}
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			return fault.New(fault.Unavailable, "cannot join through %s: it answered %s", j.address, res.Status)
		}
		f := fault.New(connectKinds[e.Code], "%s", e.Message)
		for _, d := range e.Details {
			if d.Debug.Hint != "" {
				f = f.WithHint("%s", d.Debug.Hint)
			}
		}
		return f
	}
	if err := json.Unmarshal(b, reply); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot hear the server at %s", j.address)
	}
	return nil
}

// store writes the identity; node.json comes last, since it says that all is there.
func (j joiner) store(out Joined, key *ecdsa.PrivateKey, der []byte, advertised string) error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make folder %s", j.dir)
	}
	id := &identity{V: 1, Host: out.Node, Name: out.Name, RootHash: out.RootHash, Bundle: out.Bundle, dir: j.dir, Addresses: []string{j.address}}
	for _, a := range append([]string{advertised}, j.o.Addresses...) {
		if hp, err := hostPort(a); err == nil && hp != j.address {
			id.Addresses = append(id.Addresses, hp)
		}
	}
	err := id.keep(key, der)
	if err == nil {
		err = id.save()
	}
	if err == nil && os.Geteuid() == 0 {
		for _, name := range []string{"", pairName, infoName} {
			if cerr := os.Lchown(filepath.Join(j.dir, name), j.o.UID, j.o.GID); cerr != nil {
				err = cerr
			}
		}
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep what the join brought in %s", j.dir).WithHint("ask for another token: this one is used up")
	}
	return nil
}
