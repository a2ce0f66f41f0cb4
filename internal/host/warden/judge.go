package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// Rules that refuse, as they stand in alarms.
const (
	RuleForm      = "form"      // malformed, or with fields that are not known here
	RuleSignature = "signature" // not signed by the order key
	RuleLease     = "lease"     // no fresh lease
	RuleFrozen    = "frozen"    // frozen by a brake
	RuleProof     = "proof"     // payload, leaf, tree or checkpoint do not prove it
	RuleFork      = "fork"      // the checkpoint does not extend the last one seen
	RuleNode      = "node"      // for another host
	RuleAge       = "age"       // too old, or from the future
	RuleReplay    = "replay"    // seen before
	RuleEpoch     = "epoch"     // overtaken by a lock or a policy
	RuleFeature   = "feature"   // needs something that this node does not know
	RulePolicy    = "policy"    // the host's own policy says no
	RuleAuthority = "authority" // the host's policy wants signatures that are not there
	RuleTrust     = "trust"     // a trust bundle that the pinned root key does not carry
	RuleWitness   = "witness"   // the host's policy wants witnesses who have not cosigned
	RuleHost      = "host"      // the host cannot: no alarm
)

// Bounds of what a warden remembers.
const (
	leaseFresh  = 10 * time.Second
	skew        = 5 * time.Second // between servers of one installation
	maxSeen     = 1 << 16
	maxPersons  = 1 << 16
	maxAsks     = 16
	knownTrees  = 64
	maxBrakeIDs = 4096
)

// features are those that an order may need of this node.
var features = map[string]bool{"session": true, "sandbox": true, "deadline": true, "buddy": true, "sftp": true, "forward": true, "drill": true, "inspect": true, "inspect.agreed": true}

// refusal is an error with the rule that refused.
type refusal struct {
	rule  string
	quiet bool // no alarm: an honest server meets this too
	fault *fault.Error
}

func refuse(rule, format string, args ...any) *refusal {
	return &refusal{rule: rule, fault: fault.New(fault.Denied, format, args...)}
}

// Error is the fault's text.
func (r *refusal) Error() string { return r.fault.Text }

// Unwrap lets fault.From see the fault.
func (r *refusal) Unwrap() error { return r.fault }

// needProof asks for the consistency proof between two trees: neither trust
// nor alarm, the order is judged again with it. at is the one of the two that
// is known here; by the time that the proof comes, another may be.
type needProof struct{ old, new, at int64 }

func (n *needProof) Error() string {
	return fmt.Sprintf("cannot judge yet: the proof from tree %d to %d is needed", n.old, n.new)
}

// judge decides what may be done. It has no I/O: what it remembers is saved by
// its owner, what it refuses is reported by its owner.
type judge struct {
	boot   func() time.Duration
	node   string
	root   string // pinned hash of the root key
	policy hostPolicy

	mu      sync.Mutex
	bundle  ledger.Bundle
	signed  []byte         // the bundle as signed
	log     ledger.LogKeys // what a server may sign by now
	last    tlog.Tree
	note    []byte // last's checkpoint
	known   []tlog.Tree
	asks    []pendingAsk
	lease   lease
	started int64 // server time of the first lease: what was issued before is refused
	visit   bool  // but for this: its order brought it here, however long the way was
	epochs  wire.Epochs
	rises   map[string][]rise        // of epochs, lately
	seen    map[string]time.Duration // order id → boot time at which it may be forgotten
	brakes  []string
	frozen  bool
	thaw    time.Duration // a lease asked for after this lifts a freeze
	alone   alone         // what counts while no server answers
}

type pendingAsk struct {
	wire.LeaseAsk
	at time.Duration
}

type lease struct {
	have   bool
	asked  time.Duration // boot time
	server int64         // µs
	off    bool
}

func newJudge(p pinFile, policy hostPolicy, boot func() time.Duration) (*judge, error) {
	j := &judge{boot: boot, node: p.Node, root: p.RootHash, policy: policy, seen: map[string]time.Duration{}, rises: map[string][]rise{}}
	j.epochs.Person = map[string]int64{}
	j.alone = alone{began: boot(), lost: wire.LeaseLost, revoked: map[uint64]bool{}}
	if err := j.trust(p.Bundle); err != nil {
		return nil, err
	}
	if len(p.Checkpoint) > 0 {
		ever, err := j.bundle.LogEver() // it is our own: it may be from before a rotation
		if err != nil {
			return nil, err
		}
		tree, err := ledger.OpenCheckpoint(p.Checkpoint, j.bundle.Origin, ever)
		if err != nil {
			return nil, err
		}
		j.last, j.note = tree, p.Checkpoint
	}
	return j, nil
}

