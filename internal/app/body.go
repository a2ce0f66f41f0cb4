package app

import (
	"io"
	"net/http"
	"time"
)

// bodyTime is how long a request's body may take: the largest is a set of
// policy files, and nobody streams towards the server but by WebSocket.
const bodyTime = 30 * time.Second

// promptBodies ends a connection whose body trickles. The server's own read
// timeout would also end the streams that go the other way, which have sent
// their body long ago.
func promptBodies(next http.Handler, most time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			c := http.NewResponseController(w)
			if c.SetReadDeadline(time.Now().Add(most)) == nil {
				r.Body = &promptBody{ReadCloser: r.Body, c: c}
			}
		}
		next.ServeHTTP(w, r)
	})
}

// promptBody takes the deadline away when the body is there.
type promptBody struct {
	io.ReadCloser
	c *http.ResponseController
}

func (b *promptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.c.SetReadDeadline(time.Time{}) // a connection that is gone needs none
	}
	return n, err
}
