package fake

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type sessions struct {
	handrailv1connect.UnimplementedSessionsHandler
	a *API
}

func (s sessions) List(_ context.Context, r *v1.ListSessionsRequest) (*v1.ListSessionsResponse, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	out := &v1.ListSessionsResponse{}
	for _, x := range s.a.sessions {
		if (!r.LiveOnly || x.State != "ended") && (r.Host == "" || r.Host == x.Host || r.Host == x.HostName) && (r.Person == "" || r.Person == x.Person) {
			out.Sessions = append(out.Sessions, copyOf(x))
		}
	}
	return out, nil
}

func (s sessions) Get(ctx context.Context, r *v1.GetSessionRequest) (*v1.GetSessionResponse, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	x := s.a.session(r.Id)
	if x == nil {
		return nil, notFound("session", r.Id, "handrail sessions")
	}
	return &v1.GetSessionResponse{Session: copyOf(x), MayWatch: true, MayJoin: true, MayControl: true, MayReplay: x.PersonName != "mallory"}, nil
}

func (s sessions) Open(ctx context.Context, r *v1.OpenSessionRequest) (*v1.OpenSessionResponse, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	h, me := s.a.host(r.Host), s.a.person(self(ctx))
	if h == nil {
		return nil, notFound("host", r.Host, "handrail hosts")
	}
	if r.Level == "write" && h.Name != "staging-1" {
		return nil, wrong(fault.New(fault.Denied, "cannot open a write session on %s: no grant of yours is in force there. grace (operator) can approve one", h.Name).
			WithRule("write-with-a-grant").WithEntry(12).WithHint("handrail elevate %s --reason \"…\" --for 30m", h.Name))
	}
	x := &v1.Session{
		Id: fmt.Sprintf("s-new%05d", len(s.a.sessions)), Person: me.Id, PersonName: me.Name, Host: h.Id, HostName: h.Name, Environment: h.Environment, Scope: h.Scope,
		Level: r.Level, Kind: "shell", State: "live", Started: s.a.at(0), Deadline: s.a.at(time.Hour), Floor: "full", Recorded: true, Client: "browser", SourceAddress: "127.0.0.1",
	}
	s.a.sessions = append([]*v1.Session{x}, s.a.sessions...)
	s.a.tickets["ticket-"+x.Id] = "own"
	s.a.changed("sessions")
	return &v1.OpenSessionResponse{Session: copyOf(x), Ticket: "ticket-" + x.Id}, nil
}

func (s sessions) Attach(_ context.Context, r *v1.AttachSessionRequest) (*v1.AttachSessionResponse, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	ticket := fmt.Sprintf("ticket-%s-%d", r.Id, len(s.a.tickets))
	s.a.tickets[ticket] = r.Mode
	return &v1.AttachSessionResponse{Session: copyOf(s.a.session(r.Id)), Ticket: ticket}, nil
}

func (s sessions) change(id string, f func(*v1.Session)) *v1.Session {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	x := s.a.session(id)
	f(x)
	s.a.changed("sessions")
	return copyOf(x)
}

func (s sessions) Pause(_ context.Context, r *v1.PauseSessionRequest) (*v1.PauseSessionResponse, error) {
	return &v1.PauseSessionResponse{Session: s.change(r.Id, func(x *v1.Session) { x.State = "paused" })}, nil
}

func (s sessions) Resume(_ context.Context, r *v1.ResumeSessionRequest) (*v1.ResumeSessionResponse, error) {
	return &v1.ResumeSessionResponse{Session: s.change(r.Id, func(x *v1.Session) { x.State = "live" })}, nil
}

func (s sessions) Stop(_ context.Context, r *v1.StopSessionRequest) (*v1.StopSessionResponse, error) {
	return &v1.StopSessionResponse{Session: s.change(r.Id, func(x *v1.Session) { x.State, x.EndedWhy = "ended", "stopped" })}, nil
}

// film is a short recording: what is shown when, and the commands in it.
func film() []*v1.ReplaySessionResponse {
	var all []*v1.ReplaySessionResponse
	at := uint64(0)
	out := func(wait uint64, text string) {
		at += wait
		all = append(all, &v1.ReplaySessionResponse{OffsetMicros: at, Kind: "output", Data: []byte(text)})
	}
	all = append(all, &v1.ReplaySessionResponse{Kind: "resize", Columns: 100, Rows: 30})
	prompt := "\x1b[1;41;97m PRODUCTION \x1b[0m \x1b[33mwrite 29 min\x1b[0m linus@web-1:~$ "
	out(1000, "handrail: session s-9b3n7m1q, recorded. Reason: checkout returns 502 since the deploy (OPS-5)\r\n"+prompt)
	for _, c := range []struct{ line, answer string }{
		{"systemctl status checkout", "\x1b[1;31m●\x1b[0m checkout.service - checkout\r\n     Active: \x1b[1;31mfailed\x1b[0m (Result: exit-code) since 14:05:11 UTC; 6min ago\r\n"},
		{"journalctl -u checkout -n 3", "14:05:10 checkout[4411]: cannot read /etc/checkout/tls.pem: \x1b[31mpermission denied\x1b[0m\r\n14:05:11 systemd[1]: checkout.service: Main process exited\r\n"},
		{"sudo chgrp checkout /etc/checkout/tls.pem", ""},
		{"sudo systemctl restart checkout", ""},
		{"curl -s localhost:8080/health", "{\"status\":\"\x1b[32mok\x1b[0m\"}\r\n"},
	} {
		for _, k := range c.line {
			out(60_000, string(k))
		}
		all = append(all, &v1.ReplaySessionResponse{OffsetMicros: at, Kind: "chapter", Text: c.line})
		out(200_000, "\r\n"+c.answer+prompt)
		at += 3_500_000
	}
	all = append(all, &v1.ReplaySessionResponse{OffsetMicros: at, Kind: "exit"})
	return all
}