// trust takes a bundle into force: signed by the pinned root key, never older
// than the one in force. The caller holds mu, or nobody else has j yet.
func (j *judge) trust(signed []byte) error {
	b, err := ledger.OpenBundle(signed, j.root)
	if err != nil {
		return err
	}
	if j.signed != nil && (b.Version <= j.bundle.Version || b.Epoch < j.bundle.Epoch || b.Origin != j.bundle.Origin) {
		return fault.New(fault.Denied, "cannot accept trust bundle %d: %d is in force", b.Version, j.bundle.Version)
	}
	v, err := b.Log(j.trustTime())
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot accept trust bundle %d", b.Version)
	}
	if j.signed != nil && b.Epoch > j.bundle.Epoch {
		// The root key says that the ledger was restored: start over from the
		// next checkpoint.
		j.last, j.note, j.known = tlog.Tree{}, nil, nil
	}
	j.bundle, j.signed, j.log = b, signed, v
	return nil
}

// trustTime is by which a former key's end is judged: the later of this host's
// clock and of what the last lease said, so that turning one of them back
// brings no key back.
func (j *judge) trustTime() time.Time {
	now := time.Now()
	if j.alone.wall != nil {
		now = j.alone.wall()
	}
	if j.lease.have {
		if server := time.UnixMicro(j.lease.server).Add(j.boot() - j.lease.asked); server.After(now) {
			return server
		}
	}
	return now
}

// orderKeys are those whose word counts now. The caller holds mu.
func (j *judge) orderKeys() []ed25519.PublicKey { return j.bundle.OrderKeys(j.trustTime()) }

// logNow is what opens checkpoints that a server sends now. The caller holds mu.
func (j *judge) logNow() note.Verifier {
	if keys, err := j.bundle.Log(j.trustTime()); err == nil {
		return keys
	}
	return j.log
}

// extend checks that tree is of the same log as all trees seen here. The
// caller holds mu.
func (j *judge) extend(tree tlog.Tree, signed []byte, from int64, proof []tlog.Hash) error {
	for _, k := range j.known {
		if k == tree {
			return nil
		}
		if k.N == tree.N {
			return refuse(RuleFork, "cannot accept checkpoint at %d: another one of that size was seen here", tree.N)
		}
	}
	base, err := j.last, error(nil)
	if tree.N < from { // the last one may have moved on since the proof was asked for
		base = j.knownAt(from)
	}
	switch {
	case tree.N == base.N:
		err = ledger.CheckConsistency(nil, base, tree)
	case base.N == 0:
	case from != base.N:
		return &needProof{min(tree.N, j.last.N), max(tree.N, j.last.N), j.last.N}
	case tree.N > base.N:
		err = ledger.CheckConsistency(proof, base, tree)
	default:
		err = ledger.CheckConsistency(proof, tree, base)
	}
	if err != nil {
		return refuse(RuleFork, "cannot accept checkpoint at %d: it is not of the log that was seen here up to %d", tree.N, j.last.N)
	}
	if len(j.known) == knownTrees {
		j.known = append(j.known[:0], j.known[1:]...)
	}
	j.known = append(j.known, tree)
	if tree.N > j.last.N {
		j.last, j.note = tree, signed
	}
	return nil
}

// knownAt is the tree of that size that was seen here, else the last one. All
// of them are parts of the last one, and so is every part of theirs.
func (j *judge) knownAt(size int64) tlog.Tree {
	for _, k := range j.known {
		if k.N == size {
			return k
		}
	}
	return j.last
}

// ask makes a lease request and remembers its nonce and boot time.
func (j *judge) ask() ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	nonce := make([]byte, wire.NonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	a := wire.LeaseAsk{V: 1, Node: j.node, Nonce: nonce, Size: j.last.N, BundleVersion: j.bundle.Version, Vouchers: true}
	if j.last.N > 0 {
		a.Root = j.last.Hash[:]
	}
	if len(j.asks) == maxAsks {
		j.asks = append(j.asks[:0], j.asks[1:]...)
	}
	j.asks = append(j.asks, pendingAsk{a, j.boot()})
	return a.Marshal()
}

