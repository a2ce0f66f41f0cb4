package fleet

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// bus is the embedded NATS server. Alone it listens on nothing: nodes reach it
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
	// maxSubs bounds the subscriptions of one connection.
	maxSubs = 1024
	// starved is how long an end of a channel may say or take nothing. A machine
	// that gives it no processor for a while is slow, not gone: the connection
	// below has a heartbeat and says sooner which (mux).
	starved = 30 * time.Second
)

// newBus starts the bus; more adds to its options.
func newBus(more func(*server.Options)) (*bus, error) {
	b := &bus{passes: map[string]string{}}
	own := b.admit(selfUser)
	options := &server.Options{
		ServerName:                 "handrail",
		DontListen:                 true,
		NoLog:                      true,
		NoSigs:                     true,
		MaxPayload:                 maxPayload,
		MaxPending:                 maxPending,
		MaxSubs:                    maxSubs,
		AuthTimeout:                starved.Seconds(),
		WriteDeadline:              starved,
		CustomClientAuthentication: b,
	}
	more(options)
	srv, err := server.NewServer(options)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make the message bus")
	}
	go srv.Start() // it returns once it does not listen, or never
	if !srv.ReadyForConnections(starved) {
		srv.Shutdown()
		return nil, fault.New(fault.Internal, "cannot start the message bus: not ready in %s", starved)
	}
	b.nats = srv
	b.conn, err = nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(selfUser, own), nats.CustomInboxPrefix("_INBOX."+selfUser), nats.MaxReconnects(-1), nats.Timeout(starved))
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
// side ends. refused hears each time that the node used a subject of others.
func (b *bus) bridge(channel net.Conn, refused func()) {
	inside, err := b.nats.InProcessConn()
	if err != nil {
		channel.Close()
		return
	}
	pipe(frugal{&overheard{Conn: channel, refused: refused}}, frugal{inside})
}

// frugal is a connection that is copied in small pieces. What nodes and server
// say here is short, and most of what a silent node would cost this server are
// the buffers of io.Copy.
type frugal struct{ net.Conn }

const frugalPiece = 2 << 10

// WriteTo implements io.WriterTo, for io.Copy.
func (f frugal) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, struct{ io.Reader }{f.Conn}, make([]byte, frugalPiece))
}

// workers bounds how many questions of one kind are answered at once.
const workers = 16

// serve answers every message on subject with what answer returns; nil is no
// answer. The host is the one in the subject, which the node's permissions
// hold it to. pace says how long a message of that host has to wait, or that
// it is dropped.
func (b *bus) serve(ctx context.Context, subject string, pace func(host string) (wait time.Duration, ok bool), answer func(ctx context.Context, host string, data []byte) []byte) error {
	slots := make(chan struct{}, workers)
	sub, err := b.conn.Subscribe(subject, func(m *nats.Msg) {
		host, ok := wire.HostOfUp(m.Subject)
		if !ok {
			return
		}
		work := func() {
			defer func() { <-slots }()
			if out := answer(ctx, host, m.Data); out != nil && m.Reply != "" {
				_ = m.Respond(out) // a node that left asks again
			}
		}
		wait, ok := pace(host)
		switch {
		case !ok:
		case wait > 0:
			time.AfterFunc(wait, func() { slots <- struct{}{}; work() })
		default:
			slots <- struct{}{}
			go work()
		}
	})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot listen for nodes")
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() })
	return nil
}

// gather asks each of the hosts and waits for their answers, or until ctx ends.
// Each has a place of its own to answer to, so that none can answer for
// another. Who is missing is counted, never assumed.
func (b *bus) gather(ctx context.Context, name string, data []byte, hosts []string) (map[string][]byte, error) {
	inbox := b.conn.NewRespInbox()
	sub, err := b.conn.SubscribeSync(inbox + ".*")
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot gather answers")
	}
	defer func() { _ = sub.Unsubscribe() }()
	for _, host := range hosts {
		if err := b.conn.PublishRequest(wire.DownSubject(host, name), inbox+"."+host, data); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot ask the nodes")
		}
	}
	answers := map[string][]byte{}
	for heard := 0; heard < len(hosts); heard++ {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
		case err != nil:
			return answers, nil // the caller compares with the expected hosts
		default:
			answers[strings.TrimPrefix(m.Subject, inbox+".")] = m.Data
		}
	}
	return answers, nil
}

// refusal is how the embedded server tells a node that a subject is not its
// own. The line break before it keeps it apart from what messages carry: those
// are JSON, in which there is none.
var refusal = []byte("\r\n-ERR 'Permissions Violation")

// overheard is a node's channel on which refusals are noticed.
type overheard struct {
	net.Conn
	refused func()
	tail    []byte // of what was written before
}

func (o *overheard) Write(p []byte) (int, error) {
	edge := append(o.tail, p[:min(len(p), len(refusal))]...)
	if bytes.Contains(p, refusal) || bytes.Contains(edge, refusal) {
		o.refused()
	}
	if len(p) > len(refusal) {
		edge = p
	}
	o.tail = append(o.tail[:0], edge[max(0, len(edge)-len(refusal)+1):]...)
	return o.Conn.Write(p)
}
