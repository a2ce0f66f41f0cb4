package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// secretBytes is the length of every secret handed out: at 256 random bits a
// plain hash is as good as a slow one, and guessing is hopeless.
const secretBytes = 32

const bearerPrefix = "hrl_"

// The kinds of secret; a hash of one kind never equals one of another.
const (
	kindToken  = "login-token"
	kindBearer = "bearer"
	kindProof  = "proof"
)

func hashOf(kind, secret string) string {
	sum := sha256.Sum256([]byte("handrail-" + kind + "-v1\n" + secret))
	return hex.EncodeToString(sum[:])
}

func sameHash(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func newSecret(random []byte) string { return base64.RawURLEncoding.EncodeToString(random) }

// validSecret says whether text could be a secret that newSecret made. What
// could not is refused before the database is asked.
func validSecret(text string) bool {
	if len(text) != base64.RawURLEncoding.EncodedLen(secretBytes) {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return err == nil && len(b) == secretBytes
}

func validBearer(text string) bool {
	rest, ok := strings.CutPrefix(text, bearerPrefix)
	return ok && validSecret(rest)
}

// ticketFor is how long somebody has between the two halves of a ceremony.
const ticketFor = 5 * time.Minute

// ticket is what a ceremony must remember between its halves. It travels
// sealed with the client, so that strangers who begin ceremonies and never
// finish them fill nothing here. That it is used once is kept by the unique
// proof of the login it opens.
type ticket struct {
	Expires int64           `json:"expires"`
	State   json.RawMessage `json:"state"`
}

func ticketContext(purpose string) []byte { return []byte("handrail-ticket-v1\n" + purpose) }

func (p *People) sealTicket(purpose string, state any) ([]byte, error) {
	raw, err := json.Marshal(state)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot begin a ceremony")
	}
	text, err := json.Marshal(ticket{Expires: micros(time.Now().Add(ticketFor)), State: raw})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot begin a ceremony")
	}
	return p.ring.Subjects().Seal(ledger.System, text, ticketContext(purpose))
}

func (p *People) openTicket(purpose string, sealed []byte, state any) error {
	refused := fault.New(fault.Unauthenticated, "cannot finish: this was begun too long ago, or somewhere else").WithHint("begin again")
	if len(sealed) > 16<<10 {
		return refused
	}
	text, err := p.ring.Subjects().Open(ledger.System, sealed, ticketContext(purpose))
	if err != nil {
		return refused
	}
	var t ticket
	if err := json.Unmarshal(text, &t); err != nil || micros(time.Now()) >= t.Expires {
		return refused
	}
	if err := json.Unmarshal(t.State, state); err != nil {
		return refused
	}
	return nil
}
