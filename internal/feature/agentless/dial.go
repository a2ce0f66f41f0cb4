package agentless

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

const (
	clientVersion = "SSH-2.0-handrail"
	// maxAsked is how many requests and channels a host may ask for in one
	// connection before we take it for one that means harm.
	maxAsked = 4096
)

// conn is one connection to a host whose key was the pinned one.
type conn struct {
	ssh.Conn
	raw  net.Conn
	once sync.Once
}

// Close ends the connection at once, whatever waits in it.
func (c *conn) Close() error {
	c.once.Do(func() { c.raw.Close(); _ = c.Conn.Close() })
	return nil
}

// algorithms are those by which a host proves a key of that kind.
func algorithms(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{key.Type()}
}

var errMismatch = errors.New("another host key")

// connect logs in to a host. The certificate is made once the connection
// stands, since it may name our end of it as the only source.
func (r *Reach) connect(ctx context.Context, h target.Host, account string, hop keyring.Hop) (*conn, error) {
	_, pinned, err := target.HostKey(h.SSHKey)
	if err != nil {
		return nil, err
	}
	raw, err := r.dial(ctx, h)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	hop.Source = sourceOf(h, raw.LocalAddr())
	signer, _, err := r.d.Ring.SignSSHHop(hop)
	if err != nil {
		raw.Close()
		return nil, err
	}
	var shown ssh.PublicKey
	_ = raw.SetDeadline(time.Now().Add(r.b.LoginTime))
	sc, channels, requests, err := ssh.NewClientConn(raw, h.SSHAddress, &ssh.ClientConfig{
		User: account, ClientVersion: clientVersion, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyAlgorithms: algorithms(pinned), BannerCallback: func(string) error { return nil },
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if shown = key; !bytes.Equal(key.Marshal(), pinned.Marshal()) {
				return errMismatch
			}
			return nil
		},
	})
	if err != nil {
		raw.Close()
		return nil, r.refused(h, account, pinned, shown, err)
	}
	_ = raw.SetDeadline(time.Time{})
	r.saw(h.ID, StateReached, "")
	c := &conn{Conn: sc, raw: raw}
	go c.refuse(channels, requests)
	go c.keepAlive(r.b.KeepAlive, r.b.Silence)
	return c, nil
}

func (r *Reach) dial(ctx context.Context, h target.Host) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.b.DialTime)
	defer cancel()
	raw, err := r.d.Dial(ctx, "tcp", h.SSHAddress)
	if err != nil {
		r.saw(h.ID, StateAway, err.Error())
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach %s at %s", h.Name, h.SSHAddress).WithHint("handrail host show %s", h.Name)
	}
	return raw, nil
}

// sourceOf is the networks from which a certificate counts.
func sourceOf(h target.Host, local net.Addr) string {
	switch h.SSHSource {
	case "":
		if ip, _, err := net.SplitHostPort(local.String()); err == nil {
			ip, _, _ = strings.Cut(ip, "%") // a zone is ours alone
			return ip
		}
		return ""
	case target.SourceAny:
		return ""
	}
	return h.SSHSource
}

// refused says why there is no login. A key that is not the pinned one is an
// entry and an alarm; so is a host that can prove no key of the pinned kind.
func (r *Reach) refused(h target.Host, account string, pinned, shown ssh.PublicKey, err error) error {
	var negotiation *ssh.AlgorithmNegotiationError
	other := shown != nil && !bytes.Equal(shown.Marshal(), pinned.Marshal())
	noKind := errors.As(err, &negotiation) && strings.Contains(err.Error(), "host key")
	switch {
	case other || noKind:
		what := "no key of the kind " + pinned.Type()
		if other {
			what = shown.Type() + " " + ssh.FingerprintSHA256(shown)
		}
		text := "its host key changed: pinned is " + ssh.FingerprintSHA256(pinned) + ", it shows " + what
		r.saw(h.ID, StateMismatch, text)
		r.alarm(h, ssh.FingerprintSHA256(pinned), what)
		return fault.New(fault.Denied, "cannot reach %s: %s. Somebody may stand between, or the host was set up anew; nothing was sent to it", h.Name, text).
			WithRule("pinned-host-key").
			WithHint("ask on its console, then: handrail host set %s --host-key \"$(cat /etc/ssh/ssh_host_ed25519_key.pub)\"", h.Name)
	case strings.Contains(err.Error(), "unable to authenticate"):
		r.saw(h.ID, StateRefused, "it does not take our certificate for "+account)
		return fault.New(fault.Denied, "cannot log in to %s as %s: the host does not take this installation's certificate", h.Name, account).
			WithHint("handrail host trust %s  # what to put there; behind address translation also: handrail host set %s --ssh-source any", h.Name, h.Name)
	}
	r.saw(h.ID, StateAway, err.Error())
	return fault.Wrap(fault.Unavailable, err, "cannot log in to %s at %s", h.Name, h.SSHAddress).WithHint("handrail host show %s", h.Name)
}