// answer takes a lease answer. It runs from when it was asked for, so that an
// answer held back on the way gives less.
func (j *judge) answer(nonce, signed []byte, from int64, proof []tlog.Hash) (wire.LeaseAnswer, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at := -1
	for i, p := range j.asks {
		if string(p.Nonce) == string(nonce) {
			at = i
		}
	}
	if at < 0 {
		return wire.LeaseAnswer{}, refuse(RuleReplay, "cannot accept lease: nobody asked for it here")
	}
	ask := j.asks[at]
	if b := wire.PeekLeaseBundle(signed); len(b) > 0 {
		if nb, err := ledger.OpenBundle(b, j.root); err != nil {
			return wire.LeaseAnswer{}, refuse(RuleTrust, "cannot accept lease: %v", err)
		} else if nb.Version > j.bundle.Version {
			if err := j.trust(b); err != nil {
				return wire.LeaseAnswer{}, refuse(RuleTrust, "cannot accept lease: %v", err)
			}
		}
	}
	a, err := wire.ByAny(j.orderKeys(), func(k ed25519.PublicKey) (wire.LeaseAnswer, error) { return wire.OpenLease(signed, k, ask.LeaseAsk) })
	if err != nil {
		return a, refuse(RuleSignature, "%v", err)
	}
	tree, err := ledger.OpenCheckpoint(a.Checkpoint, j.bundle.Origin, j.logNow())
	if err != nil {
		return a, refuse(RuleProof, "cannot accept lease: %v", err)
	}
	if len(proof) == 0 && from == 0 {
		if proof, err = wire.ParseHashList(a.Consistency); err != nil {
			return a, refuse(RuleForm, "cannot accept lease: %v", err)
		}
		from = ask.Size
	}
	if err := j.extend(tree, a.Checkpoint, from, proof); err != nil {
		return a, err
	}
	j.asks = append(j.asks[:at], j.asks[at+1:]...)
	j.takeLease(a, ask.at)
	return a, nil
}

func (j *judge) takeLease(a wire.LeaseAnswer, asked time.Duration) {
	if j.started == 0 {
		j.started = a.ServerTime
	}
	if !j.lease.have || asked > j.lease.asked {
		j.lease = lease{have: true, asked: asked, server: a.ServerTime, off: a.Off}
	}
	j.raiseAll(wire.Epochs{Lock: a.LockEpoch, Policy: a.PolicyEpoch, Person: a.PersonEpochs})
	j.learn(a)
	if j.frozen && asked > j.thaw && !a.Off {
		j.frozen = false
	}
}

// staleFor is how long ago the lease in force was asked for.
func (j *judge) staleFor() (since time.Duration, have bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.boot() - j.lease.asked, j.lease.have
}

// accepted is an order that may be carried out.
type accepted struct {
	wire.OrderPayload
	deadline time.Duration // boot time at which the session ends
	left     time.Duration // until then
	tree     int64
	journal  *keeper.JournalSpec // of a session that no server records; else nil
}

