package store

import "syscall"

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, which package syscall has no name for.
const tcpUserTimeout = 0x12

// giveUpUnanswered has a connection fail when what was sent stays
// unacknowledged for lostAfter. Without it a database that the network took
// away is waited for a quarter of an hour.
func giveUpUnanswered(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(lostAfter.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
