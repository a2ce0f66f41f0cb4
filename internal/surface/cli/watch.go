package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (t *tool) watchCommands() []*cobra.Command {
	return []*cobra.Command{
		t.sessionsCommand(),
		t.group("session", "Show a session",
			"handrail session show -           # my latest\nhandrail session show s-7k3f9q2m  # who, where, why, how it ended",
			t.sessionShowCommand()),
		t.attachCommand("watch", "Watch a live session", "watch",
			"handrail watch s-7k3f9q2m  # q leaves\nhandrail watch -           # the newest one of somebody else"),
		t.attachCommand("join-session", "Join a live session: both of you type", "join",
			"handrail join-session s-7k3f9q2m  # ~. leaves\nhandrail join-session -           # the newest one of somebody else"),
		t.pauseCommand(), t.resumeCommand(), t.stopCommand(), t.replayCommand(), t.recordingsCommand(),
	}
}

func (t *tool) sessionsCommand() *cobra.Command {
	r := &v1.ListSessionsRequest{}
	var follow bool
	c := t.command("sessions", "List sessions, the newest first",
		"handrail sessions --live              # those that are open now\nhandrail sessions --person bob --host web-1  # what bob did there",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if follow {
				return t.followSessions(cmd.Context(), c)
			}
			answer, err := c.sessions.List(cmd.Context(), r)
			if err != nil {
				return err
			}
			return t.emit(answer, t.sessionTable(answer.Sessions))
		})
	c.Flags().BoolVar(&r.LiveOnly, "live", false, "only those that are open now")
	c.Flags().StringVar(&r.Host, "host", "", "only on this host")
	c.Flags().StringVar(&r.Person, "person", "", "only of this person")
	c.Flags().Uint32Var(&r.Limit, "limit", 50, "how many, at most 200")
	c.Flags().StringVar(&r.Before, "before", "", "only those that started before this session")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print each change")
	_ = c.RegisterFlagCompletionFunc("host", t.completeHosts)
	_ = c.RegisterFlagCompletionFunc("person", t.completePeople)
	c.AddCommand(t.searchCommand())
	return c
}

func (t *tool) followSessions(ctx context.Context, c *client) error {
	stream, err := c.sessions.Watch(ctx, &v1.WatchSessionsRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	first := true
	for stream.Receive() {
		tb := t.sessionTable([]*v1.Session{stream.Msg().Session})
		tb.headless, first = !first, false
		if err := t.line(stream.Msg().Session, tb); err != nil {
			return err
		}
	}
	return ended(ctx, stream.Err())
}

func (t *tool) sessionTable(sessions []*v1.Session) *table {
	tb := &table{
		head: []string{"ID", "STATE", "PERSON", "HOST", "LEVEL", "WHAT", "STARTED", "LENGTH", "ENVIRONMENT", "CLIENT", "FROM", "GRANT", "FLOOR", "RECORDED", "WATCHED BY"},
		wide: 8, empty: "No session matches. Open one: handrail ssh HOST",
	}
	for _, s := range sessions {
		row := cells(s.Id, "", s.PersonName, s.HostName, "", orElse(s.Command, s.Kind), t.at(s.Started), t.sessionLength(s),
			"", s.Client, s.SourceAddress, s.Grant, s.Floor, recorded(s), watchers(s))
		row[1] = state(strings.TrimSpace(s.State))
		if s.State == "ended" {
			row[1] = cell{strings.TrimSpace("ended " + s.EndedWhy), dim}
		}
		row[4], row[8] = level(s), environment(s.Environment)
		tb.add(s.Id, row)
	}
	return tb
}

func level(s *v1.Session) cell {
	switch {
	case s.GetBreakGlass():
		return cell{"break-glass", bad}
	case s.GetLevel() == "write":
		return cell{"write", warn}
	}
	return cell{s.GetLevel(), calm}
}

func (t *tool) sessionLength(s *v1.Session) string {
	switch {
	case s.GetLength() != nil:
		return lasting(s.Length)
	case s.GetEnded() != nil && s.GetStarted() != nil:
		return length(s.Ended.AsTime().Sub(s.Started.AsTime()))
	case s.GetState() == "ended" || s.GetStarted() == nil:
		return ""
	}
	return length(t.Now().Sub(s.Started.AsTime()))
}

func recorded(s *v1.Session) string {
	if !s.GetRecorded() {
		return "no"
	}
	return size(s.RecordingBytes)
}

func watchers(s *v1.Session) string {
	var names []string
	for _, w := range s.GetWatchers() {
		name := w.PersonName
		if w.Joined {
			name += " (joined)"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func (t *tool) sessionView(s *v1.Session) *sheet {
	v := &sheet{id: s.GetId()}
	why := s.GetEndedWhy()
	if s.GetState() == "paused" {
		why = s.GetPausedWhy()
	}
	v.put("session", s.GetId()).toned("state", strings.TrimSpace(s.GetState()+" "+why), stateTone[s.GetState()])
	v.put("person", s.GetPersonName()).put("host", s.GetHostName())
	v.toned("environment", s.GetEnvironment(), environment(s.GetEnvironment()).tone).put("scope", s.GetScope())
	v.toned("level", level(s).value, level(s).tone).put("what", orElse(s.GetCommand(), s.GetKind())).put("account", s.GetAccount())
	v.put("grant", s.GetGrant()).put("reason", s.GetReason())
	v.put("started", t.full(s.GetStarted())).put("ended", t.full(s.GetEnded())).put("length", t.sessionLength(s))
	if s.GetState() == "ended" {
		v.put("exit status", fmt.Sprint(s.GetExitStatus()))
	} else {
		v.put("deadline", t.full(s.GetDeadline()))
	}
	v.put("watched by", watchers(s))
	if s.GetBuddyRequired() {
		v.put("buddy", "required")
	}
	v.put("floor", s.GetFloor()).list("missing", s.GetFloorMissing()).put("recorded", recorded(s))
	v.put("client", strings.TrimSpace(s.GetClient()+" "+s.GetSourceAddress()))
	return v
}

func (t *tool) sessionShowCommand() *cobra.Command {
	c := t.command("show ID", "Show one session",
		"handrail session show -           # my latest\nhandrail session show s-7k3f9q2m  # who, where, why, how it ended",
		exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			answer, err := c.sessions.Get(cmd.Context(), &v1.GetSessionRequest{Id: id})
			if err != nil {
				return err
			}
			v := t.sessionView(answer.Session)
			for _, can := range []struct {
				may  bool
				line string
			}{{answer.MayWatch, "watch"}, {answer.MayJoin, "join-session"}, {answer.MayControl, "stop"}, {answer.MayReplay, "replay"}} {
				if can.may {
					v.put("you may", fmt.Sprintf("handrail %s %s", can.line, id))
				}
			}
			return t.emit(answer, v)
		})
	c.ValidArgsFunction = t.completeSessions(false)
	return c
}

// attachCommand watches a live session, or joins it.
func (t *tool) attachCommand(name, short, mode, examples string) *cobra.Command {
	c := t.command(name+" ID", short, examples, exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], true)
			if err != nil {
				return err
			}
			answer, err := c.sessions.Attach(cmd.Context(), &v1.AttachSessionRequest{Id: id, Mode: mode})
			if err != nil {
				return err
			}
			join := mode == "join"
			a := &attachment{tool: t, client: c, session: answer.Session, ticket: answer.Ticket, input: join, pty: join, guest: true}
			t.say("%s %s on %s; %s leaves", map[bool]string{true: "Joining", false: "Watching"}[join], clean(answer.Session.GetPersonName()), target(answer.Session),
				map[bool]string{true: "~. at the start of a line", false: "q"}[join])
			_, err = a.run(cmd.Context())
			return err
		})
	c.ValidArgsFunction = t.completeSessions(true)
	return c
}

