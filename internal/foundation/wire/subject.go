package wire

import "handrail.dev/handrail/internal/foundation/fault"

// Names of what a node sends up (node.<host>.up.<name>).
const (
	UpLease       = "lease"       // request: LeaseAsk → SignLease bytes
	UpConsistency = "consistency" // request: ConsistencyAsk → ConsistencyAnswer
	UpBundle      = "bundle"      // request: empty → signed trust bundle
	UpFacts       = "facts"       // message: Facts
	UpEvent       = "event"       // request: Event → "ok"; sent again until answered
	UpRenew       = "renew"       // request: RenewAsk → RenewAnswer
	UpServers     = "servers"     // request: ServersAsk → ServersAnswer
	UpEntrance    = "entrance"    // request: EntranceKeys → "ok"
	UpJournal     = "journal"     // request: JournalPart → JournalAnswer
)

// Names of what goes down (node.<host>.down.<name>, fleet.down.<name>).
const (
	DownBrake = "brake" // request or message: SignBrake bytes → BrakeAnswer
)

// UpSubject is where a host's node publishes.
func UpSubject(host, name string) string { return "node." + host + ".up." + name }

// UpWildcard is what a server subscribes to; the host is the second token.
func UpWildcard(name string) string { return "node.*.up." + name }

// DownSubject is where a server reaches one node.
func DownSubject(host, name string) string { return "node." + host + ".down." + name }

// FleetSubject is where a server reaches all nodes.
func FleetSubject(name string) string { return "fleet.down." + name }

// InboxPrefix is a node's private prefix for replies.
func InboxPrefix(host string) string { return "_INBOX." + host }

// Permissions are the subjects that a node may use: its own and no more.
type Permissions struct {
	Publish   []string
	Subscribe []string
	// Respond: a node may answer a request that it was sent (the reply
	// subject is the server's), at most this many times, within this many
	// seconds.
	RespondMax     int
	RespondSeconds int
}

// NodePermissions returns them for a host.
func NodePermissions(host string) (Permissions, error) {
	if !ValidID('h', host) { // an id with a dot or a star in it would widen the subjects
		return Permissions{}, fault.New(fault.Invalid, "cannot give subjects to node %q: bad id", host)
	}
	return Permissions{
		Publish:        []string{"node." + host + ".up.>"},
		Subscribe:      []string{"node." + host + ".down.>", "fleet.down.>", InboxPrefix(host) + ".>"},
		RespondMax:     1,
		RespondSeconds: 30,
	}, nil
}

// HostOfUp returns the host id in an up subject.
func HostOfUp(subject string) (string, bool) {
	const p = "node."
	if len(subject) < len(p) || subject[:len(p)] != p {
		return "", false
	}
	rest := subject[len(p):]
	for i := range rest {
		if rest[i] == '.' {
			return rest[:i], ValidID('h', rest[:i]) && len(rest) > i+4 && rest[i:i+4] == ".up."
		}
	}
	return "", false
}

// Fact is one thing that a host says of itself.
type Fact struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // "unreadable: EACCES" when it cannot be read
	Source string `json:"source,omitempty"`
}

// Facts are observations: all of them, or those that changed.
type Facts struct {
	V     int    `json:"v"`
	At    int64  `json:"at"` // µs, the host's clock
	Full  bool   `json:"full,omitempty"`
	Facts []Fact `json:"facts"`
}

// Kinds of Event.
const (
	EventAlarm          = "alarm"           // an order, lease or brake was refused that an honest server would not send
	EventSessionStarted = "session-started" // with boot id and audit session
	EventSessionEnded   = "session-ended"
	EventGap            = "gap"     // events were dropped here: Count of them
	EventResidue        = "residue" // something of a session was left and cleaned up
	EventClock          = "clock"   // the host's clock jumped
)

// Event is something that happened on a node and belongs into the ledger.
type Event struct {
	V            int    `json:"v"`
	ID           string `json:"id"` // e-…, for idempotency
	At           int64  `json:"at"` // µs, the host's clock
	Kind         string `json:"kind"`
	Rule         string `json:"rule,omitempty"` // alarm: which check refused it (see package warden)
	Text         string `json:"text,omitempty"`
	Order        string `json:"order,omitempty"`
	Session      string `json:"session,omitempty"`
	Person       string `json:"person,omitempty"`
	Why          string `json:"why,omitempty"` // session-ended
	Status       int32  `json:"status,omitempty"`
	Signal       string `json:"signal,omitempty"`
	BootID       string `json:"boot_id,omitempty"`
	AuditSession int64  `json:"audit_session,omitempty"`
	Tail         string `json:"tail,omitempty"` // SHA-256 of the local spool, hex
	Bytes        int64  `json:"bytes,omitempty"`
	Count        int64  `json:"count,omitempty"`
}
