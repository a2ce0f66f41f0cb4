package identity

import (
	"context"
	"crypto/rand"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// A code lets in a stock ssh client that has no certificate: ssh shows the
// code, a person who is logged in types it into the page, sees what it is for,
// and confirms. It lives in this process only, beside the connection that
// waits, and is worth one read connection.

const (
	codeFor       = 5 * time.Minute
	codesAtOnce   = 512 // in all
	codesASource  = 4   // waiting at once from one address
	guessesAMin   = 10  // wrong codes a person and minute
	guessersKept  = 1024
	codeAlphabet  = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // Crockford: nothing to mistake
	codeRunes     = 8
	levelRead     = "read"
	codeSeparator = "-"
)

// CodeRequest is a stock ssh client that has no certificate.
type CodeRequest struct {
	Source string // address
	Target string // typed path or name of the host
	Level  string // read; a code is worth nothing more
	Key    ssh.PublicKey
}

// Code is what the page shows of a waiting client.
type Code struct {
	Source, Target, Level, Fingerprint string
	Expires                            time.Time
}

type waiting struct {
	code  Code
	ready chan Principal // buffered: confirming never waits for the client
}

type codes struct {
	mu      sync.Mutex
	waiting map[string]*waiting
	wrong   map[string]*guesses // by person
}

type guesses struct {
	since time.Time
	count int
}

// NewCode makes a code. wait returns the person who confirmed it, or why
// nobody did; the caller must call it, or cancel ctx, which frees the code.
func (p *People) NewCode(ctx context.Context, r CodeRequest) (shown string, wait func(context.Context) (Principal, error), err error) {
	if r.Level != levelRead {
		return "", nil, fault.New(fault.Denied, "cannot open a %s session with a code: a code is worth one read connection", label(r.Level, 16)).
			WithRule("codes-read-only").WithHint("handrail login")
	}
	w := &waiting{ready: make(chan Principal, 1), code: Code{
		Source: bare(r.Source), Target: label(r.Target, 128), Level: r.Level, Expires: time.Now().Add(codeFor),
	}}
	if r.Key != nil {
		w.code.Fingerprint = ssh.FingerprintSHA256(r.Key)
	}
	code, err := p.codes.add(w)
	if err != nil {
		return "", nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.codes.drop(code) })
	return code[:codeRunes/2] + codeSeparator + code[codeRunes/2:], func(inner context.Context) (Principal, error) {
		defer stop()
		defer p.codes.drop(code)
		timer := time.NewTimer(time.Until(w.code.Expires))
		defer timer.Stop()
		select {
		case who := <-w.ready:
			return who, nil
		case <-timer.C:
			return Principal{}, fault.New(fault.Unauthenticated, "cannot let you in: nobody confirmed the code in %v", codeFor).WithHint("connect again, or: handrail login")
		case <-inner.Done():
		case <-ctx.Done():
		}
		return Principal{}, fault.New(fault.Unavailable, "cannot let you in: the connection went away")
	}, nil
}

func (c *codes) add(w *waiting) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.waiting == nil {
		c.waiting = map[string]*waiting{}
	}
	same := 0
	for code, other := range c.waiting {
		if now.After(other.code.Expires) {
			delete(c.waiting, code)
		} else if network(other.code.Source) == network(w.code.Source) {
			same++
		}
	}
	if same >= codesASource || len(c.waiting) >= codesAtOnce {
		return "", fault.New(fault.Exhausted, "cannot make a code: too many clients wait for one").WithHint("handrail login, or try again in some minutes")
	}
	for {
		raw := make([]byte, codeRunes)
		_, _ = rand.Read(raw) // never fails
		for i, b := range raw {
			raw[i] = codeAlphabet[b%32]
		}
		if code := string(raw); c.waiting[code] == nil {
			c.waiting[code] = w
			return code, nil
		}
	}
}

// network is what one stranger has of addresses: one of IPv4, 2^64 of IPv6.
func network(source string) string {
	addr, err := netip.ParseAddr(source)
	if err != nil || addr.Unmap().Is4() {
		return source
	}
	prefix, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return source
	}
	return prefix.String()
}

func (c *codes) drop(code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, code)
}

// find looks a code up for a person; take removes it. Wrong codes are counted
// for the person who tries them.
func (c *codes) find(person, typed string, take bool) (*waiting, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	g := c.guesser(person, now)
	if g.count >= guessesAMin {
		return nil, fault.New(fault.Exhausted, "cannot look at more codes: %d wrong ones in a minute", g.count).WithHint("wait a minute")
	}
	code, ok := normalCode(typed)
	w := c.waiting[code]
	if !ok || w == nil || now.After(w.code.Expires) {
		g.count++
		return nil, fault.New(fault.NotFound, "cannot find this code: it is wrong, used, or older than %v", codeFor).
			WithHint("type what ssh shows; connect again for another")
	}
	if take {
		delete(c.waiting, code)
	}
	return w, nil
}

func (c *codes) guesser(person string, now time.Time) *guesses {
	if c.wrong == nil {
		c.wrong = map[string]*guesses{}
	}
	g := c.wrong[person]
	if g == nil || now.Sub(g.since) >= time.Minute {
		if g == nil && len(c.wrong) >= guessersKept {
			clear(c.wrong)
		}
		g = &guesses{since: now}
		c.wrong[person] = g
	}
	return g
}

// normalCode forgives case, spaces, the dash, and letters that look like digits.
func normalCode(typed string) (string, bool) {
	if len(typed) > 64 {
		return "", false
	}
	code := strings.NewReplacer(" ", "", "-", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(typed))
	if len(code) != codeRunes {
		return "", false
	}
	for _, r := range code {
		if !strings.ContainsRune(codeAlphabet, r) {
			return "", false
		}
	}
	return code, true
}

// ShowCode returns what a code is for, so that a person sees whom they let in.
func (p *People) ShowCode(_ context.Context, by Principal, code string) (Code, error) {
	if err := mayConfirm(by); err != nil {
		return Code{}, err
	}
	w, err := p.codes.find(by.ID, code, false)
	if err != nil {
		return Code{}, err
	}
	return w.code, nil
}

func mayConfirm(by Principal) error {
	if by.Kind != KindPerson || by.Login == "" || by.ReadOnly {
		return fault.New(fault.Denied, "cannot confirm a code: only a logged-in person can").WithHint("handrail login")
	}
	return nil
}

// ConfirmCode ties the waiting client to the person, once, after the ledger
// has it.
func (p *People) ConfirmCode(ctx context.Context, by Principal, code string) error {
	if err := mayConfirm(by); err != nil {
		return err
	}
	w, err := p.codes.find(by.ID, code, true)
	if err != nil {
		return err
	}
	var who Principal
	err = p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) {
		person, err := byID(tx, by.ID)
		if err != nil {
			return nil, err
		}
		if err := p.admit(person); err != nil {
			return nil, err
		}
		who = person.Principal()
		who.Login, who.Via, who.Source, who.ReadOnly = by.Login, ViaCode, w.code.Source, true
		return []ledger.Entry{{
			Action: CodeConfirmed, Subjects: []string{by.ID}, Payload: CodePayload{
				V: 1, Source: w.code.Source, Target: w.code.Target, Level: w.code.Level, Fingerprint: w.code.Fingerprint,
			},
		}}, nil
	})
	if err != nil {
		return err
	}
	w.ready <- who
	return nil
}