func (s sessions) Replay(_ context.Context, r *v1.ReplaySessionRequest, out *connect.ServerStream[v1.ReplaySessionResponse]) error {
	s.a.mu.Lock()
	x := s.a.session(r.Id)
	s.a.Replays++
	s.a.mu.Unlock()
	if x == nil {
		return notFound("session", r.Id, "handrail sessions")
	}
	if err := out.Send(&v1.ReplaySessionResponse{Session: copyOf(x)}); err != nil {
		return err
	}
	for _, e := range film() {
		if e.Kind == "chapter" && s.a.kind == Hostile {
			e.Text += Poison
		}
		if err := out.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// attach plays a shell that echoes, with a prompt and a refused write.
func (a *API) attach(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	mode, ok := a.tickets[r.URL.Query().Get("ticket")]
	delete(a.tickets, r.URL.Query().Get("ticket"))
	x := a.session(r.PathValue("id"))
	a.mu.Unlock()
	if !ok || x == nil {
		http.Error(w, "cannot attach: the ticket is wrong or used", http.StatusForbidden)
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	shell{c, r.Context(), mode}.run()
}

type shell struct {
	c    *websocket.Conn
	ctx  context.Context
	mode string
}

func (s shell) send(f *v1.AttachFrame) {
	b, err := proto.Marshal(f)
	if err != nil {
		return
	}
	_ = s.c.Write(s.ctx, websocket.MessageBinary, b)
}

func (s shell) print(text string) {
	s.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Output{Output: []byte(text)}})
}

func (s shell) run() {
	prompt := "\x1b[1;42;30m read-only \x1b[0m \x1b[36mada@thinkpad\x1b[0m:~$ "
	if s.mode != "own" {
		s.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Resize{Resize: &v1.Resize{Columns: 96, Rows: 28}}})
		s.print("\x1b[1;41;97m PRODUCTION \x1b[0m \x1b[33mwrite 22 min\x1b[0m postgres@db-1:~$ psql -c 'select count(*) from pg_stat_activity'\r\n count \r\n-------\r\n   \x1b[31m498\x1b[0m\r\n(1 row)\r\n")
	} else {
		s.print("handrail: read-only session, recorded. Everything can be read but what policy declares secret.\r\n" + prompt)
	}
	line := ""
	for {
		_, b, err := s.c.Read(s.ctx)
		if err != nil {
			return
		}
		var f v1.AttachFrame
		if proto.Unmarshal(b, &f) != nil {
			return
		}
		for _, k := range string(f.GetInput()) {
			if k != '\r' {
				line += string(k)
				s.print(string(k))
				continue
			}
			s.answer(strings.TrimSpace(line))
			if strings.TrimSpace(line) == "exit" {
				_ = s.c.Close(websocket.StatusNormalClosure, "")
				return
			}
			line = ""
			s.print(prompt)
		}
	}
}

func (s shell) answer(line string) {
	switch line {
	case "whoami":
		s.print("\r\nada\r\n")
	case "exit":
		s.send(&v1.AttachFrame{Frame: &v1.AttachFrame_ExitStatus{ExitStatus: 0}})
	case "touch x":
		s.print("\r\ntouch: cannot touch 'x': Read-only file system\r\n")
		s.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Notice{Notice: &v1.AttachNotice{Kind: "refusal", Text: "This session is read-only. To write: handrail elevate thinkpad --reason \"…\""}}})
	case "ask": // all that a program may ask a terminal
		s.print("\x1b[c\x1b[>c\x1b[=c\x1b[5n\x1b[6n\x1b[?6n\x1b[?996n\x1b[14t\x1b[16t\x1b[18t\x1b[19t\x1b[21t\x1b[?2026$p\x1b[4$p\x1b[x\x1b[>q\x1b[?u" +
			"\x1bP$qm\x1b\\\x1bP$q\"p\x1b\\\x1bP+q544e\x1b\\\x1b]4;1;?\x07\x1b]10;?\x07\x1b]11;?\x07\x1b]12;?\x07\x1b[?1004hasked\r\n")
	case "tell": // all that a program may tell a terminal of its surroundings
		s.print("\r\n\x1b]52;c;cHduZWQ=\x07\x1b]0;a title\x07\x1b]2;a title\x07\x1b]8;;https://evil.example/\x07link\x1b]8;;\x07\x1b]9;pwned\x07\x1b[8;1;1t told\r\n")
		s.send(&v1.AttachFrame{Frame: &v1.AttachFrame_Notice{Notice: &v1.AttachNotice{Kind: "refusal", Text: "Said: " + Poison}}})
	case "tag":
		s.print("\r\n\x1b[31mred\x1b[0m \x1b[1;41;97m PRODUCTION \x1b[0m \x1b[38;2;90;200;250mtrue\x1b[0m\r\n")
	default:
		s.print("\r\n")
	}
}
