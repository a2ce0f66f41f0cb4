package peer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// The action that inviting, draining and removing a server ask for: a server
// holds every key but the root's, so only who may change the rules may ask.
const action = "policies.apply"

// KindJoin is the kind of request that somebody else agrees to.
const KindJoin = "server.join"

const (
	inviteFor  = time.Hour
	collectFor = time.Hour // after it was agreed to
)

// Invitation is the secret with which one server asks to join.
type Invitation struct {
	Server  Server
	Secret  string
	Expires time.Time
}

// Invite makes a secret. It is worth a question only: the keys need somebody
// else's yes to the key that the server then makes.
func (p *Peers) Invite(ctx context.Context, by identity.Principal, name string) (Invitation, error) {
	if target.ValidName(name) != nil || strings.HasPrefix(name, "v-") {
		return Invitation{}, fault.New(fault.Invalid, "cannot name a server %.80q: use letters, digits and . _ -, and no id", name)
	}
	if len(p.List()) == 0 { // Start has not run: nobody else can use this database
		return Invitation{}, fault.New(fault.Conflict, "cannot invite a server: the database is SQLite, which one server has alone").
			WithHint("handrail store move --help")
	}
	var out Invitation
	_, err := p.d.Door.Do(ctx, doorway.Act{Action: action, By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if _, err := getTx(tx, name); fault.KindOf(err) != fault.NotFound || err == nil {
			if err == nil {
				err = fault.New(fault.Conflict, "cannot invite server %s: there is one of that name", name).WithHint("handrail server remove %s, if its invitation was lost", name)
			}
			return nil, err
		}
		secret := base64.RawURLEncoding.EncodeToString(tx.Random(32))
		row := Server{ID: newServerID(tx), Name: name, State: StateInvited, Secret: hashOf(secret), Inviter: by.ID,
			Expires: tx.Now().Add(inviteFor).UnixMicro(), Version: 1}
		out = Invitation{Server: row, Secret: secret, Expires: tx.Now().Add(inviteFor)}
		return []ledger.Entry{row.entry(Invited, by.ID, payload{})}, row.insert(tx)
	}}, nil)
	return out, err
}

// newServerID is like every id: a letter and eight of Crockford's.
func newServerID(tx *store.Tx) string {
	const crockford = "0123456789abcdefghjkmnpqrstvwxyz"
	id := []byte("v-")
	for _, c := range tx.Random(8) {
		id = append(id, crockford[c&31])
	}
	return string(id)
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte("handrail-server-invite\n" + secret))
	return hex.EncodeToString(sum[:])
}

// Question is what a joining server says. It asks again and again with the
// same key until somebody has agreed.
type Question struct {
	Secret       string
	Chest        []byte
	Address, SSH string
}

// Answer is what it hears: the keys, or what it waits for.
type Answer struct {
	Server      Server
	Approval    string
	Fingerprint string
	Keys        []byte // sealed; nil: not yet
}

// Join answers a server that wants to join.
func (p *Peers) Join(ctx context.Context, q Question, source string) (Answer, error) {
	if err := keyring.CheckChest(q.Chest); err != nil {
		return Answer{}, err
	}
	for _, address := range []string{q.Address, q.SSH} {
		if err := CheckAddress(address); err != nil {
			return Answer{}, err
		}
	}
	var row Server
	err := p.d.Store.View(ctx, func(v *store.View) (err error) { // a stranger who guesses does not take the writer
		row, err = bySecret(v, q.Secret, time.Now())
		return err
	})
	if err != nil {
		if fault.KindOf(err) == fault.Unauthenticated {
			p.d.People.FailedLogin(source, "server join refused")
		}
		return Answer{}, err
	}
	_, err = p.d.Store.Record(ctx, "server-"+rand.Text(), func(tx *store.Tx) (entries []ledger.Entry, err error) {
		if row, err = bySecret(tx, q.Secret, tx.Now()); err != nil {
			return nil, err
		}
		if row.State == StateInvited {
			entries, err = p.askTx(tx, &row, q)
			return entries, err
		}
		if row.Chest != base64.StdEncoding.EncodeToString(q.Chest) {
			return nil, fault.New(fault.Denied, "cannot join: the invitation is used by another key").WithHint("handrail server remove %s, and invite it anew", row.Name)
		}
		if row.State != StateActive {
			return nil, nil
		}
		return []ledger.Entry{row.entry(Sealed, ledger.System, payload{Key: keyring.Fingerprint(q.Chest)})}, nil
	})
	if err != nil {
		return Answer{}, err
	}
	out := Answer{Server: row, Approval: row.Approval, Fingerprint: keyring.Fingerprint(q.Chest)}
	if row.State == StateActive {
		out.Keys, err = p.d.Ring.SealFor(q.Chest, row.ID)
	}
	return out, err
}

