package warden

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/socket"
)

const (
	// maxFrame bounds every message on the warden's socket.
	maxFrame = 1 << 20
	// maxHashes bounds the JSON of a proof, before anything is made of it.
	maxHashes = 16 << 10
	// frameTime bounds how long the rest of a message may take once it has
	// begun, and how long an answer may wait to be taken.
	frameTime = 10 * time.Second
)

// What the link may ask. One request at a time per connection.
const (
	opHello    = "hello"
	opLeaseAsk = "lease-ask"
	opLease    = "lease"
	opOrder    = "order"
	opBrake    = "brake"
	opEvent    = "event"    // the next event, once the one in Ack was delivered
	opEntrance = "entrance" // is it open?
	opEnter    = "enter"    // somebody has come; Data: from where, as the link says
	opJournals = "journals" // what was recorded while no server answered
	opJournal  = "journal"  // From: a stretch of one, named in Ack
	opForget   = "forget"   // Data: a receipt
)

// message is a request.
type message struct {
	Op     string `json:"op"`
	Data   []byte `json:"data,omitempty"`  // lease answer, order envelope, brake
	Nonce  []byte `json:"nonce,omitempty"` // lease: of the ask
	From   int64  `json:"from,omitempty"`  // lease: where Hashes start
	Hashes hashes `json:"hashes,omitempty"`
	Ack    string `json:"ack,omitempty"` // event: id of the one delivered
}

// hashes are a proof. A megabyte of empty ones would become many.
type hashes [][]byte

// UnmarshalJSON implements json.Unmarshaler.
func (h *hashes) UnmarshalJSON(b []byte) error {
	if len(b) > maxHashes {
		return fault.New(fault.Invalid, "cannot read proof: %d bytes", len(b))
	}
	return json.Unmarshal(b, (*[][]byte)(h))
}

// reply is an answer. An order's answer comes with a file descriptor.
type reply struct {
	Error  *replyError         `json:"error,omitempty"`
	Need   *Need               `json:"need,omitempty"`
	Status *Status             `json:"status,omitempty"`
	Data   []byte              `json:"data,omitempty"`
	Answer *wire.SessionAnswer `json:"answer,omitempty"`
	Brake  *wire.BrakeAnswer   `json:"brake,omitempty"`
	Event  *wire.Event         `json:"event,omitempty"`

	Entrance *Entrance `json:"entrance,omitempty"`
	Journals []Journal `json:"journals,omitempty"`
}

type replyError struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	Rule string `json:"rule,omitempty"`
}

// Need is a consistency proof that the warden wants before it judges. It is
// also the error with which Order and Lease say so.
type Need struct {
	Old int64 `json:"old"`
	New int64 `json:"new"`
	At  int64 `json:"at"` // the tree that this node knows: Envelope.From
}

// Error says what is needed.
func (n *Need) Error() string { return "the consistency proof between two checkpoints is needed first" }

// Status is what a warden says of itself and its host.
type Status struct {
	Node    string   `json:"node"`
	Mode    string   `json:"mode"`
	Floor   string   `json:"floor"`
	Missing []string `json:"missing,omitempty"`
	Trial   bool     `json:"trial"`
	Version string   `json:"version"`
	BootID  string   `json:"boot_id"`
	Live    int      `json:"live"` // sessions
	// Cosigned says that the host wants witnesses to have cosigned each order.
	Cosigned bool `json:"cosigned,omitempty"`
}

// send writes one message, with a file where there is one.
func send(c *net.UnixConn, v any, f *os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fault.New(fault.Exhausted, "cannot send to the warden: %d bytes are more than %d", len(b), maxFrame)
	}
	b = append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// receive reads one message, and the file that came with its first byte. The
// rest has to come within the given time, unless that is zero.
func receive(c *net.UnixConn, v any, wantFile bool, rest time.Duration) (*os.File, error) {
	var head [4]byte
	var oob []byte
	if wantFile {
		oob = make([]byte, unix.CmsgSpace(4))
	}
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	if rest > 0 {
		_ = c.SetReadDeadline(time.Now().Add(rest))
		defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	}
	if err == nil && n < len(head) {
		if n == 0 {
			return nil, io.EOF
		}
		_, err = io.ReadFull(c, head[n:])
	}
	if err != nil {
		return nil, err
	}
	var f *os.File
	if oobn > 0 {
		f = fileFrom(oob[:oobn])
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		closeFile(f)
		return nil, fault.New(fault.Invalid, "cannot read from the warden's socket: %d bytes are more than %d", size, maxFrame)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(c, b); err != nil {
		closeFile(f)
		return nil, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		closeFile(f)
		return nil, fault.Wrap(fault.Invalid, err, "cannot read from the warden's socket")
	}
	return f, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

func fileFrom(oob []byte) *os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var kept *os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if kept == nil {
				kept = os.NewFile(uintptr(fd), "session")
			} else {
				unix.Close(fd)
			}
		}
	}
	return kept
}

