package wire

import (
	"encoding/json"
	"regexp"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Order kinds.
const (
	KindSessionStart  = "session.start"
	KindSessionResume = "session.resume"
	// KindDrill lets one person use a voucher as if the lease were lost:
	// session.id names the drill, with person and remaining_ms.
	KindDrill = "voucher.drill"
)

// MaxDrill is the longest drill, in milliseconds.
const MaxDrill = 15 * 60_000

// Levels of a session.
const (
	LevelRead  = "read"
	LevelWrite = "write"
)

// Kinds of session.
const (
	SessionShell   = "shell"
	SessionExec    = "exec"
	SessionSFTP    = "sftp"
	SessionForward = "forward" // write only: the command is the destination, see ForwardDestination
)

// Floors: how much of the read-only sandbox a host can keep.
const (
	FloorFull     = "full"
	FloorReduced  = "reduced"
	FloorBrokered = "brokered"
	// FloorAccount is what a host without a node has: an account that is not
	// root's, and no sandbox. The server enforces it; no node is ever asked for it.
	FloorAccount = "account"
)

// MaxOrderAge is the longest that an order may be valid, in milliseconds of
// the server's clock.
const MaxOrderAge = 60_000

// OrderPayload is what an order commands. Its JSON is the ledger entry's
// payload byte for byte. Unknown fields are refused.
type OrderPayload struct {
	V         int          `json:"v"`     // 1
	Order     string       `json:"order"` // "o-…", chosen by the server, never used twice
	Kind      string       `json:"kind"`
	Node      string       `json:"node"`     // host id
	Issued    int64        `json:"issued"`   // µs, server clock
	ValidMS   int64        `json:"valid_ms"` // ≤ MaxOrderAge
	Epochs    Epochs       `json:"epochs"`
	Authority *Authority   `json:"authority,omitempty"` // who asked and who agreed; needed for write where the host's policy says so
	Need      []string     `json:"need,omitempty"`      // features that the node must understand
	Session   *SessionSpec `json:"session,omitempty"`   // session.start: all; session.resume: id only; voucher.drill: id, person, remaining_ms
	Inspect   *InspectSpec `json:"inspect,omitempty"`   // inspect.run
}

// SessionID is the session that the order is about; a brokered read is of none.
func (p OrderPayload) SessionID() string {
	if p.Session == nil {
		return ""
	}
	return p.Session.ID
}

// Actor is who asked for what begins with this order; "" where nothing begins.
func (p OrderPayload) Actor() string {
	switch p.Kind {
	case KindSessionStart:
		return p.Session.Person
	case KindInspect:
		return p.Inspect.Person
	}
	return ""
}

// RemainingMS is how long what the order starts may take.
func (p OrderPayload) RemainingMS() int64 {
	if p.Inspect != nil {
		return p.Inspect.TimeMS
	}
	return p.Session.RemainingMS
}

// Epochs fence an order: a node that has seen a higher number refuses it.
type Epochs struct {
	Person map[string]int64 `json:"person"` // person id → epoch, for requester and approvers
	Lock   int64            `json:"lock"`
	Policy int64            `json:"policy"`
}

// Authority carries the requester's and approvers' own signatures.
type Authority struct {
	Kind       string      `json:"kind,omitempty"` // approval kind, "grant"
	Request    []byte      `json:"request"`        // exact request bytes (base64 in JSON)
	Signatures []Signature `json:"signatures"`
}

// Signature is one person's signature over the approval's subject hash.
type Signature struct {
	Person            string `json:"person"`
	Role              string `json:"role,omitempty"` // requester, approver
	Kind              string `json:"kind"`           // device (SSH signature), passkey (WebAuthn assertion)
	Credential        string `json:"credential"`
	PublicKey         []byte `json:"public_key"` // device: SSH wire format; passkey: PKIX DER
	Signature         []byte `json:"signature"`  // device: ssh.Marshal(*ssh.Signature); passkey: raw
	AuthenticatorData []byte `json:"authenticator_data,omitempty"`
	ClientData        []byte `json:"client_data,omitempty"`
}

// SessionSpec says exactly what session to start.
type SessionSpec struct {
	ID            string            `json:"id"` // s-…
	Person        string            `json:"person,omitempty"`
	PersonName    string            `json:"person_name,omitempty"`
	Level         string            `json:"level,omitempty"`
	Kind          string            `json:"kind,omitempty"`
	Account       string            `json:"account,omitempty"` // write: the named account
	Sudo          bool              `json:"sudo,omitempty"`
	Root          bool              `json:"root,omitempty"`
	Command       string            `json:"command,omitempty"`
	PTY           bool              `json:"pty,omitempty"`
	Term          string            `json:"term,omitempty"`
	Cols          uint16            `json:"cols,omitempty"`
	Rows          uint16            `json:"rows,omitempty"`
	Env           map[string]string `json:"env,omitempty"`
	Environment   string            `json:"environment,omitempty"`
	Scope         string            `json:"scope,omitempty"`
	HostName      string            `json:"host_name,omitempty"`
	RemainingMS   int64             `json:"remaining_ms,omitempty"`
	Grant         string            `json:"grant,omitempty"`
	BreakGlass    bool              `json:"break_glass,omitempty"`
	BuddyRequired bool              `json:"buddy_required,omitempty"` // the gateway pauses the session when the buddy leaves
	Banner        []string          `json:"banner,omitempty"`
	Prompt        string            `json:"prompt,omitempty"`
	Groups        []string          `json:"groups,omitempty"`
	Secrets       []string          `json:"secrets,omitempty"`
	LeastFloor    string            `json:"least_floor,omitempty"`
	Limits        Limits            `json:"limits,omitzero"`
}

// Limits bound the share of a host that a session may take; 0 = the node's default.
type Limits struct {
	CPUPercent  int64 `json:"cpu_percent,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
	BytesOut    int64 `json:"bytes_out,omitempty"`
}

// ParseOrderPayload decodes and checks a payload.
func ParseOrderPayload(b []byte) (OrderPayload, error) {
	var p OrderPayload
	if len(b) > MaxPayload {
		return p, fault.New(fault.Invalid, "cannot read order: payload of %d bytes", len(b))
	}
	if err := strict(b, &p); err != nil {
		return OrderPayload{}, fault.Wrap(fault.Invalid, err, "cannot read order")
	}
	return p, p.check()
}

// Marshal checks the payload and returns its JSON.
func (p OrderPayload) Marshal() (json.RawMessage, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

var idForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z]-[0-9a-z]{1,32}$`) })

