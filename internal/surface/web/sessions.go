package web

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routeSessions(mux *http.ServeMux) {
	mux.HandleFunc("GET /sessions", s.page(s.showSessions))
	mux.HandleFunc("GET /sessions/{id}", s.page(s.showSession))
	mux.HandleFunc("POST /sessions/{id}/ticket", s.page(s.ticket))
	mux.HandleFunc("POST /sessions/{id}/replay", s.page(s.replay))
	mux.HandleFunc("POST /sessions/{id}/pause", s.open(s.pause))
	mux.HandleFunc("POST /sessions/{id}/resume", s.page(s.resume))
	mux.HandleFunc("POST /sessions/{id}/stop", s.open(s.stop))
}

func (s *site) showSessions(v *visit) error {
	live, err := s.sessions.List(v.ctx, &v1.ListSessionsRequest{LiveOnly: true, Limit: 200})
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	all, err := s.sessions.List(v.ctx, &v1.ListSessionsRequest{Limit: 50, Before: q.Get("before"), Person: q.Get("person"), Host: q.Get("host")})
	if err != nil {
		return err
	}
	var ended []*v1.Session
	for _, x := range all.Sessions {
		if x.State == "ended" {
			ended = append(ended, x)
		}
	}
	older := ""
	if len(all.Sessions) == 50 {
		older = all.Sessions[49].Id
	}
	f := v.frame("Sessions", "sessions")
	return v.show(f, sessionsPage(f, live.Sessions, ended, older))
}

func (s *site) showSession(v *visit) error {
	got, err := s.sessions.Get(v.ctx, &v1.GetSessionRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	return s.terminal(v, got, "", "")
}

// terminal shows the page of one session. With a ticket the terminal attaches
// with it at once, and nothing may keep the page.
func (s *site) terminal(v *visit, got *v1.GetSessionResponse, mode, ticket string) error {
	nonce := rand.Text()
	v.nonce = nonce
	v.w.Header().Set("Content-Security-Policy", policyWithStyles(nonce))
	f := v.frame(got.Session.PersonName+" on "+got.Session.HostName, "sessions")
	f.Script = "term.js"
	f.Path = "/sessions/" + got.Session.Id // also when a form led here
	body := sessionPage(f, got, mode, ticket, v.askedMoment())
	if ticket != "" {
		return v.secret(f, body)
	}
	return v.show(f, body)
}

// ticket lets the terminal attach: watch or join.
func (s *site) ticket(v *visit) error {
	var ask struct {
		Mode string `json:"mode"`
	}
	if err := v.take(&ask); err != nil {
		return err
	}
	got, err := s.sessions.Attach(v.ctx, &v1.AttachSessionRequest{Id: v.r.PathValue("id"), Mode: ask.Mode})
	if err != nil {
		return err
	}
	return v.answer(map[string]string{"ticket": got.Ticket})
}

func (s *site) pause(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.sessions.Pause(v.ctx, &v1.PauseSessionRequest{Id: id, Reason: v.form("reason")}); err != nil {
		return err
	}
	return v.braked("/sessions/"+id, "paused")
}

func (s *site) resume(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.sessions.Resume(v.ctx, &v1.ResumeSessionRequest{Id: id}); err != nil {
		return err
	}
	return v.goOn("/sessions/"+id, "resumed")
}

func (s *site) stop(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.sessions.Stop(v.ctx, &v1.StopSessionRequest{Id: id, Reason: v.form("reason")}); err != nil {
		return err
	}
	s.untilEnded(v, id)
	return v.braked("/sessions/"+id, "stopped")
}

// untilEnded waits, not for long, until a stopped session is over on its host:
// the page that comes next says so, and shows the recording. A host that is
// away ends it later by itself.
func (s *site) untilEnded(v *visit, id string) {
	ctx, cancel := context.WithTimeout(v.ctx, stopPatience)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		got, err := s.sessions.Get(ctx, &v1.GetSessionRequest{Id: id})
		if err != nil || got.Session.GetState() == "ended" {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// stopPatience is how long a person waits for the word that a session is over.
const stopPatience = 4 * time.Second

// played is one event of a recording on its way to the terminal.
type played struct {
	At   uint64 `json:"t"` // microseconds since the start
	Kind string `json:"k"`
	Data []byte `json:"d,omitempty"`
	Cols uint32 `json:"c,omitempty"`
	Rows uint32 `json:"r,omitempty"`
	Text string `json:"x,omitempty"`
}

// replay relays a recording, one event a line. It is a POST since it leaves an
// entry: somebody looked.
func (s *site) replay(v *visit) error {
	stream, err := s.sessions.Replay(v.ctx, &v1.ReplaySessionRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	defer stream.Close()
	return v.relay(func(line func(any) error) error {
		for stream.Receive() {
			m := stream.Msg()
			if m.Kind == "" {
				continue // the header: the page has the session already
			}
			if err := line(played{m.OffsetMicros, m.Kind, m.Data, m.Columns, m.Rows, m.Text}); err != nil {
				return err
			}
		}
		return streamEnd(stream.Err())
	})
}

// relay writes one JSON value a line, as each arrives. An error before the
// first line is an ordinary answer; later it becomes a line of its own, since
// silence must never look like the end.
func (v *visit) relay(run func(line func(any) error) error) error {
	out := http.NewResponseController(v.w)
	started := false
	enc := json.NewEncoder(v.w)
	start := func() {
		if !started {
			started = true
			v.w.Header().Set("Content-Type", "application/x-ndjson")
			v.w.Header().Set("Cache-Control", "no-store")
		}
	}
	err := run(func(value any) error {
		start()
		if err := enc.Encode(value); err != nil {
			return err
		}
		return out.Flush()
	})
	if err != nil && !started {
		return err
	}
	start()
	if err != nil {
		f := faultOf(err)
		return enc.Encode(map[string]string{"k": "broken", "x": f.Text})
	}
	return enc.Encode(map[string]string{"k": "end"})
}

func streamEnd(err error) error {
	var c *connect.Error
	if errors.As(err, &c) && c.Code() == connect.CodeCanceled {
		return nil
	}
	if err != nil {
		return faultOf(err)
	}
	return nil
}

// modeFor is how a visitor attaches when the page opens: the least that works.
func modeFor(f frame, got *v1.GetSessionResponse) string {
	switch {
	case got.Session.State == "ended" || got.Session.State == "":
		return ""
	case got.Session.Person == f.Me.Id && got.MayJoin:
		return "join"
	case got.MayWatch:
		return "watch"
	}
	return ""
}
