package cli_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type fakeSessions struct {
	handrailv1connect.UnimplementedSessionsHandler
	*fake
}

func (f *fakeSessions) List(_ context.Context, r *v1.ListSessionsRequest) (*v1.ListSessionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &v1.ListSessionsResponse{}
	for _, s := range f.sessions {
		if (!r.LiveOnly || s.State == "live" || s.State == "paused") && (r.Host == "" || r.Host == s.HostName) && (r.Person == "" || r.Person == s.PersonName || r.Person == s.Person) {
			answer.Sessions = append(answer.Sessions, s)
		}
	}
	if r.Limit > 0 && len(answer.Sessions) > int(r.Limit) {
		answer.Sessions = answer.Sessions[:r.Limit]
	}
	return answer, nil
}

func (f *fake) session(id string) *v1.Session {
	for _, s := range f.sessions {
		if s.Id == id {
			return s
		}
	}
	return nil
}

func (f *fakeSessions) Get(_ context.Context, r *v1.GetSessionRequest) (*v1.GetSessionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.session(r.Id); s != nil {
		return &v1.GetSessionResponse{Session: s, MayWatch: true, MayReplay: true}, nil
	}
	return nil, notFound("session", r.Id)
}

func (f *fakeSessions) Watch(ctx context.Context, _ *v1.WatchSessionsRequest, s *connect.ServerStream[v1.WatchSessionsResponse]) error {
	all, _ := f.List(ctx, &v1.ListSessionsRequest{})
	for _, one := range all.Sessions {
		if err := s.Send(&v1.WatchSessionsResponse{Session: one}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeSessions) Open(ctx context.Context, r *v1.OpenSessionRequest) (*v1.OpenSessionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.host(r.Host)
	switch {
	case h == nil:
		return nil, notFound("host", r.Host)
	case h.State != "online":
		return nil, wireFault(fault.New(fault.Unavailable, "cannot open a session on %s: the host is offline", h.Name).WithHint("handrail host show %s", h.Name))
	case h.Name == "db-1" && r.Level == "read":
		return nil, deniedHere("open a read session on db-1")
	case r.Level == "write" && f.grantFor(me(ctx), h.Name) == nil:
		return nil, wireFault(fault.New(fault.NeedsApproval, "cannot open a write session on %s: no grant is in force", h.Name).WithHint("handrail elevate %s --reason \"…\"", h.Name))
	}
	s := &v1.Session{Id: newID("s", 10+len(f.sessions)), Person: f.person(me(ctx)).Id, PersonName: me(ctx), Host: h.Id, HostName: h.Name, Environment: h.Environment,
		Level: r.Level, State: "live", Started: timestamppb.Now(), Command: strings.Join(r.Command, " ")}
	f.sessions = append([]*v1.Session{s}, f.sessions...)
	f.opened[s.Id] = r
	return &v1.OpenSessionResponse{Session: s, Ticket: f.ticket(s.Id)}, nil
}

func (f *fake) grantFor(person, host string) *v1.Grant {
	for _, g := range f.grants {
		for _, t := range g.Targets {
			if g.State == "active" && g.PersonName == person && t.Name == host {
				return g
			}
		}
	}
	return nil
}

func (f *fake) ticket(session string) string {
	word := fmt.Sprintf("ticket-%d", len(f.tickets)+1)
	f.tickets[word] = session
	return word
}

func (f *fakeSessions) Attach(_ context.Context, r *v1.AttachSessionRequest) (*v1.AttachSessionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.session(r.Id)
	if s == nil {
		return nil, notFound("session", r.Id)
	}
	if s.State == "ended" {
		return nil, wireFault(fault.New(fault.Conflict, "cannot %s session %s: it has ended", r.Mode, s.Id).WithHint("handrail replay %s", s.Id))
	}
	f.opened[s.Id] = &v1.OpenSessionRequest{Command: []string{"fake-" + r.Mode, s.Id}}
	return &v1.AttachSessionResponse{Session: s, Ticket: f.ticket(s.Id)}, nil
}

func (f *fakeSessions) change(id, state string) (*v1.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.session(id)
	if s == nil {
		return nil, notFound("session", id)
	}
	s.State = state
	return s, nil
}

func (f *fakeSessions) Pause(_ context.Context, r *v1.PauseSessionRequest) (*v1.PauseSessionResponse, error) {
	s, err := f.change(r.Id, "paused")
	if err == nil {
		s.PausedWhy = r.Reason
	}
	return &v1.PauseSessionResponse{Session: s}, err
}

func (f *fakeSessions) Resume(_ context.Context, r *v1.ResumeSessionRequest) (*v1.ResumeSessionResponse, error) {
	s, err := f.change(r.Id, "live")
	return &v1.ResumeSessionResponse{Session: s}, err
}

func (f *fakeSessions) Stop(_ context.Context, r *v1.StopSessionRequest) (*v1.StopSessionResponse, error) {
	s, err := f.change(r.Id, "ended")
	if err == nil {
		s.EndedWhy = "stopped"
	}
	return &v1.StopSessionResponse{Session: s}, err
}

func (f *fakeSessions) Replay(_ context.Context, r *v1.ReplaySessionRequest, s *connect.ServerStream[v1.ReplaySessionResponse]) error {
	f.mu.Lock()
	session := f.session(r.Id)
	f.mu.Unlock()
	if session == nil {
		return notFound("session", r.Id)
	}
	second := uint64(time.Second / time.Microsecond)
	for _, e := range []*v1.ReplaySessionResponse{
		{Session: session},
		{Kind: "resize", Columns: 80, Rows: 24},
		{OffsetMicros: second / 100, Kind: "output", Data: []byte("$ ")},
		{OffsetMicros: second / 10, Kind: "chapter", Text: "uname"},
		{OffsetMicros: second / 10, Kind: "input", Data: []byte("uname\r")},
		{OffsetMicros: second / 5, Kind: "output", Data: []byte("Linux\r\n$ ")},
		{OffsetMicros: second * 3600, Kind: "chapter", Text: "exit"},
		{OffsetMicros: second * 3600, Kind: "error", Data: []byte("bye\r\n")},
		{OffsetMicros: second * 3601, Kind: "gap", Text: "3.7 MiB of 4.8 MiB of output were not kept, only their hash"},
		{OffsetMicros: second * 3601, Kind: "exit"},
	} {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// attach is the other end of the attach WebSocket: a host that knows a few
// commands.
func (f *fake) attach(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	id := f.tickets[r.URL.Query().Get("ticket")]
	delete(f.tickets, r.URL.Query().Get("ticket"))
	opened := f.opened[id]
	f.mu.Unlock()
	if id == "" || id != r.PathValue("id") {
		http.Error(w, "cannot attach: the ticket was used before", http.StatusForbidden)
		return
	}
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer ws.CloseNow()
	f.mu.Lock()
	f.attached[ws] = true
	f.mu.Unlock()
	h := &fakeHost{ws: ws, ctx: r.Context(), opened: opened}
	h.notice("banner", "production · read-only · you are recorded")
	command, argument, _ := strings.Cut(strings.Join(opened.Command, " "), " ")
	if run := fakeCommands[command]; run != nil {
		run(h, argument)
		return
	}
	h.output("?\n")
	h.exit(127)
}

type fakeHost struct {
	ws     *websocket.Conn
	ctx    context.Context
	opened *v1.OpenSessionRequest
	guest  bool
}

func (h *fakeHost) send(f *v1.AttachFrame) {
	raw, _ := proto.Marshal(f)
	_ = h.ws.Write(h.ctx, websocket.MessageBinary, raw)
}

func (h *fakeHost) receive() *v1.AttachFrame {
	_, raw, err := h.ws.Read(h.ctx)
	if err != nil {
		return nil
	}
	var f v1.AttachFrame
	if proto.Unmarshal(raw, &f) != nil {
		return nil
	}
	return &f
}

func (h *fakeHost) output(s string) {
	h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Output{Output: []byte(s)}})
}
func (h *fakeHost) errors(s string) {
	h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_ErrorOutput{ErrorOutput: []byte(s)}})
}
func (h *fakeHost) notice(kind, text string) {
	h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Notice{Notice: &v1.AttachNotice{Kind: kind, Text: text}}})
}

