package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
)

type sessions struct{ d *Deps }

func (s sessions) List(ctx context.Context, r *handrailv1.ListSessionsRequest) (*handrailv1.ListSessionsResponse, error) {
	q := session.Query{LiveOnly: r.LiveOnly, Limit: int(r.Limit), Before: r.Before}
	if r.Host != "" {
		h, err := s.d.Hosts.Get(ctx, r.Host)
		if err != nil {
			return nil, err
		}
		q.Host = h.ID
	}
	if r.Person != "" {
		p, err := s.d.People.Get(ctx, r.Person)
		if err != nil {
			return nil, err
		}
		q.Person = p.ID
	}
	found, err := s.d.Sessions.List(ctx, q)
	return &handrailv1.ListSessionsResponse{Sessions: each(found, sessionMessage)}, err
}

// id resolves "-" to the caller's latest session.
func (s sessions) id(ctx context.Context, id string) (string, error) {
	if id != "-" {
		return id, nil
	}
	i, err := s.d.Sessions.Latest(ctx, caller(ctx).ID)
	return i.ID, err
}

func (s sessions) Get(ctx context.Context, r *handrailv1.GetSessionRequest) (*handrailv1.GetSessionResponse, error) {
	id, err := s.id(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	i, err := s.d.Sessions.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	may, err := s.d.Sessions.May(ctx, caller(ctx), i)
	return &handrailv1.GetSessionResponse{
		Session: sessionMessage(i), MayWatch: may.Watch, MayJoin: may.Join, MayControl: may.Control, MayReplay: may.Replay,
	}, err
}

func (s sessions) Watch(ctx context.Context, _ *handrailv1.WatchSessionsRequest, out *connect.ServerStream[handrailv1.WatchSessionsResponse]) error {
	changes, err := s.d.changes(ctx, notice.Sessions)
	if err != nil {
		return err
	}
	live, err := s.d.Sessions.List(ctx, session.Query{LiveOnly: true, Limit: 200})
	if err != nil {
		return err
	}
	for _, i := range live {
		if err := out.Send(&handrailv1.WatchSessionsResponse{Session: sessionMessage(i)}); err != nil {
			return err
		}
	}
	for _, id := range changes {
		i, err := s.d.Sessions.Get(ctx, id)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if err := out.Send(&handrailv1.WatchSessionsResponse{Session: sessionMessage(i)}); err != nil {
			return err
		}
	}
	return nil
}

func (s sessions) Open(ctx context.Context, r *handrailv1.OpenSessionRequest) (*handrailv1.OpenSessionResponse, error) {
	by := caller(ctx)
	client := "cli"
	if by.Via == "browser" {
		client = "browser"
	}
	live, err := s.d.Sessions.Open(ctx, by, session.OpenRequest{
		Host: r.Host, Level: r.Level, Command: strings.Join(r.Command, " "), Subsystem: r.Subsystem, PTY: r.Pty, Term: r.Term,
		Cols: uint16(min(r.Columns, 1000)), Rows: uint16(min(r.Rows, 1000)), Client: client, Source: by.Source,
	})
	if err != nil {
		return nil, err
	}
	ticket, err := s.d.Sessions.Ticket(ctx, by, live.ID(), session.ModeOwner)
	if err != nil {
		live.Hangup()
		return nil, err
	}
	return &handrailv1.OpenSessionResponse{Session: sessionMessage(live.Info()), Ticket: ticket}, nil
}

func (s sessions) Attach(ctx context.Context, r *handrailv1.AttachSessionRequest) (*handrailv1.AttachSessionResponse, error) {
	i, err := s.d.Sessions.Get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	mode := session.Mode(r.Mode)
	if mode == session.ModeOwner {
		return nil, fault.New(fault.Invalid, "cannot attach as %q: it is watch or join", r.Mode)
	}
	ticket, err := s.d.Sessions.Ticket(ctx, caller(ctx), i.ID, mode)
	return &handrailv1.AttachSessionResponse{Session: sessionMessage(i), Ticket: ticket}, err
}

func (s sessions) Pause(ctx context.Context, r *handrailv1.PauseSessionRequest) (*handrailv1.PauseSessionResponse, error) {
	i, err := s.d.Sessions.Pause(ctx, caller(ctx), r.Id, r.Reason)
	return &handrailv1.PauseSessionResponse{Session: sessionMessage(i)}, err
}

func (s sessions) Resume(ctx context.Context, r *handrailv1.ResumeSessionRequest) (*handrailv1.ResumeSessionResponse, error) {
	i, err := s.d.Sessions.Resume(ctx, caller(ctx), r.Id)
	return &handrailv1.ResumeSessionResponse{Session: sessionMessage(i)}, err
}

func (s sessions) Stop(ctx context.Context, r *handrailv1.StopSessionRequest) (*handrailv1.StopSessionResponse, error) {
	i, err := s.d.Sessions.Stop(ctx, caller(ctx), r.Id, r.Reason)
	return &handrailv1.StopSessionResponse{Session: sessionMessage(i)}, err
}

func (s sessions) Replay(ctx context.Context, r *handrailv1.ReplaySessionRequest, out *connect.ServerStream[handrailv1.ReplaySessionResponse]) error {
	id, err := s.id(ctx, r.Id)
	if err != nil {
		return err
	}
	reader, i, err := s.d.Sessions.Replay(ctx, caller(ctx), id)
	if err != nil {
		return err
	}
	defer reader.Close()
	h := reader.Header()
	if err := out.Send(&handrailv1.ReplaySessionResponse{Session: sessionMessage(i), Columns: uint32(h.Cols), Rows: uint32(h.Rows)}); err != nil {
		return err
	}
	for {
		e, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := out.Send(replayMessage(e)); err != nil {
			return err
		}
	}
}

// gapWords says what a recording lacks: a stream above its bound is kept as head,
// tail, length and hash.
func gapWords(data []byte) string {
	b, err := recording.ParseBulk(data)
	if err != nil || b.Length <= 0 {
		return string(data)
	}
	if b.Skipped <= 0 {
		return fmt.Sprintf("nothing of %s of %s is missing", bytesOf(b.Length), orWord(b.Stream, "data"))
	}
	return fmt.Sprintf("%s of %s of %s were not kept, only their hash", bytesOf(b.Skipped), bytesOf(b.Length), orWord(b.Stream, "data"))
}

func replayMessage(e recording.Event) *handrailv1.ReplaySessionResponse {
	m := &handrailv1.ReplaySessionResponse{OffsetMicros: uint64(e.Offset / time.Microsecond), Kind: e.Kind.String()}
	switch e.Kind {
	case recording.Input, recording.Output, recording.Error:
		m.Data = e.Data
	case recording.Resize:
		cols, rows := recording.ParseResize(e.Data)
		m.Columns, m.Rows = uint32(cols), uint32(rows)
	case recording.Exit:
		_, m.Text = recording.ParseExit(e.Data)
		m.Data = e.Data
	case recording.Gap:
		m.Text, m.Data = gapWords(e.Data), e.Data
	default:
		m.Text = string(e.Data)
	}
	return m
}

func sessionMessage(i session.Info) *handrailv1.Session {
	out := &handrailv1.Session{
		Id: i.ID, Person: i.Person, PersonName: i.PersonName, Host: i.Host, HostName: i.HostName, Environment: i.Environment,
		Scope: i.Scope, Level: i.Level, Kind: i.Kind, State: i.State, PausedWhy: i.PausedWhy, EndedWhy: i.EndedWhy,
		Started: stamp(i.Started), Ended: stamp(i.Ended), Deadline: stamp(i.Deadline), Grant: i.Grant, BreakGlass: i.BreakGlass,
		Account: i.Account, Command: i.Command, ExitStatus: int32(i.ExitStatus), Floor: i.Floor, FloorMissing: i.FloorMissing,
		BuddyRequired: i.BuddyRequired, Recorded: true, RecordingBytes: uint64(i.RecordingBytes), Client: i.Client,
		SourceAddress: i.Source, Reason: i.Reason,
		Watchers: each(i.Watchers, func(w session.Watching) *handrailv1.Watcher {
			return &handrailv1.Watcher{Person: w.Person, PersonName: w.Name, Joined: w.Joined, Since: stampTime(w.Since)}
		}),
	}
	end := i.Ended
	if end == 0 {
		end = time.Now().UnixMicro()
	}
	if i.Started > 0 {
		out.Length = durationpb.New((time.Duration(end-i.Started) * time.Microsecond).Round(time.Second))
	}
	return out
}
