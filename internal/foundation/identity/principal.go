package identity

import (
	"context"
	"slices"
)

// The kinds of principal.
const (
	KindPerson    = "person"
	KindRobot     = "robot"
	KindNode      = "node"
	KindAnonymous = "anonymous"
)

// The ways by which a principal came in.
const (
	ViaBrowser = "browser" // a login of the page
	ViaDevice  = "device"  // a login of the command line, tied to a device key
	ViaSSH     = "ssh"     // an SSH certificate or an enrolled key
	ViaCode    = "code"    // a stock ssh client whose code a person confirmed
	ViaRobot   = "robot"   // a robot that proved its workload or its key
)

// Principal is who acts. It is a statement about one moment: the doorway reads
// the person's row again inside the transaction that decides.
type Principal struct {
	ID       string
	Name     string
	Kind     string // person, robot, node, anonymous
	Groups   []string
	Login    string // l-…
	Device   string // d-…
	Via      string // browser, device, ssh, code
	Locked   bool
	Epoch    int64
	Source   string // address, never in the ledger in the clear
	ReadOnly bool   // came by a code: one read connection and nothing else
	Owner    string // of a robot: the person who answers for it
}

// MayApprove says whether this kind of principal may ever approve or break
// glass: only a person whose own credential is at hand.
func (p Principal) MayApprove() bool { return p.Kind == KindPerson && !p.Locked && !p.ReadOnly }

// brakers are the groups whose members may brake while the database, and so the
// policy, is away. With the database at hand the policy alone decides.
var brakers = []string{"admin", "operator"}

// MayBrake says whether somebody may lock and revoke while nothing can be decided.
func (p Principal) MayBrake() bool {
	return p.MayApprove() && slices.ContainsFunc(p.Groups, func(g string) bool { return slices.Contains(brakers, g) })
}

type principalKey struct{}

// WithPrincipal returns a context in which p acts.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// FromContext returns who acts.
func FromContext(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}
