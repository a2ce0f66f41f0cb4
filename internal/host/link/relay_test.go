package link

import (
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
)

// heldBack is a connection that is read only once it may be.
type heldBack struct {
	net.Conn
	may chan struct{}
}

func (h heldBack) Read(b []byte) (int, error) {
	<-h.may
	return h.Conn.Read(b)
}

// A command that is over at once has ended before the client says that it has
// no input. That news finds no keeper, and must not cost the exit behind it.
func TestTheLastWordsOfAKeeperOutliveInputThatComesTooLate(t *testing.T) {
	mine, theirs := socketPair(t)
	out := wire.NewWriter(theirs)
	if err := out.Write(wire.FrameStdout, []byte("done\n")); err != nil {
		t.Fatal(err)
	}
	if err := out.Write(wire.FrameExit, wire.EncodeExit(wire.Exit{Status: 3})); err != nil {
		t.Fatal(err)
	}
	theirs.Close() // the keeper is gone

	synctest.Test(t, func(t *testing.T) {
		server, node := net.Pipe()
		keeper := heldBack{mine, make(chan struct{})}
		over := make(chan struct{})
		go func() { relay(node, keeper); close(over) }()
		if err := wire.NewWriter(server).Write(wire.FrameEOF, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the end of input has met the closed socket
		close(keeper.may)

		in := wire.NewReader(server)
		if kind, p, err := in.Next(); kind != wire.FrameStdout || string(p) != "done\n" {
			t.Fatalf("the output came as %d %q, %v", kind, p, err)
		}
		kind, p, err := in.Next()
		if err != nil || kind != wire.FrameExit {
			t.Fatalf("the exit was lost: %d, %v", kind, err)
		}
		if e, err := wire.DecodeExit(p); err != nil || e.Status != 3 {
			t.Errorf("it exited with %+v, %v", e, err)
		}
		if _, _, err := in.Next(); err != io.EOF {
			t.Errorf("after the exit came %v", err)
		}
		<-over
	})
}

func TestAKeeperIsCutOffWhenItsGatewayIsGone(t *testing.T) {
	mine, theirs := socketPair(t)
	server, node := net.Pipe()
	over := make(chan struct{})
	go func() { relay(node, mine); close(over) }()
	server.Close()
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the keeper read %v", err)
	}
	<-over
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}
