package oidc

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// ticketFor is how long somebody has at the provider.
const ticketFor = 10 * time.Minute

const maxTicket = 16 << 10

// ticket is a question that was asked of the provider. It travels sealed with
// who asked: in a cookie of their browser, or in the memory of their command.
type ticket struct {
	Flow       string `json:"flow"` // code or device
	Issuer     string `json:"issuer"`
	Client     string `json:"client"`
	State      string `json:"state,omitempty"`
	Nonce      string `json:"nonce,omitempty"`
	Verifier   string `json:"verifier,omitempty"` // of PKCE; nobody but us ever holds it in the clear
	Redirect   string `json:"redirect,omitempty"`
	Device     string `json:"device,omitempty"` // hash of the key that the login is for
	DeviceCode string `json:"device_code,omitempty"`
	Interval   int64  `json:"interval,omitempty"` // seconds between polls
	Expires    int64  `json:"expires"`
}

// The flows.
const (
	flowCode   = "code"
	flowDevice = "device"
)

var ticketContext = []byte("handrail-oidc-ticket-v1\n")

func (p *Provider) seal(t ticket) (string, error) {
	t.Issuer, t.Client = p.conf.Issuer, p.conf.ClientID
	text, err := json.Marshal(t)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot begin a login")
	}
	sealed, err := p.seals.Seal(ledger.System, text, ticketContext)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

func stale() *fault.Error {
	return fault.New(fault.Unauthenticated, "cannot finish this login: it was begun too long ago, or somewhere else").WithHint("begin again")
}

// open reads a ticket of that flow, for that device key. One that was sealed
// for another provider is worth nothing: an answer must come from whom we asked.
func (p *Provider) open(flow, sealed string, key []byte) (ticket, error) {
	if len(sealed) > maxTicket {
		return ticket{}, stale()
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil {
		return ticket{}, stale()
	}
	text, err := p.seals.Open(ledger.System, raw, ticketContext)
	if err != nil {
		return ticket{}, stale()
	}
	var t ticket
	if json.Unmarshal(text, &t) != nil || t.Flow != flow || t.Issuer != p.conf.Issuer || t.Client != p.conf.ClientID ||
		p.now().Unix() >= t.Expires || t.Device != deviceOf(key) {
		return ticket{}, stale()
	}
	return t, nil
}
