// Package socket opens unix sockets by the path of their file, however long the
// folder's path is. The kernel takes 107 bytes (unix(7)), and a data folder may
// lie deeper than that.
package socket

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path that the kernel takes.
const maxPath = 107

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Listen makes the socket at path. Where the path is long its file stays when
// the listener is closed; whoever makes it anew removes it first, as after a
// crash.
func Listen(path string) (*net.UnixListener, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err == nil && short != path {
		l.SetUnlinkOnClose(false) // by then the number can be another folder's
	}
	return l, err
}

// shorten is the same file by way of its folder, which is held open until done.
// That takes no right to read the folder, only to enter it.
func shorten(path string) (short string, done func(), err error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &net.OpError{Op: "open", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)), func() { unix.Close(dir) }, nil
}