// ValidID reports whether s has the form of an id of that kind letter.
func ValidID(kind byte, s string) bool {
	return idForm().MatchString(s) && s[0] == kind
}

func (p OrderPayload) check() error {
	switch {
	case p.V != 1:
		return fault.New(fault.Invalid, "cannot read order: version %d is not known here", p.V)
	case !ValidID('o', p.Order):
		return fault.New(fault.Invalid, "cannot read order: bad order id %q", p.Order)
	case !ValidID('h', p.Node):
		return fault.New(fault.Invalid, "cannot read order: bad node id %q", p.Node)
	case p.Issued <= 0 || p.ValidMS <= 0 || p.ValidMS > MaxOrderAge:
		return fault.New(fault.Invalid, "cannot read order %s: bad times", p.Order)
	case (p.Session == nil) == (p.Inspect == nil):
		return fault.New(fault.Invalid, "cannot read order %s: it starts nothing, or two things", p.Order)
	case (p.Inspect != nil) != (p.Kind == KindInspect):
		return fault.New(fault.Invalid, "cannot read order %s: kind %q is of something else", p.Order, p.Kind)
	}
	switch p.Kind {
	case KindInspect:
		return p.Inspect.check()
	case KindSessionResume:
		if !ValidID('s', p.Session.ID) {
			return fault.New(fault.Invalid, "cannot read order %s: bad session id %q", p.Order, p.Session.ID)
		}
		return nil
	case KindSessionStart:
		return p.Session.check()
	case KindDrill:
		if !ValidID('s', p.Session.ID) || !ValidID('p', p.Session.Person) || p.Session.RemainingMS <= 0 || p.Session.RemainingMS > MaxDrill {
			return fault.New(fault.Invalid, "cannot read order %s: bad drill", p.Order)
		}
		return nil
	}
	return fault.New(fault.Invalid, "cannot read order %s: kind %q is not known here", p.Order, p.Kind)
}

func (s SessionSpec) check() error {
	bad := func(what string) error {
		return fault.New(fault.Invalid, "cannot read session %s: %s", s.ID, what)
	}
	switch {
	case !ValidID('s', s.ID):
		return fault.New(fault.Invalid, "cannot read session: bad id %q", s.ID)
	case !ValidID('p', s.Person):
		return bad("bad person id")
	case s.PersonName == "" || len(s.PersonName) > 64 || strings.ContainsAny(s.PersonName, ":\n\x00/"):
		return bad("bad person name")
	case s.Level != LevelRead && s.Level != LevelWrite:
		return bad("bad level")
	case s.Kind != SessionShell && s.Kind != SessionExec && s.Kind != SessionSFTP && s.Kind != SessionForward:
		return bad("bad kind")
	case s.Kind == SessionForward && (s.Level != LevelWrite || s.PTY || !isDestination(s.Command)):
		return bad("no forwarded port")
	case s.Kind == SessionExec && s.Command == "":
		return bad("no command")
	case s.Level == LevelRead && (s.Account != "" || s.Sudo || s.Root):
		return bad("read-only, yet with an account or more")
	case s.Level == LevelWrite && s.Account == "":
		return bad("write, yet with no account")
	case s.RemainingMS <= 0:
		return bad("no time left")
	case strings.ContainsRune(s.Command, 0) || strings.ContainsRune(s.Prompt, 0):
		return bad("a zero byte")
	case s.LeastFloor != "" && s.LeastFloor != FloorFull && s.LeastFloor != FloorReduced && s.LeastFloor != FloorBrokered && s.LeastFloor != FloorAccount:
		return bad("bad least floor")
	case len(s.Env) > 64 || len(s.Groups) > 32 || len(s.Secrets) > 1024 || len(s.Banner) > 32:
		return bad("a list is too long")
	case s.Limits.CPUPercent < 0 || s.Limits.MemoryBytes < 0 || s.Limits.PIDs < 0 || s.Limits.BytesOut < 0:
		return bad("a negative limit")
	}
	return nil
}