// refuse answers what a host asks of us: nothing that it could open back.
func (c *conn) refuse(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	for asked := 0; channels != nil || requests != nil; asked++ {
		select {
		case n, ok := <-channels:
			if !ok {
				channels = nil
				continue
			}
			_ = n.Reject(ssh.Prohibited, "handrail opens nothing for a host")
		case q, ok := <-requests:
			if !ok {
				requests = nil
				continue
			}
			if q.WantReply {
				_ = q.Reply(false, nil)
			}
		}
		if asked == maxAsked {
			c.Close()
		}
	}
}

// keepAlive ends a connection whose host answers nothing any more.
func (c *conn) keepAlive(every, silence time.Duration) {
	gone := make(chan struct{})
	go func() { _ = c.Wait(); close(gone) }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return
		case <-tick.C:
		}
		late := time.AfterFunc(silence, func() { c.Close() })
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			c.Close()
			return
		}
	}
}

// alarmed bounds the entries about a host's key.
type alarmed struct {
	at   time.Time
	left int
}

// alarmRest is how often a host with another key is an entry anew.
const alarmRest = time.Minute

type mismatchPayload struct {
	V       int    `json:"v"`
	Host    string `json:"host"`
	Address string `json:"address"`
	Pinned  string `json:"pinned"`
	Shown   string `json:"shown"`
	LeftOut int    `json:"left_out,omitempty"`
}

func (r *Reach) alarm(h target.Host, pinned, shown string) {
	r.d.Log.Error("a host shows another key than the pinned one", "host", h.ID, "pinned", pinned, "shown", shown)
	r.mu.Lock()
	last := r.alarms[h.ID]
	if time.Since(last.at) < alarmRest {
		last.left++
		r.alarms[h.ID] = last
		r.mu.Unlock()
		return
	}
	r.alarms[h.ID] = alarmed{at: time.Now()}
	r.mu.Unlock()
	r.record(ledger.Entry{Action: HostMismatched, Outcome: ledger.Denied, Subjects: []string{h.ID}, Target: h.Path(),
		Payload: mismatchPayload{V: 1, Host: h.ID, Address: h.SSHAddress, Pinned: pinned, Shown: shown, LeftOut: last.left}})
}

// record writes what has happened already.
func (r *Reach) record(e ledger.Entry) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := r.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return []ledger.Entry{e}, nil })
	if err != nil {
		r.d.Log.Error("an entry about a host could not be recorded", "target", e.Target, "action", string(e.Action), "error", err)
	}
}

// errLooked ends a handshake once the key was shown.
var errLooked = errors.New("looked")

// Look is the key that whoever answers at an address shows, for a person to
// compare. Nothing is sent to it but the handshake, and nothing is trusted.
func (r *Reach) Look(ctx context.Context, address string) (key ssh.PublicKey, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.b.DialTime)
	defer cancel()
	raw, err := r.d.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach %s", address)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	_ = raw.SetDeadline(time.Now().Add(r.b.LoginTime))
	_, _, _, err = ssh.NewClientConn(raw, address, &ssh.ClientConfig{
		User: "handrail", ClientVersion: clientVersion,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
		HostKeyCallback:   func(_ string, _ net.Addr, k ssh.PublicKey) error { key = k; return errLooked },
	})
	if key == nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot see the host key of %s", address)
	}
	return key, nil
}