func bySecret(q store.Queryer, secret string, now time.Time) (Server, error) {
	rows, err := store.All[Server](q, selectServer+`WHERE secret = $1`, hashOf(secret))
	if err != nil {
		return Server{}, err
	}
	if len(rows) != 1 || subtle.ConstantTimeCompare([]byte(rows[0].Secret), []byte(hashOf(secret))) != 1 || now.UnixMicro() > rows[0].Expires || rows[0].State == StateRemoved {
		return Server{}, fault.New(fault.Unauthenticated, "cannot join: the invitation is wrong, expired or withdrawn").WithHint("handrail server invite NAME")
	}
	return rows[0], nil
}

// askTx takes the joining server's key and addresses and asks somebody else.
// In bootstrap one person is enough, and the entry says so.
func (p *Peers) askTx(tx *store.Tx, row *Server, q Question) ([]ledger.Entry, error) {
	inviter, err := p.d.People.GetTx(tx, row.Inviter)
	if err != nil {
		return nil, err
	}
	if inviter.Locked() {
		return nil, fault.New(fault.Denied, "cannot join: who invited this server is locked").WithHint("handrail server invite, by somebody else")
	}
	row.Chest, row.Address, row.SSH, row.State = base64.StdEncoding.EncodeToString(q.Chest), q.Address, q.SSH, StateAsked
	state, err := p.d.People.BootstrapTx(tx, tx.Now())
	if err != nil {
		return nil, err
	}
	said := payload{Address: row.Address, SSH: row.SSH, Key: keyring.Fingerprint(q.Chest)}
	if state.Active {
		saved, err := row.save(tx)
		if err != nil {
			return nil, err
		}
		added, err := addTx(tx, &saved, row.Inviter)
		*row = saved
		return append([]ledger.Entry{saved.entry(Asked, row.Inviter, said)}, added...), err
	}
	engine, err := p.d.Policy.EngineTx(tx)
	if err != nil {
		return nil, err
	}
	request, err := json.Marshal(joinRequest{V: 1, Server: row.ID, Name: row.Name, Address: row.Address, SSH: row.SSH, Key: q.Chest})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
	}
	a, entries, err := p.d.Approvals.RequestTx(tx, inviter.Principal(), KindJoin, request, approval.RuleOf(engine.Approval(KindJoin)))
	if err != nil {
		return nil, err
	}
	row.Approval = a.ID
	row.Expires = max(row.Expires, a.Lapses)
	said.Approval = a.ID
	saved, err := row.save(tx)
	*row = saved
	return append(entries, saved.entry(Asked, row.Inviter, said)), err
}

// addTx puts a server into the list, for good.
func addTx(tx *store.Tx, row *Server, by string) ([]ledger.Entry, error) {
	row.State, row.Added = StateActive, tx.Now().UnixMicro()
	row.Expires = tx.Now().Add(collectFor).UnixMicro()
	saved, err := row.save(tx)
	*row = saved
	return []ledger.Entry{saved.entry(Added, by, payload{Address: saved.Address, SSH: saved.SSH, Approval: saved.Approval})}, err
}

// joinRequest is what people sign: the very key that the ring is sealed to.
type joinRequest struct {
	V       int    `json:"v"`
	Server  string `json:"server"`
	Name    string `json:"name"`
	Address string `json:"address"`
	SSH     string `json:"ssh"`
	Key     []byte `json:"key"`
}

// Kinds is the kind of request that peer carries out; approval.New takes it.
func Kinds() []approval.Kind { return []approval.Kind{joinKind{}} }

type joinKind struct{}

func (joinKind) Name() string { return KindJoin }

func parseJoin(request []byte) (q joinRequest, err error) {
	if err = approval.Read(KindJoin, request, &q); err == nil && q.V != 1 {
		err = fault.New(fault.Invalid, "cannot read the request of kind %s: version %d", KindJoin, q.V)
	}
	return q, err
}

