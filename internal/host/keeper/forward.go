package keeper

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// dialTime bounds how long the other end of a forwarded port may take to answer.
const dialTime = 10 * time.Second

// serveForward connects to the destination in argv and carries bytes both
// ways. It runs inside the sandbox, as the session's own uid. It is over when
// the destination has said all that it says.
func serveForward() int {
	if len(os.Args) < 2 {
		return 1
	}
	conn, err := net.DialTimeout("tcp", os.Args[1], dialTime)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	if _, err := io.WriteString(os.Stderr, wire.ForwardConnected); err != nil {
		return 1
	}
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
