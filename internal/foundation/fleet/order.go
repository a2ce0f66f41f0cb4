package fleet

import (
	"context"
	"net"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// answerTime bounds the wait for a node to verify an order and start.
const answerTime = 20 * time.Second

// Stream is a session's stream on a node.
type Stream struct {
	*wire.Reader
	*wire.Writer
	conn net.Conn
}

// Close ends the stream; the keeper at the other end ends the session.
func (s *Stream) Close() error { return s.conn.Close() }

// Start sends the order that the pass recorded for this host and returns the
// session's stream once the node has verified it and started. Bulk streams
// (no terminal) ride on a connection of their own, so that a copy does not
// delay keystrokes.
func (f *Fleet) Start(ctx context.Context, pass doorway.Pass, host string, bulk bool) (*Stream, wire.SessionAnswer, error) {
	var answer wire.SessionAnswer
	if !pass.Valid() {
		return nil, answer, fault.New(fault.Internal, "cannot send an order without a pass")
	}
	envelope, size, err := f.envelope(ctx, pass, host)
	if err != nil {
		return nil, answer, err
	}
	conn, err := f.open(ctx, host, bulk)
	if err != nil {
		return nil, answer, err
	}
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := wire.WriteSessionOrder(conn, envelope); err != nil {
		conn.Close()
		return nil, answer, fault.Wrap(fault.Unavailable, err, "cannot reach the node of %s", host)
	}
	if answer, err = wire.ReadAnswer(conn); err != nil {
		conn.Close()
		return nil, answer, fault.Wrap(fault.Unavailable, err, "cannot hear the node of %s", host).
			WithHint("handrail host show %s", host)
	}
	answer = answer.Plain()
	if err := answer.Err(); err != nil {
		conn.Close()
		return nil, answer, err
	}
	f.proved(host, size)
	_ = conn.SetDeadline(time.Time{})
	return &Stream{Reader: wire.NewReader(conn), Writer: wire.NewWriter(conn), conn: conn}, answer, nil
}

// Resume sends an order that answers and ends, such as session.resume.
func (f *Fleet) Resume(ctx context.Context, pass doorway.Pass, host string) error {
	s, _, err := f.Start(ctx, pass, host, false)
	if err != nil {
		return err
	}
	return s.Close()
}

// envelope builds the order from the pass's own entry for this host and adds
// the consistency proof from the tree that the node last saw. size is that of
// the tree that the node has seen once it accepts.
func (f *Fleet) envelope(ctx context.Context, pass doorway.Pass, host string) (raw []byte, size int64, err error) {
	receipt := pass.Receipt()
	for i, e := range receipt.Entries() {
		p, err := wire.ParseOrderPayload(e.Payload)
		if err != nil || p.Node != host {
			continue
		}
		proof, err := receipt.Proof(ctx, i)
		if err != nil {
			return nil, 0, err
		}
		if proof, err = f.witnessed(ctx, host, proof); err != nil {
			return nil, 0, err
		}
		order, err := wire.BuildOrder(proof, f.d.Ring.Order())
		if err != nil {
			return nil, 0, fault.Wrap(fault.Internal, err, "cannot build an order")
		}
		env := wire.Envelope{Order: order}
		size := f.addConsistency(ctx, &env, host, proof.Checkpoint)
		return env.Marshal(), size, nil
	}
	return nil, 0, fault.New(fault.Internal, "cannot send an order to %s: the pass recorded none for it", host)
}

// addConsistency is a courtesy that saves the node a question; on any trouble
// the node asks for itself. It returns the size of the order's own tree.
func (f *Fleet) addConsistency(ctx context.Context, env *wire.Envelope, host string, checkpoint []byte) (size int64) {
	f.mu.Lock()
	known := f.nodeLocked(host).size
	f.mu.Unlock()
	tree, err := f.openCheckpoint(checkpoint)
	if err != nil || known == 0 || known == tree.N {
		return tree.N
	}
	if hashes, err := f.d.Store.Consistency(ctx, min(known, tree.N), max(known, tree.N)); err == nil {
		env.From, env.Consistency = known, hashes
	}
	return tree.N
}

// proved notes that a node accepted an order of a tree of that size, so that
// the next order brings the proof from there. What a lease says counts anew.
func (f *Fleet) proved(host string, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodeLocked(host); size > n.size {
		n.size = size
	}
}

// open opens a stream to the node, here or by way of the server it is
// connected to.
func (f *Fleet) open(ctx context.Context, host string, bulk bool) (net.Conn, error) {
	f.mu.Lock()
	here := f.nodeLocked(host).control != nil
	f.mu.Unlock()
	if !here && f.d.Cluster != nil {
		return f.openElsewhere(ctx, host, bulk)
	}
	return f.openHere(host, bulk)
}

func (f *Fleet) openHere(host string, bulk bool) (net.Conn, error) {
	f.mu.Lock()
	n := f.nodeLocked(host)
	session := n.control
	if bulk && n.bulk != nil {
		session = n.bulk
	}
	f.mu.Unlock()
	if session == nil {
		return nil, fault.New(fault.Unavailable, "cannot reach the node of %s: it is not connected", host).
			WithHint("handrail host show %s", host)
	}
	conn, err := session.Open()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the node of %s", host).WithHint("handrail host show %s", host)
	}
	return conn, nil
}