// exit is the last frame; the client closes.
func (h *fakeHost) exit(status int32) {
	h.notice("ended", "exit")
	h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_ExitStatus{ExitStatus: status}})
	for h.receive() != nil {
	}
}

var fakeCommands = map[string]func(h *fakeHost, argument string){
	"echo": func(h *fakeHost, argument string) { h.output(argument + "\n"); h.exit(0) },
	"exit": func(h *fakeHost, argument string) {
		var status int32
		fmt.Sscan(argument, &status)
		h.errors("leaving\n")
		h.exit(status)
	},
	"cat": func(h *fakeHost, _ string) {
		for f := h.receive(); f != nil; f = h.receive() {
			if f.GetEof() {
				h.output("[eof]\n") // after the half-close, the other half still works
				h.exit(0)
				return
			}
			h.output(string(f.GetInput()))
		}
	},
	"flood": func(h *fakeHost, _ string) {
		const total, window = 4 << 20, 1 << 20
		line := strings.Repeat("x", 64<<10-1) + "\n"
		sent, said := 0, 0
		for sent < total {
			for sent-said+len(line) > window {
				f := h.receive()
				if f == nil {
					return
				}
				said += int(f.GetAcknowledged())
			}
			h.output(line)
			sent += len(line)
		}
		h.exit(0)
	},
	"vanish": func(h *fakeHost, _ string) { h.output("so far\n") },
	"expire": func(h *fakeHost, _ string) { h.notice("ended", "the grant has expired") },
	"killed": func(h *fakeHost, _ string) {
		h.notice("ended", "revoked")
		h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_ExitStatus{ExitStatus: 255}})
		for h.receive() != nil {
		}
	},
	"touch": func(h *fakeHost, _ string) {
		h.notice("refusal", "this session is read-only: handrail elevate web-1")
		h.exit(1)
	},
	"size": func(h *fakeHost, _ string) {
		h.output(fmt.Sprintf("pty=%v term=%s %dx%d\n", h.opened.Pty, h.opened.Term, h.opened.Columns, h.opened.Rows))
		h.exit(0)
	},
	"": fakeShell,
	"fake-watch": func(h *fakeHost, argument string) {
		if argument == "s-00000002" {
			h.output("still going\r\n")
			for h.receive() != nil {
			}
			return
		}
		h.output("what bob sees\r\n")
		h.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Session{Session: &v1.Session{State: "ended"}}})
		for h.receive() != nil {
		}
	},
	"fake-join": func(h *fakeHost, _ string) {
		h.notice("watching", "bob is here")
		h.guest = true
		fakeShell(h, "")
	},
}

// fakeShell echoes, says how large its window is, and knows "exit N".
func fakeShell(h *fakeHost, _ string) {
	h.output("$ ")
	line := ""
	for f := h.receive(); f != nil; f = h.receive() {
		if f.GetEof() {
			if h.guest {
				h.output("a guest closed the input\r\n")
			}
			h.exit(0)
			return
		}
		if size := f.GetResize(); size != nil {
			h.output(fmt.Sprintf("now %dx%d\r\n", size.Columns, size.Rows))
		}
		line += strings.NewReplacer("\r", "\n", "\x03", "").Replace(string(f.GetInput()))
		if strings.Contains(string(f.GetInput()), "\x03") {
			h.output("^C\r\n")
		}
		for strings.Contains(line, "\n") {
			var one string
			one, line, _ = strings.Cut(line, "\n")
			if status, ok := strings.CutPrefix(one, "exit "); ok {
				var n int32
				fmt.Sscan(status, &n)
				h.exit(n)
				return
			}
			h.output("ran " + one + "\r\n$ ")
		}
	}
}

// dropSessions breaks every attached WebSocket without a word.
func (f *fake) dropSessions() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ws := range f.attached {
		ws.CloseNow()
	}
}
