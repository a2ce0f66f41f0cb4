package fleet

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A bus between servers is routed straight or not at all. So that a brake reaches
// a server to which there is no route, an ask that nobody answered goes over a
// connection of its own as well: the same signed bytes, which act once whichever
// way they come.

// askBy asks over a connection of its own.
func (b *between) askBy(ctx context.Context, server string, signed []byte, heard chan<- []byte) {
	c, err := b.f.DialPeer(ctx, server, wire.PeerHello{V: 1, Use: wire.PeerTalk})
	if err != nil {
		return // whoever asked hears that nobody answers
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	if sendMessage(c, signed) != nil {
		return
	}
	if raw, err := receiveMessage(c); err == nil {
		heard <- raw // which has room for one from each way
	}
}

// answerOn answers what comes over a connection of another server's.
func (b *between) answerOn(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(answerTime + helloTime))
	raw, err := receiveMessage(c)
	if err != nil {
		return
	}
	done := make(chan []byte, 1)
	if !b.take(ctx, raw, func(_ wire.PeerAsk, signed []byte) { done <- signed }) {
		return // the answer goes the way on which it came first, if it did
	}
	select {
	case signed := <-done:
		_ = sendMessage(c, signed)
	case <-time.After(answerTime + helloTime): // it could not be signed
	case <-ctx.Done():
	}
}

func sendMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receiveMessage(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > wire.MaxPeer {
		return nil, fault.New(fault.Invalid, "cannot read a server's message: %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