func (t *tool) pauseCommand() *cobra.Command {
	var reason string
	c := t.command("pause ID", "Pause a live session: its processes stand still",
		"handrail pause s-7k3f9q2m --reason \"talk first\"  # the person reads it\nhandrail resume s-7k3f9q2m                       # and it goes on",
		exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], args[0] != latest)
			if err != nil {
				return err
			}
			answer, err := c.sessions.Pause(cmd.Context(), &v1.PauseSessionRequest{Id: id, Reason: reason})
			if err != nil {
				return err
			}
			return t.emit(answer, t.sessionView(answer.Session))
		})
	c.ValidArgsFunction = t.completeSessions(true)
	c.Flags().StringVar(&reason, "reason", "", "why; the person reads it, the ledger keeps it")
	return c
}

func (t *tool) resumeCommand() *cobra.Command {
	c := t.command("resume ID", "Let a paused session go on",
		"handrail resume s-7k3f9q2m  # that one\nhandrail resume -           # my latest",
		exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], args[0] != latest)
			if err != nil {
				return err
			}
			answer, err := c.sessions.Resume(cmd.Context(), &v1.ResumeSessionRequest{Id: id})
			if err != nil {
				return err
			}
			return t.emit(answer, t.sessionView(answer.Session))
		})
	c.ValidArgsFunction = t.completeSessions(true)
	return c
}

func (t *tool) stopCommand() *cobra.Command {
	var reason string
	c := t.command("stop ID", "Stop a session now: every process of it is dead",
		"handrail stop s-7k3f9q2m --reason \"wrong host\"  # the person reads it\nhandrail stop -                                 # my latest",
		exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], args[0] != latest)
			if err != nil {
				return err
			}
			answer, err := c.sessions.Stop(cmd.Context(), &v1.StopSessionRequest{Id: id, Reason: reason})
			if err != nil {
				return err
			}
			return t.emit(answer, t.sessionView(answer.Session))
		})
	c.ValidArgsFunction = t.completeSessions(true)
	c.Flags().StringVar(&reason, "reason", "", "why; the person reads it, the ledger keeps it")
	return c
}
