package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/json"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	peerAskPrefix    = "handrail-peer-ask-v1\n"
	peerAnswerPrefix = "handrail-peer-answer-v1\n"
	// MaxPeer bounds one message between servers.
	MaxPeer = 512 << 10
)

// PeerAsk is what one server asks another over a message bus that may belong
// to somebody else. The signature is the installation's order key, which every
// server has; what carries it can lose and delay it, and nothing else.
type PeerAsk struct {
	V      int    `json:"v"`
	Nonce  []byte `json:"nonce"`
	From   string `json:"from"` // v-…
	To     string `json:"to"`
	Issued int64  `json:"issued"` // µs
	What   string `json:"what"`
	Body   []byte `json:"body,omitempty"`
}

// PeerAnswer is to one ask.
type PeerAnswer struct {
	V     int    `json:"v"`
	Nonce []byte `json:"nonce"`
	From  string `json:"from"`
	Body  []byte `json:"body,omitempty"`
	Kind  string `json:"kind,omitempty"` // of a fault
	Error string `json:"error,omitempty"`
}

// SignPeerAsk signs an ask.
func SignPeerAsk(a PeerAsk, orderKey crypto.Signer) ([]byte, error) {
	return signPeer(a, peerAskPrefix, orderKey)
}

// SignPeerAnswer signs an answer.
func SignPeerAnswer(a PeerAnswer, orderKey crypto.Signer) ([]byte, error) {
	return signPeer(a, peerAnswerPrefix, orderKey)
}

func signPeer(v any, prefix string, orderKey crypto.Signer) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode a message to a server")
	}
	if len(body)+ed25519.SignatureSize+4 > MaxPeer {
		return nil, fault.New(fault.Exhausted, "cannot send a message of %d bytes to a server", len(body))
	}
	sig, err := sign(orderKey, prefix, body)
	if err != nil {
		return nil, err
	}
	return packSigned(body, sig), nil
}

// OpenPeerAsk checks an ask's signature and form.
func OpenPeerAsk(b []byte, orderKey ed25519.PublicKey) (a PeerAsk, err error) {
	if err := openPeer(b, peerAskPrefix, orderKey, &a); err != nil {
		return PeerAsk{}, err
	}
	if a.V != 1 || len(a.Nonce) != NonceSize || !ValidID('v', a.From) || !ValidID('v', a.To) || a.What == "" || len(a.What) > 32 {
		return PeerAsk{}, fault.New(fault.Invalid, "cannot read a server's message: bad form")
	}
	return a, nil
}

// OpenPeerAnswer checks an answer's signature, and that it is to this ask.
func OpenPeerAnswer(b []byte, orderKey ed25519.PublicKey, ask PeerAsk) (a PeerAnswer, err error) {
	if err := openPeer(b, peerAnswerPrefix, orderKey, &a); err != nil {
		return PeerAnswer{}, err
	}
	if a.V != 1 || !bytes.Equal(a.Nonce, ask.Nonce) || a.From != ask.To {
		return PeerAnswer{}, fault.New(fault.Denied, "cannot accept a server's answer: it is to another question")
	}
	return a, nil
}

func openPeer(b []byte, prefix string, orderKey ed25519.PublicKey, v any) error {
	body, sig, err := unpackSigned(b, MaxPeer)
	if err != nil {
		return err
	}
	if !verify(orderKey, prefix, body, sig) {
		return fault.New(fault.Denied, "cannot accept a server's message: the order key did not sign it")
	}
	if err := strict(body, v); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read a server's message")
	}
	return nil
}

// PeerHello is the first line of a connection from one server to another.
type PeerHello struct {
	V    int    `json:"v"`
	Use  string `json:"use"`
	Host string `json:"host,omitempty"` // PeerNode: whose node the stream is for
	Bulk bool   `json:"bulk,omitempty"`
	To   string `json:"to,omitempty"` // PeerRelay: which server the connection is carried to
}

// The uses of a connection between servers.
const (
	PeerNode = "node" // a stream to a node that is connected there
	PeerAPI  = "api"  // the API, for people of this installation
	// PeerRelay is a connection to another server still: what follows the answer
	// goes to its address and comes from there, unread.
	PeerRelay = "relay"
	PeerTalk  = "talk" // one PeerAsk and its PeerAnswer
)

// PeerALPN is the protocol between servers.
const PeerALPN = "handrail-server/1"

// PeekPeerNonce is the nonce that an answer claims to be for, before anything
// in it is believed.
func PeekPeerNonce(b []byte) (string, bool) {
	body, _, err := unpackSigned(b, MaxPeer)
	if err != nil {
		return "", false
	}
	var a struct {
		Nonce []byte `json:"nonce"`
	}
	ok := json.Unmarshal(body, &a) == nil && len(a.Nonce) == NonceSize
	return string(a.Nonce), ok
}
