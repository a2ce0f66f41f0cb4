package witness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"handrail.dev/handrail/internal/foundation/crowd"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Bounds of a witness's port.
const (
	maxGuests   = 256
	maxFromOne  = 64
	requestTime = 10 * time.Second
	idleTime    = 2 * time.Minute
)

// The words of the protocol.
const (
	addPath  = "/add-checkpoint"
	sizeType = "text/x.tlog.size"
)

// ServeHTTP answers add-checkpoint (C2SP tlog-witness), and says who it is to
// whoever looks. There is nothing to log in to: what counts is the signature
// of the log.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case r.URL.Path == addPath && r.Method == http.MethodPost:
		w.serveAdd(rw, r)
	case r.URL.Path == addPath:
		rw.Header().Set("Allow", http.MethodPost)
		http.Error(rw, "cannot "+r.Method+" here: a checkpoint is POSTed", http.StatusMethodNotAllowed)
	case r.URL.Path == "/" || r.URL.Path == "":
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(rw, "A witness (c2sp.org/tlog-witness). Its key:\n\n    %s\n", w.Key())
	default:
		http.Error(rw, "cannot find this page", http.StatusNotFound)
	}
}

func (w *Witness) serveAdd(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, ledger.MaxSubmission))
	if err != nil {
		http.Error(rw, "cannot read the submission", http.StatusBadRequest)
		return
	}
	line, err := w.Add(body, time.Now())
	var conflict *ConflictError
	var fork *ForkError
	switch {
	case err == nil:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(line)
	case errors.As(err, &conflict):
		rw.Header().Set("Content-Type", sizeType)
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", conflict.Size)
	case errors.As(err, &fork):
		http.Error(rw, err.Error(), http.StatusUnprocessableEntity)
	default:
		f := fault.From(err)
		status := map[fault.Kind]int{fault.Invalid: http.StatusBadRequest, fault.NotFound: http.StatusNotFound, fault.Denied: http.StatusForbidden}[f.Kind]
		if status == 0 {
			status = http.StatusInternalServerError
		}
		http.Error(rw, f.Text, status)
	}
}

// Serve answers on a port until ctx ends. Strangers cannot fill it: whoever
// has been silent longest goes.
func (w *Witness) Serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	srv := &http.Server{
		Handler: w, ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: requestTime,
		IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(&door{l, crowd.New(maxGuests, maxFromOne)}); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fault.Wrap(fault.Unavailable, err, "cannot answer as a witness")
	}
	return nil
}

// door is a listener with a crowd behind it.
type door struct {
	net.Listener
	crowd *crowd.Crowd
}

// Accept lets the next one in.
func (d *door) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return d.crowd.Admit(c), nil
}