// order judges an envelope. Its id is spent when it is accepted.
func (j *judge) order(e wire.Envelope) (accepted, error) {
	o, err := wire.ParseOrder(e.Order)
	if err != nil {
		return accepted{}, refuse(RuleForm, "%v", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.ContainsFunc(j.orderKeys(), o.VerifySignature) {
		return accepted{}, refuse(RuleSignature, "cannot accept order: the order key did not sign it")
	}
	now := j.boot()
	if !j.lease.have || now-j.lease.asked > leaseFresh {
		r := refuse(RuleLease, "cannot accept order: no lease of the last %s", leaseFresh)
		r.fault.Kind = fault.Unavailable
		r.quiet = !j.lease.have // just started: nobody's fault
		return accepted{}, r
	}
	leaf, err := j.prove(o, e, now)
	if err != nil {
		return accepted{}, err
	}
	p, err := wire.ParseOrderPayload(o.Payload)
	if err != nil {
		return accepted{}, refuse(RuleForm, "%v", err)
	}
	age, err := j.check(p, leaf, now)
	if err != nil {
		return accepted{OrderPayload: p}, err
	}
	if err := j.policy.check(p); err != nil {
		return accepted{OrderPayload: p}, err
	}
	if err := j.spend(p, now); err != nil {
		return accepted{OrderPayload: p}, err
	}
	remaining := time.Duration(p.RemainingMS())*time.Millisecond - age
	return accepted{p, now + remaining, remaining, j.last.N, nil}, nil
}

// prove checks that the order is in the ledger that this node knows.
func (j *judge) prove(o wire.Order, e wire.Envelope, now time.Duration) (ledger.Leaf, error) {
	if err := o.Proof().Verify(j.logNow(), j.bundle.Origin); err != nil {
		return ledger.Leaf{}, refuse(RuleProof, "cannot accept order: %v", err)
	}
	tree, err := ledger.OpenCheckpoint(o.Checkpoint, j.bundle.Origin, j.logNow())
	if err != nil {
		return ledger.Leaf{}, refuse(RuleProof, "cannot accept order: %v", err)
	}
	if err := j.checkCosigned(o, now); err != nil { // before it is remembered
		return ledger.Leaf{}, err
	}
	if err := j.extend(tree, o.Checkpoint, e.From, e.Consistency); err != nil {
		return ledger.Leaf{}, err
	}
	leaf, err := ledger.ParseLeaf(o.Leaf)
	if err != nil {
		return ledger.Leaf{}, refuse(RuleProof, "cannot accept order: %v", err)
	}
	return leaf, nil
}

// check is everything about a proven order that does not change what the
// judge remembers. It returns the order's age.
func (j *judge) check(p wire.OrderPayload, leaf ledger.Leaf, now time.Duration) (time.Duration, error) {
	for _, f := range p.Need {
		if !features[f] {
			return 0, refuse(RuleFeature, "cannot accept order %s: it needs %q, which this node does not know", p.Order, f)
		}
	}
	if p.Node != j.node || (leaf.Target != "host/"+j.node) || leaf.Session != p.SessionID() {
		return 0, refuse(RuleNode, "cannot accept order %s: it is for %s (entry for %s), this is %s", p.Order, p.Node, leaf.Target, j.node)
	}
	server := j.lease.server + (now - j.lease.asked).Microseconds()
	age := time.Duration(server-p.Issued) * time.Microsecond
	switch {
	case age < -skew:
		return 0, refuse(RuleAge, "cannot accept order %s: it was issued %s in the future", p.Order, -age)
	case age > time.Duration(p.ValidMS)*time.Millisecond:
		return 0, refuse(RuleAge, "cannot accept order %s: it is %s old and was valid for %d ms", p.Order, age, p.ValidMS)
	case !j.visit && p.Issued < j.started-int64(skew/time.Microsecond):
		return 0, refuse(RuleReplay, "cannot accept order %s: it was issued before this warden started", p.Order)
	}
	if err := j.checkEpochs(p, age, now); err != nil {
		return 0, err
	}
	if j.frozen {
		return 0, refuse(RuleFrozen, "cannot accept order %s: this host is frozen", p.Order)
	}
	return max(age, 0), nil
}

// spend marks an order id as used. Ids are kept for as long as the order could
// be valid; when too many are kept, new ones are refused, never forgotten.
func (j *judge) spend(p wire.OrderPayload, now time.Duration) error {
	if _, ok := j.seen[p.Order]; ok {
		return refuse(RuleReplay, "cannot accept order %s: it was carried out already", p.Order)
	}
	if len(j.seen) >= maxSeen {
		for id, until := range j.seen {
			if until < now {
				delete(j.seen, id)
			}
		}
		if len(j.seen) >= maxSeen {
			r := refuse(RuleReplay, "cannot accept order %s: %d orders within a minute", p.Order, maxSeen)
			r.fault.Kind = fault.Exhausted
			return r
		}
	}
	// Twice the longest validity and both skews: longer than any clock lets it live.
	j.seen[p.Order] = now + 2*wire.MaxOrderAge*time.Millisecond + 2*skew
	return nil
}

// brake checks a brake. fresh is false for one that was handled before.
func (j *judge) brake(signed []byte) (b wire.Brake, fresh bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, err = wire.ByAny(j.orderKeys(), func(k ed25519.PublicKey) (wire.Brake, error) { return wire.OpenBrake(signed, k) })
	if err != nil {
		return b, false, refuse(RuleSignature, "%v", err)
	}
	if b.Node != wire.EveryNode && b.Node != j.node {
		return b, false, refuse(RuleNode, "cannot accept brake %s: it is for %s, this is %s", b.ID, b.Node, j.node)
	}
	for _, id := range j.brakes {
		if id == b.ID {
			return b, false, nil
		}
	}
	if len(j.brakes) == maxBrakeIDs {
		j.brakes = append(j.brakes[:0], j.brakes[1:]...)
	}
	j.brakes = append(j.brakes, b.ID)
	switch b.Kind {
	case wire.BrakeLockPerson:
		j.raise(b.Person, b.Epoch)
	case wire.BrakeFreeze:
		j.frozen, j.thaw = true, j.boot()
	}
	return b, true, nil
}

// snapshot is what must be on disk.
func (j *judge) snapshot() pinFile {
	j.mu.Lock()
	defer j.mu.Unlock()
	return pinFile{V: 1, Node: j.node, RootHash: j.root, Bundle: j.signed, Checkpoint: j.note}
}

func (j *judge) bundleVersion() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bundle.Version
}

func (j *judge) size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last.N
}
