package fleet

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// bus is the embedded NATS server. It listens on nothing: nodes reach it
// through a channel of their mTLS connection, this server through a pipe.
// It carries only what may be lost (leases, brakes, facts): truth is in the
// store and in the nodes' journals, so there is no JetStream.
type bus struct {
	nats *server.Server
	conn *nats.Conn

	mu     sync.Mutex
	passes map[string]string // host id → password of its present connection
}

const (
	// selfUser is this server's own name on the bus.
	selfUser = "server"
	// maxPayload bounds one message; facts and leases are far smaller.
	maxPayload = 1 << 20
	// maxPending bounds what a slow node may queue in this server.
	maxPending = 8 << 20
)

func newBus() (*bus, error) {
	b := &bus{passes: map[string]string{}}
	own := b.admit(selfUser)
	srv, err := server.NewServer(&server.Options{
		ServerName:                 "handrail",
		DontListen:                 true,
		NoLog:                      true,
		NoSigs:                     true,
		MaxPayload:                 maxPayload,
		MaxPending:                 maxPending,
		CustomClientAuthentication: b,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make the message bus")
	}
	srv.Start()
	if !srv.ReadyForConnections(5 * time.Second) {
		srv.Shutdown()
		return nil, fault.New(fault.Internal, "cannot start the message bus: not ready in 5 s")
	}
	b.nats = srv
	b.conn, err = nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(selfUser, own), nats.CustomInboxPrefix("_INBOX."+selfUser), nats.MaxReconnects(-1))
	if err != nil {
		srv.Shutdown()
		return nil, fault.Wrap(fault.Internal, err, "cannot join the message bus")
	}
	return b, nil
}

func (b *bus) close() {
	b.conn.Close()
	b.nats.Shutdown()
	b.nats.WaitForShutdown()
}

// admit makes the one-time password for a node's connection. The certificate
// is the identity; the password only ties the NATS channel to it.
func (b *bus) admit(user string) string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	pass := hex.EncodeToString(raw[:])
	b.mu.Lock()
	b.passes[user] = pass
	b.mu.Unlock()
	return pass
}

// Check implements server.Authentication: it lets a node use its own subjects
// and a private inbox, and this server everything.
func (b *bus) Check(c server.ClientAuthentication) bool {
	opts := c.GetOpts()
	b.mu.Lock()
	want, ok := b.passes[opts.Username]
	b.mu.Unlock()
	if !ok || subtle.ConstantTimeCompare([]byte(want), []byte(opts.Password)) != 1 {
		return false
	}
	user := &server.User{Username: opts.Username}
	if opts.Username != selfUser {
		may, err := wire.NodePermissions(opts.Username)
		if err != nil {
			return false
		}
		user.Permissions = &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: may.Publish},
			Subscribe: &server.SubjectPermission{Allow: may.Subscribe},
			Response:  &server.ResponsePermission{MaxMsgs: may.RespondMax, Expires: time.Duration(may.RespondSeconds) * time.Second},
		}
	}
	c.RegisterUser(user)
	return true
}

// bridge carries a node's NATS channel to the embedded server until either
// side ends.
func (b *bus) bridge(channel net.Conn) {
	inside, err := b.nats.InProcessConn()
	if err != nil {
		channel.Close()
		return
	}
	pipe(channel, inside)
}

// request asks one subject and waits for the answer.
func (b *bus) request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	msg, err := b.conn.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot ask the node")
	}
	return msg.Data, nil
}

// workers bounds how many questions of one kind are answered at once.
const workers = 16

// serve answers every message on subject with what answer returns; nil is no
// answer. The host is the one in the subject, which the node's permissions
// hold it to.
func (b *bus) serve(ctx context.Context, subject string, answer func(ctx context.Context, host string, data []byte) []byte) error {
	slots := make(chan struct{}, workers)
	sub, err := b.conn.Subscribe(subject, func(m *nats.Msg) {
		host, ok := wire.HostOfUp(m.Subject)
		if !ok {
			return
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if out := answer(ctx, host, m.Data); out != nil && m.Reply != "" {
				_ = m.Respond(out) // a node that left asks again
			}
		}()
	})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot listen for nodes")
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() })
	return nil
}

// gather asks all nodes at once and waits for as many answers as there are
// hosts, or until ctx ends. Who is missing is counted, never assumed.
func (b *bus) gather(ctx context.Context, subject string, data []byte, hosts []string) ([][]byte, error) {
	inbox := b.conn.NewRespInbox()
	sub, err := b.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot gather answers")
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.conn.PublishRequest(subject, inbox, data); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot ask the nodes")
	}
	var answers [][]byte
	for len(answers) < len(hosts) {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return answers, nil // the caller compares with the expected hosts
		}
		if len(m.Data) > 0 {
			answers = append(answers, m.Data)
		}
	}
	return answers, nil
}

func parseBrakeAnswers(raw [][]byte) ([]wire.BrakeAnswer, error) {
	var out []wire.BrakeAnswer
	for _, r := range raw {
		var a wire.BrakeAnswer
		if err := json.Unmarshal(r, &a); err != nil {
			return out, fault.Wrap(fault.Internal, err, "cannot read a node's answer to a brake")
		}
		out = append(out, a)
	}
	return out, nil
}