func (joinKind) Describe(_ store.Queryer, request []byte) (approval.Description, error) {
	q, err := parseJoin(request)
	if err != nil {
		return approval.Description{}, err
	}
	return approval.Description{
		Subject: q.Server, Summary: fmt.Sprintf("hand the keys of this installation to the server %s at %s", q.Name, q.Address),
		Details: []approval.Detail{
			{Name: "server", Value: q.Name}, {Name: "page, API and nodes", Value: q.Address}, {Name: "ssh", Value: q.SSH},
			{Name: "key", Value: keyring.Fingerprint(q.Key)},
		},
		Grants:        []string{"that machine gets every key but the root key: it records, orders and decides like this server"},
		CannotContain: []string{"compare the key with what `handrail server join` shows on that machine: who holds another one would get the keys"},
	}, nil
}

// Approved implements approval.Kind.
func (joinKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	q, err := parseJoin(a.Request)
	if err != nil {
		return nil, err
	}
	row, err := getTx(tx, q.Server)
	if err != nil {
		return nil, err
	}
	if row.State != StateAsked || row.Approval != a.ID || row.Chest != base64.StdEncoding.EncodeToString(q.Key) || row.Address != q.Address || row.SSH != q.SSH {
		return nil, fault.New(fault.Conflict, "cannot add server %s: it is not as it was when it asked", q.Name).WithHint("handrail servers")
	}
	return addTx(tx, &row, a.Requester)
}

// Ended implements approval.Kind.
func (joinKind) Ended(tx *store.Tx, a approval.Approval, state approval.State) ([]ledger.Entry, error) {
	q, err := parseJoin(a.Request)
	if err != nil {
		return nil, err
	}
	row, err := getTx(tx, q.Server)
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return nil, nil // removed meanwhile
	}
	if err != nil || row.State != StateAsked || row.Approval != a.ID {
		return nil, err
	}
	row.State, row.Secret = StateRemoved, ""
	saved, err := row.save(tx)
	return []ledger.Entry{saved.entry(Refused, a.Requester, payload{Approval: a.ID, Reason: string(state)})}, err
}

// How long sessions of a server that drains may go on.
const (
	DrainWithin = 15 * time.Minute // unless said otherwise
	longDrain   = 24 * time.Hour
)

// Drain lets a server take no new session, so that it can be restarted; its
// start ends the draining. What still runs after within ends; 0 is DrainWithin.
func (p *Peers) Drain(ctx context.Context, by identity.Principal, name, reason string, within time.Duration) (Server, error) {
	if within == 0 {
		within = DrainWithin
	}
	if within < time.Second || within > longDrain {
		return Server{}, fault.New(fault.Invalid, "cannot drain a server within %s: from 1s to %s", within, longDrain)
	}
	return p.move(ctx, by, name, func(row Server) (Server, ledger.Action, error) {
		if row.State != StateActive {
			return row, "", fault.New(fault.Conflict, "cannot drain server %s: it is %s", row.Name, row.State).WithHint("handrail servers")
		}
		row.State, row.Reason, row.Within = StateDraining, reason, int64(within/time.Second)
		return row, Drained, nil
	}, reason)
}

// Remove takes a server out of the list for good. Its keys are not taken back:
// who doubts the machine rotates them.
func (p *Peers) Remove(ctx context.Context, by identity.Principal, name, reason string) (Server, error) {
	return p.move(ctx, by, name, func(row Server) (Server, ledger.Action, error) {
		if row.ID == p.d.Self.ID {
			return row, "", fault.New(fault.Conflict, "cannot remove server %s by itself", row.Name).WithHint("ask another server: handrail servers")
		}
		row.State, row.Secret, row.Within = StateRemoved, "", 0
		return row, Removed, nil
	}, reason)
}

func (p *Peers) move(ctx context.Context, by identity.Principal, name string, step func(Server) (Server, ledger.Action, error), reason string) (row Server, err error) {
	if len(reason) > 1024 {
		return row, fault.New(fault.Invalid, "cannot use a reason of %d bytes: at most 1024", len(reason))
	}
	_, err = p.d.Door.Do(ctx, doorway.Act{Action: action, By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		found, err := getTx(tx, name)
		if err != nil {
			return nil, err
		}
		next, what, err := step(found)
		if err != nil {
			return nil, err
		}
		if row, err = next.save(tx); err != nil {
			return nil, err
		}
		return []ledger.Entry{row.entry(what, by.ID, payload{Reason: reason, Within: row.Within})}, nil
	}}, nil)
	if err == nil {
		p.Look()
	}
	return row, err
}
