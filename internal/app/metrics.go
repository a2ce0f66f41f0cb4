package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/store"
)

// metricsSection is the table of the configuration that opens /metrics, on a
// listener of its own. Off loopback a token is asked for:
//
//	[metrics]
//	listen = "127.0.0.1:7083"
//	token_file = "metrics.token"
type metricsSection struct {
	Listen    string `toml:"listen" json:"listen"`
	TokenFile string `toml:"token_file" json:"-"`
	Token     string `toml:"-" json:"token,omitempty"`
}

func (m *metricsSection) check() error {
	if m == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(m.Listen)
	if err != nil {
		return fault.New(fault.Invalid, "cannot open metrics at %q: it is not ADDRESS:PORT", m.Listen).WithHint(`listen = "127.0.0.1:7083"`)
	}
	if !at.Addr().IsLoopback() && m.TokenFile == "" {
		return fault.New(fault.Invalid, "cannot open metrics at %s without a token: others could read them", m.Listen).WithHint(`token_file = "metrics.token"`)
	}
	return nil
}

func (m *metricsSection) complete(config string) error {
	if m == nil || m.TokenFile == "" {
		return nil
	}
	token, err := secretFile(config, m.TokenFile)
	if err == nil {
		m.Token = string(token.Reveal())
	}
	return err
}

// serveMetrics answers until ctx ends; without the table it opens nothing.
func (s *Server) serveMetrics(ctx context.Context) error {
	m := s.c.sections.Metrics
	if m == nil {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", m.Listen)
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot open metrics at %s", m.Listen).WithHint("[metrics] listen = another port")
	}
	srv := &http.Server{
		Handler: metricsHandler(m.Token, s.metrics), ReadTimeout: 5 * time.Second, WriteTimeout: 20 * time.Second, MaxHeaderBytes: 8 << 10,
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func metricsHandler(token string, write func(context.Context, *exposition) error) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + token))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if token != "" && subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			http.Error(w, "a token is needed", http.StatusUnauthorized)
			return
		}
		var e exposition
		if err := write(r.Context(), &e); err != nil {
			http.Error(w, "metrics cannot be read", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(e.b.Bytes())
	})
	return mux
}

// exposition is Prometheus's text format, version 0.0.4.
type exposition struct{ b bytes.Buffer }

func (e *exposition) head(name, kind, help string) {
	fmt.Fprintf(&e.b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// label writes one label; its value is escaped.
func label(name, value string) string {
	return "{" + name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"}`
}

func (e *exposition) value(name, labels string, v float64) {
	e.b.WriteString(name + labels + " " + strconv.FormatFloat(v, 'g', -1, 64) + "\n")
}

func (e *exposition) gauge(name, help string, v float64) {
	e.head(name, "gauge", help)
	e.value(name, "", v)
}

func (e *exposition) counter(name, help string, v float64) {
	e.head(name, "counter", help)
	e.value(name, "", v)
}

// histogram writes counts that are not yet summed up; the last is beyond all bounds.
func (e *exposition) histogram(name, help string, bounds []float64, counts []uint64, sum float64) {
	e.head(name, "histogram", help)
	var total uint64
	for i, n := range counts {
		total += n
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i], 'g', -1, 64)
		}
		e.value(name+"_bucket", label("le", le), float64(total))
	}
	e.value(name+"_sum", "", sum)
	e.value(name+"_count", "", float64(total))
}

// metrics says how this server does. No name, id or address of anybody is in it.
func (s *Server) metrics(ctx context.Context, e *exposition) error {
	e.head("handrail_build_info", "gauge", "The version of this server.")
	e.value("handrail_build_info", `{version=`+strconv.Quote(s.c.Version)+`,goversion=`+strconv.Quote(runtime.Version())+`}`, 1)
	e.gauge("handrail_sessions_live", "Sessions that this server is the home of.", float64(s.sessions.CountLive()))
	e.counter("handrail_logins_failed_total", "Logins that failed at this server.", float64(s.people.FailedLogins()))
	if err := s.ledgerMetrics(ctx, e); err != nil {
		return err
	}
	if err := s.nodeMetrics(ctx, e); err != nil {
		return err
	}
	if s.c.sections.Directory != nil {
		st, err := s.directory.Status(ctx)
		if err != nil {
			return err
		}
		if !st.Seen.IsZero() {
			e.gauge("handrail_directory_age_seconds", "Time since the company's directory last answered.", time.Since(st.Seen).Seconds())
		}
		e.gauge("handrail_directory_stale", "1 when the copy of the directory is older than its limit.", flag(st.Stale))
	}
	e.gauge("handrail_goroutines", "Goroutines of this server.", float64(runtime.NumGoroutine()))
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	e.gauge("handrail_heap_bytes", "Bytes of the heap in use.", float64(mem.HeapInuse))
	return nil
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *Server) ledgerMetrics(ctx context.Context, e *exposition) error {
	size := s.store.Size()
	e.counter("handrail_ledger_entries_total", "Entries of the ledger.", float64(size))
	e.gauge("handrail_ledger_damaged", "1 when the ledger takes no entry.", flag(s.store.Damage() != nil))
	counts, seconds := s.store.Commits()
	e.histogram("handrail_commit_duration_seconds", "Time until a change and its entry were durable.", store.CommitBounds(), counts, seconds)
	e.gauge("handrail_brakes_spooled", "Brakes that wait for the database.", float64(s.store.Spool().Held()))
	var grants map[string]int64
	err := s.store.View(ctx, func(v *store.View) (err error) {
		grants, err = access.CountTx(v)
		return err
	})
	if err != nil {
		return err
	}
	e.head("handrail_grants", "gauge", "Grants by state.")
	for _, state := range sorted(grants) {
		e.value("handrail_grants", label("state", state), float64(grants[state]))
	}
	if list, _, _ := s.circle.List(); len(list) > 0 {
		e.head("handrail_witness_lag_entries", "gauge", "Entries that a witness has not cosigned.")
		for _, w := range list {
			e.value("handrail_witness_lag_entries", label("witness", w.Name), float64(max(size-w.Size, 0)))
		}
	}
	return nil
}

func (s *Server) nodeMetrics(ctx context.Context, e *exposition) error {
	hosts, err := s.hosts.List(ctx, "")
	if err != nil {
		return err
	}
	states := map[string]int64{}
	var oldest time.Duration
	for _, h := range hosts {
		if h.Agentless() {
			continue
		}
		n := s.fleet.Node(h.ID)
		states[string(n.State)]++
		if n.State == fleet.Online || n.State == fleet.Stale {
			oldest = max(oldest, time.Since(n.Seen))
		}
	}
	e.head("handrail_nodes", "gauge", "Nodes by state.")
	for _, state := range sorted(states) {
		e.value("handrail_nodes", label("state", state), float64(states[state]))
	}
	e.gauge("handrail_node_lease_age_seconds", "Age of the oldest lease of a node that is connected.", oldest.Seconds())
	return nil
}

func sorted(m map[string]int64) []string { return slices.Sorted(maps.Keys(m)) }
