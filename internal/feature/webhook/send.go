package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Bounds of what is sent and read.
const (
	maxPayload  = 16 << 10 // of an entry, in what is sent
	maxAnswer   = 1 << 10  // what is read of an answer, to be polite
	maxHeaders  = 16 << 10
	maxFailure  = 200
	longestWait = 24 * time.Hour // that a receiver may ask for
)

// message is the body: the specification's type, timestamp and data.
type message struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Data      data   `json:"data"`
}

type data struct {
	Ledger string `json:"ledger"`
	Seq    int64  `json:"seq"`
	Hash   string `json:"hash"` // RFC 6962, of the entry below, byte for byte
	// Entry is the leaf: ids, times and outcomes.
	Entry json.RawMessage `json:"entry"`
	// Payload is what is sealed beside it, with names: only where that was agreed to.
	Payload json.RawMessage `json:"payload,omitempty"`
	// Without says why there is no payload where there might be one.
	Without string `json:"without,omitempty"`
}

// bodyOf is what a hook is sent of an entry.
func (x *Hooks) bodyOf(h Hook, r ledger.Recorded) ([]byte, error) {
	hash := ledger.HashOf(r.Leaf)
	m := message{Type: string(r.Parsed.Action), Timestamp: time.UnixMicro(r.Parsed.Time).UTC().Format("2006-01-02T15:04:05.000000Z"), Data: data{
		Ledger: x.d.Ledger, Seq: r.Seq, Hash: base64.StdEncoding.EncodeToString(hash[:]), Entry: r.Leaf,
	}}
	switch {
	case !h.Names:
	case len(r.Payload) == 0:
		m.Data.Without = "erased or let go"
	case len(r.Payload) > maxPayload:
		m.Data.Without = "too large: " + strconv.Itoa(len(r.Payload)) + " bytes"
	case !json.Valid(r.Payload):
		m.Data.Without = "not JSON"
	default:
		m.Data.Payload = r.Payload
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // the entry goes byte for byte
	err := e.Encode(m)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// newClient is a client for one hook: it follows nothing, knows no proxy, and
// looks at each address that it is about to dial.
func (x *Hooks) newClient(u *url.URL) *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second, Control: guard(ownName(u.Hostname()), x.d.Allow)}
	return &http.Client{
		Timeout:       x.b.Answer,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: &tls.Config{RootCAs: x.d.Roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: maxHeaders, MaxIdleConns: 1, MaxConnsPerHost: 1, IdleConnTimeout: 30 * time.Second,
			DisableCompression: true, // nothing of an answer is wanted, so nothing is unpacked
		},
	}
}

// result is how one attempt ended.
type result struct {
	status int
	why    string        // empty: it was taken
	gone   bool          // the receiver wants nothing more
	wait   time.Duration // that the receiver asked for
}

// send makes one attempt.
func (x *Hooks) send(ctx context.Context, c *http.Client, h Hook, id string, body []byte) (result, error) {
	now := time.Now()
	secrets, err := x.secrets(h, now)
	if err != nil {
		return result{}, err
	}
	var signatures []string
	for _, s := range secrets {
		signatures = append(signatures, sign(h.Scheme, s, id, now, body))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return result{}, fault.Wrap(fault.Internal, err, "cannot send to webhook %s", h.Name)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "handrail-webhook")
	// As the specification writes them: a receiver may compare bytes.
	req.Header["webhook-id"] = []string{id}
	req.Header["webhook-timestamp"] = []string{strconv.FormatInt(now.Unix(), 10)}
	req.Header["webhook-signature"] = []string{strings.Join(signatures, " ")}
	answer, err := c.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return result{}, ctx.Err()
		}
		return result{why: failureOf(err)}, nil
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer) // so that the connection may be used again; what it says is not wanted
	r := result{status: answer.StatusCode, gone: answer.StatusCode == http.StatusGone}
	switch {
	case answer.StatusCode >= 200 && answer.StatusCode <= 299:
		return r, nil
	case answer.StatusCode >= 300 && answer.StatusCode <= 399:
		r.why = fmt.Sprintf("answered %d: redirects are not followed", answer.StatusCode)
	default:
		r.why = fmt.Sprintf("answered %d", answer.StatusCode)
	}
	r.wait = retryAfter(answer.Header.Get("Retry-After"), now)
	return r, nil
}

// retryAfter reads how long a receiver asks to be left alone, within reason.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, longestWait)
	}
	if t, err := http.ParseTime(text); err == nil {
		return min(max(t.Sub(now), 0), longestWait)
	}
	return 0
}

// failureOf is why there was no answer, in a line. What the other side said may
// be quoted in it, so it is made harmless.
func failureOf(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return "did not answer in time"
		}
		err = u.Err // without the address once more
	}
	var refusal *fault.Error
	if errors.As(err, &refusal) {
		err = refusal
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, err.Error())
	if cut := []rune(text); len(cut) > maxFailure {
		text = string(cut[:maxFailure-1]) + "…"
	}
	return text
}
