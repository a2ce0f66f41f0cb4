package keeper

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

// pumpAll sends what the session prints until both streams have run dry.
func (k *keeper) pumpAll(stdout, stderr *os.File) {
	defer close(k.pumped)
	var wg sync.WaitGroup
	if stderr != nil {
		wg.Add(1)
		go func() {
			defer wg.Done()
			k.pump(wire.FrameStderr, stderr)
		}()
	}
	k.pump(wire.FrameStdout, stdout)
	wg.Wait()
}

// pump copies one stream. It reads straight into a frame and waits for the
// peer: the program is slowed down, nothing is dropped. When the peer is gone,
// it still empties the pipe, so that a dying program is not held up by us.
func (k *keeper) pump(t wire.FrameType, f *os.File) {
	var b wire.Block
	gone := false
	for {
		n, err := f.Read(b.Payload())
		if n > 0 {
			k.copy.write(t, b.Payload()[:n])
			k.log.write(t, b.Payload()[:n])
			if !gone && k.out.WriteBlock(t, &b, n) != nil {
				gone = true
				go k.end(WhyGateway)
			}
			if left := k.budget.Load(); left >= 0 && k.budget.Add(-int64(n)) < 0 {
				k.budget.Store(-1) // once
				go k.end(WhyBudget)
			}
		}
		if err != nil { // io.EOF, or EIO of a pty whose last user is gone
			return
		}
	}
}

// inputQueue is how many frames of input may wait for the program, so that a
// resize or a signal behind them is still seen; then the peer waits.
const inputQueue = 32

var buffers = sync.Pool{New: func() any { return new([wire.MaxFrame]byte) }}

type input struct {
	b *[wire.MaxFrame]byte
	n int // -1: end of input
}

// takeFrames reads what the server sends. When the stream closes, the gateway
// is gone, and with it the session.
func (k *keeper) takeFrames() {
	queue := make(chan input, inputQueue)
	var waiting atomic.Int32
	go k.feed(queue, &waiting)
	stdin, err := k.stdin.SyscallConn()
	if err != nil {
		k.end(WhyLost)
		return
	}
	r := wire.NewReader(k.conn)
	eof := false
	for {
		t, p, err := r.Next()
		if err != nil {
			k.end(WhyGateway)
			return
		}
		switch t {
		case wire.FrameStdin:
			if !eof && len(p) > 0 {
				k.log.write(t, p)
				if waiting.Load() == 0 {
					p = p[takenAtOnce(stdin, p):]
				}
				if len(p) == 0 {
					continue
				}
				in := input{buffers.Get().(*[wire.MaxFrame]byte), len(p)}
				copy(in.b[:], p)
				waiting.Add(1)
				queue <- in
			}
		case wire.FrameEOF:
			if !eof {
				eof = true
				waiting.Add(1)
				queue <- input{n: -1}
			}
		default:
			k.control(t, p)
		}
	}
}

// takenAtOnce gives the program what it has room for, without waiting: a key
// need not wake another goroutine on its way. An error is left to who waits.
func takenAtOnce(stdin syscall.RawConn, p []byte) (n int) {
	_ = stdin.Write(func(fd uintptr) bool {
		n, _ = unix.Write(int(fd), p)
		return true
	})
	return max(n, 0)
}

// control handles the frames that are not input. Malformed ones are ignored:
// none of them gives anything.
func (k *keeper) control(t wire.FrameType, p []byte) {
	switch t {
	case wire.FrameResize:
		if cols, rows, err := wire.DecodeResize(p); err == nil && k.spec.Session.PTY {
			k.log.write(t, p)
			_ = k.child.Resize(cols, rows)
		}
	case wire.FrameSignal:
		if sig, ok := signals[string(p)]; ok {
			_ = k.child.Signal(sig)
		}
	case wire.FramePing:
		_ = k.out.Write(wire.FramePong, p)
	case wire.FrameDeadline:
		if ms, err := wire.DecodeDeadline(p); err == nil {
			k.shorten(time.Duration(ms) * time.Millisecond)
		}
	}
}

// feed writes input for which the program had no room. A program that has closed its input costs
// the input, not the session.
func (k *keeper) feed(queue <-chan input, waiting *atomic.Int32) {
	dead := false
	for in := range queue {
		if in.n < 0 {
			k.closeInput()
			waiting.Add(-1)
			continue
		}
		if !dead {
			if _, err := k.stdin.Write(in.b[:in.n]); err != nil && !errors.Is(err, syscall.EAGAIN) {
				dead = true
			}
		}
		buffers.Put(in.b)
		waiting.Add(-1)
	}
}

// closeInput ends the program's input: a pipe is closed; a terminal gets its
// end-of-file character, and only if it is in the mode that knows it.
func (k *keeper) closeInput() {
	if !k.spec.Session.PTY {
		_ = k.stdin.Close()
		return
	}
	rc, err := k.stdin.SyscallConn()
	if err != nil {
		return
	}
	var tio *unix.Termios
	_ = rc.Control(func(fd uintptr) { tio, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	if err == nil && tio.Lflag&unix.ICANON != 0 {
		_, _ = k.stdin.Write([]byte{tio.Cc[unix.VEOF]})
	}
}

// say prints handrail's own words in the terminal. They are part of the
// output, so that they are recorded where they were seen.
func (k *keeper) say(text string) {
	k.copy.write(wire.FrameStdout, []byte(text))
	k.log.write(wire.FrameStdout, []byte(text))
	_ = k.out.Write(wire.FrameStdout, []byte(text))
}

// refused is told once, by the sandbox, of the first thing that it refused.
// The gateway shows it to the person in the way that suits the client.
func (k *keeper) refused(r sandbox.Refusal) {
	text := refusalText(k.spec, r)
	go func() { // the notifier's goroutine must not wait for the peer
		_ = k.out.Write(wire.FrameRefusal, []byte(text))
	}()
}

var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "KILL": syscall.SIGKILL,
	"TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "ALRM": syscall.SIGALRM,
	"PIPE": syscall.SIGPIPE, "WINCH": syscall.SIGWINCH, "TSTP": syscall.SIGTSTP, "CONT": syscall.SIGCONT,
}

func signalName(s syscall.Signal) string {
	name := unix.SignalName(s)
	if len(name) > 3 {
		return name[3:]
	}
	return name
}
