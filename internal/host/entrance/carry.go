package entrance

import (
	"net"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/wire"
)

// carry moves bytes between the client's channel and the keeper's frames until
// the keeper has said how the session ended, or the client is gone.
func carry(ch ssh.Channel, reqs <-chan *ssh.Request, keeper net.Conn) {
	out := wire.NewWriter(keeper)
	var wg sync.WaitGroup
	wg.Go(func() {
		controls(reqs, out)
		keeper.Close() // the client is gone, and with it the session
	})
	go func() { // ends when the channel is closed, below
		buf := make([]byte, wire.MaxFrame)
		for {
			n, err := ch.Read(buf)
			if n > 0 && out.Write(wire.FrameStdin, buf[:n]) != nil {
				return
			}
			if err != nil {
				_ = out.Write(wire.FrameEOF, nil)
				return
			}
		}
	}()
	show(ch, keeper)
	keeper.Close()
	ch.Close()
	wg.Wait()
}

// controls turns the client's requests into frames, until the client is gone.
func controls(reqs <-chan *ssh.Request, out *wire.Writer) {
	for r := range reqs {
		ok := false
		switch r.Type {
		case "window-change":
			var p struct{ Cols, Rows, Width, Height uint32 }
			if ok = ssh.Unmarshal(r.Payload, &p) == nil; ok {
				_ = out.Write(wire.FrameResize, wire.EncodeResize(uint16(min(p.Cols, 1000)), uint16(min(p.Rows, 1000))))
			}
		case "signal":
			var name string
			if name, ok = text(r.Payload); ok && len(name) < 16 {
				_ = out.Write(wire.FrameSignal, []byte(name))
			}
		}
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
	}
}

// show passes on what the session says, until it says that it has ended.
func show(ch ssh.Channel, keeper net.Conn) {
	r := wire.NewReader(keeper)
	for {
		t, p, err := r.Next()
		if err != nil {
			return // the keeper died: no status, which ssh shows as 255
		}
		switch t {
		case wire.FrameStdout:
			_, err = ch.Write(p)
		case wire.FrameStderr:
			_, err = ch.Stderr().Write(p)
		case wire.FrameNotice, wire.FrameRefusal:
			_, err = ch.Stderr().Write([]byte("\r\nhandrail: " + strings.TrimSpace(wire.Plain(string(p), 1024)) + "\r\n"))
		case wire.FrameExit:
			e, derr := wire.DecodeExit(p)
			if derr != nil {
				return
			}
			if e.Why != "" {
				_, _ = ch.Stderr().Write([]byte("\r\nhandrail: this session has ended: " + e.Why + "\r\n"))
			}
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(e.Status)}))
			return
		}
		if err != nil {
			return
		}
	}
}
