package keeper

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
)

// ends are the two ends of a session socket.
func ends(t *testing.T) (keeper, gateway *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var both [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "session")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		both[i] = c.(*net.UnixConn)
	}
	return both[0], both[1]
}

// A key goes to the program at once and a flood waits for it; whichever way
// bytes take, they stay in order, and the end of input comes after them.
func TestInputArrivesInOrderHoweverSlowTheProgramReads(t *testing.T) {
	mine, theirs, err := pipes(false)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(theirs)
	conn, gateway := ends(t)
	k := &keeper{conn: conn, out: wire.NewWriter(conn), stdin: mine[0], ending: make(chan struct{})}
	_, _ = unix.FcntlInt(mine[0].Fd(), unix.F_SETPIPE_SZ, 4<<10)
	if err := unix.SetNonblock(int(mine[0].Fd()), true); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); k.takeFrames() }()
	random := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(random.Uint32())
	}
	go func() {
		w := wire.NewWriter(gateway)
		for left := want; len(left) > 0; {
			n := min(len(left), 1+random.IntN(1<<random.IntN(17)))
			if w.Write(wire.FrameStdin, left[:n]) != nil {
				return
			}
			left = left[n:]
		}
		_ = w.Write(wire.FrameEOF, nil)
	}()
	got, err := io.ReadAll(theirs[0])
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, or others: %v", len(got), len(want), err)
	}
	gateway.Close()
	<-done
}
