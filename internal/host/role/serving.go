package role

import (
	"log/slog"
	"net"
	"os"
)

// SayServing tells systemd, where that started us and asked (sd_notify(3)), that
// all roles serve: so a start that failed is not taken for one that did not.
func SayServing(log *slog.Logger) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		c.Close()
	}
	if err != nil {
		log.Error("cannot tell systemd that handrail serves", "error", err)
	}
}
