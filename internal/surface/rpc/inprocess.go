package rpc

import (
	"io"
	"net/http"
	"strings"
	"sync"
)

// InProcess is a transport straight into the API, for the page: its calls
// pass the same interceptor and doorway as anybody's. Streams work: the body
// is read while the handler writes.
func InProcess(api http.Handler) http.RoundTripper { return inProcess{api} }

// FromNetwork removes what only the page itself may say.
func FromNetwork(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "Handrail-") {
				delete(r.Header, name)
			}
		}
		api.ServeHTTP(w, r)
	})
}

type inProcess struct{ api http.Handler }

// RoundTrip implements http.RoundTripper.
func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	body, write := io.Pipe()
	w := &responder{header: http.Header{}, body: write, started: make(chan struct{})}
	go func() {
		defer func() {
			w.WriteHeader(http.StatusOK)
			write.Close()
		}()
		t.api.ServeHTTP(w, in)
	}()
	select {
	case <-w.started:
	case <-r.Context().Done():
		body.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	return &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: w.sent, Body: body, ContentLength: -1, Request: r,
	}, nil
}

// responder is the handler's end. Connect's own protocol needs no trailers.
type responder struct {
	header  http.Header
	sent    http.Header
	body    *io.PipeWriter
	code    int
	once    sync.Once
	started chan struct{}
}

func (w *responder) Header() http.Header { return w.header }

func (w *responder) WriteHeader(code int) {
	w.once.Do(func() {
		w.code, w.sent = code, w.header.Clone()
		close(w.started)
	})
}

func (w *responder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// Flush sends the header; the pipe holds nothing back.
func (w *responder) Flush() { w.WriteHeader(http.StatusOK) }