// Client speaks to a warden. Its methods may be called from several
// goroutines; each takes a connection of its own from a small pool.
type Client struct {
	path string
	dial func(ctx context.Context, path string) (*net.UnixConn, error)
	mu   sync.Mutex
	idle []*net.UnixConn
}

// NewClient returns a client of the warden at that socket.
func NewClient(path string) *Client { return &Client{path: path, dial: socket.Dial} }

// Close closes the idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}

func (c *Client) take(ctx context.Context) (*net.UnixConn, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	conn, err := c.dial(ctx, c.path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the warden").WithHint("is `handrail node` running as root on this host?")
	}
	return conn, nil
}

// do asks, and asks again where the warden went away before it answered: a newer
// program has taken its place. Nothing is done twice by that: an order is spent,
// a brake known, a lease asked for once.
func (c *Client) do(ctx context.Context, m message) (reply, *os.File, error) {
	const tries = 3
	for try := 1; ; try++ {
		r, f, err := c.once(ctx, m)
		gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
		if !gone || try == tries || ctx.Err() != nil {
			return r, f, err
		}
		c.Close() // those that idle are gone as well
	}
}

func (c *Client) once(ctx context.Context, m message) (reply, *os.File, error) {
	var r reply
	conn, err := c.take(ctx)
	if err != nil {
		return r, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = send(conn, m, nil)
	var f *os.File
	if err == nil {
		f, err = receive(conn, &r, m.Op == opOrder || m.Op == opEnter, 0)
	}
	if !stop() || err != nil {
		conn.Close()
		if err == nil {
			closeFile(f)
			err = ctx.Err()
		}
		return r, nil, fault.Wrap(fault.Unavailable, err, "cannot speak to the warden")
	}
	c.mu.Lock()
	if len(c.idle) < 8 {
		c.idle = append(c.idle, conn)
	} else {
		conn.Close()
	}
	c.mu.Unlock()
	if r.Error != nil {
		closeFile(f)
		e := fault.New(fault.ParseKind(r.Error.Kind), "%s", r.Error.Text)
		e.Hint, e.Rule = r.Error.Hint, r.Error.Rule
		return r, nil, e
	}
	if r.Need != nil {
		closeFile(f)
		return r, nil, r.Need
	}
	return r, f, nil
}

// Status asks who the warden is and what its host can do.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, _, err := c.do(ctx, message{Op: opHello})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, fault.New(fault.Internal, "cannot speak to the warden: it said nothing")
	}
	return *r.Status, nil
}

// LeaseAsk returns a request for a lease, with the warden's own nonce.
func (c *Client) LeaseAsk(ctx context.Context) ([]byte, error) {
	r, _, err := c.do(ctx, message{Op: opLeaseAsk})
	return r.Data, err
}

// Lease hands in the answer. A *Need error asks for a proof: call again with it.
func (c *Client) Lease(ctx context.Context, nonce, answer []byte, from int64, proof []tlog.Hash) error {
	_, _, err := c.do(ctx, message{Op: opLease, Data: answer, Nonce: nonce, From: from, Hashes: wire.HashList(proof)})
	return err
}

// Order hands in an order envelope. For a started session it returns the
// session's socket; the caller closes it.
func (c *Client) Order(ctx context.Context, envelope []byte) (wire.SessionAnswer, *os.File, error) {
	r, f, err := c.do(ctx, message{Op: opOrder, Data: envelope})
	if err != nil {
		return wire.SessionAnswer{}, nil, err
	}
	if r.Answer == nil {
		closeFile(f)
		return wire.SessionAnswer{}, nil, fault.New(fault.Internal, "cannot speak to the warden: no answer to an order")
	}
	return *r.Answer, f, nil
}

// Brake hands in a brake; it has acted when this returns.
func (c *Client) Brake(ctx context.Context, signed []byte) (wire.BrakeAnswer, error) {
	r, _, err := c.do(ctx, message{Op: opBrake, Data: signed})
	if err != nil || r.Brake == nil {
		return wire.BrakeAnswer{}, err
	}
	return *r.Brake, nil
}

// NextEvent waits for the next event. ack is the id of the event delivered
// before, which the warden then forgets; ok is false when none came for a while.
func (c *Client) NextEvent(ctx context.Context, ack string) (e wire.Event, ok bool, err error) {
	r, _, err := c.do(ctx, message{Op: opEvent, Ack: ack})
	if err != nil || r.Event == nil {
		return wire.Event{}, false, err
	}
	return *r.Event, true, nil
}
