package role

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSystemdHearsThatHandrailServes(t *testing.T) {
	dir, err := os.MkdirTemp("", "serving") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, path := range []string{filepath.Join(dir, "notify"), "@" + dir + "/abstract"} {
		c, err := net.ListenPacket("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		t.Setenv("NOTIFY_SOCKET", path)
		SayServing(slog.Default())
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		said := make([]byte, 64)
		n, _, err := c.ReadFrom(said)
		if err != nil || string(said[:n]) != "READY=1" {
			t.Errorf("%s heard %q, %v", path, said[:n], err)
		}
	}
}
