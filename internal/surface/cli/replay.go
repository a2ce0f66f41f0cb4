package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

func (t *tool) replayCommand() *cobra.Command {
	var at string
	var speed float64
	var idle string
	var chapters bool
	var export string
	c := t.command("replay ID", "Replay the recording of a session; every replay is recorded itself",
		"handrail replay s-7k3f9q2m --speed 2 --at 1m30s  # space, arrows, +, -, c for the commands, q\nhandrail replay - --chapters                    # the commands of my latest, with their times",
		exactly("the id of the session"),
		func(cmd *cobra.Command, args []string) error {
			if speed < minSpeed || speed > maxSpeed {
				return fault.New(fault.Invalid, "cannot replay at speed %v: it is between %v and %v", speed, minSpeed, maxSpeed).WithHint("handrail replay %s --speed 2", clean(args[0]))
			}
			longest, err := when.Duration(idle)
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.sessionID(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			r, err := openRecording(ctx, c, id)
			if err != nil {
				return err
			}
			start, err := t.offset(at, r.session)
			if err != nil {
				return err
			}
			in, inTTY := terminal(t.Stdin)
			_, outTTY := terminal(t.Stdout)
			switch {
			case export != "":
				return t.exportCast(r, export)
			case chapters:
				return t.listChapters(r)
			case t.format == "json" || t.format == "yaml":
				return t.replayEvents(r, start)
			case inTTY && outTTY:
				return t.play(ctx, in, r, &player{speed: speed, idle: longest, pos: start})
			}
			return t.replayOutput(r, start)
		})
	c.Long = `Replay the recording of a session. Every replay is an entry in the ledger.

Keys: space pauses; left and right seek by five seconds, [ and ] by command;
+ and - change the speed; c lists the commands to jump to; q leaves. Without a
terminal the output is printed at once, and -o json prints every event.
--export writes asciicast v3, for players elsewhere; what it leaves out, it says.`
	c.ValidArgsFunction = t.completeSessions(false)
	c.Flags().StringVar(&at, "at", "", "where to start: 1m30s into it, or a time of day")
	c.Flags().Float64Var(&speed, "speed", 1, "how fast")
	c.Flags().StringVar(&idle, "idle", "3s", "shorten pauses to this; 0s keeps them")
	c.Flags().StringVar(&export, "export", "", "write it into this new file as asciicast v3 (- is stdout), and do not play")
	c.Flags().BoolVar(&chapters, "chapters", false, "list the commands, and do not play")
	return c
}

// offset turns --at into an offset from the start of the recording.
func (t *tool) offset(at string, s *v1.Session) (time.Duration, error) {
	if at == "" {
		return 0, nil
	}
	if d, err := when.Duration(at); err == nil {
		return d, nil
	}
	moment, err := when.Parse(at, t.Now())
	if err != nil {
		return 0, err
	}
	d := moment.Sub(s.GetStarted().AsTime())
	if d < 0 {
		return 0, fault.New(fault.Invalid, "cannot start at %s: the session began later, at %s", moment.Format(time.RFC3339), s.GetStarted().AsTime().Format(time.RFC3339)).WithHint("--at 0s")
	}
	return d, nil
}

// maxRecording bounds what a player holds to be able to seek.
const maxRecording = 512 << 20

// tape is a recording as it comes in.
type tape struct {
	session *v1.Session
	columns uint32 // of the terminal, when it began
	rows    uint32
	stream  *connect.ServerStreamForClient[v1.ReplaySessionResponse]

	// What a player holds to be able to seek: appended, never changed.
	mu     sync.Mutex
	events []*v1.ReplaySessionResponse
	size   int
	done   bool
	err    error
	more   chan struct{} // closed and replaced when something came
}

// openRecording starts to read a recording and returns with its header.
func openRecording(ctx context.Context, c *client, id string) (*tape, error) {
	stream, err := c.sessions.Replay(ctx, &v1.ReplaySessionRequest{Id: id})
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		err := stream.Err()
		stream.Close()
		if err == nil {
			err = fault.New(fault.NotFound, "cannot replay %s: its recording is empty", id).WithHint("handrail session show %s", id)
		}
		return nil, err
	}
	first := stream.Msg()
	r := &tape{session: first.Session, columns: first.Columns, rows: first.Rows, stream: stream, more: make(chan struct{})}
	if r.session == nil {
		r.session = &v1.Session{Id: id}
	}
	return r, nil
}

// each calls fn for every event, as they come, and holds none.
func (r *tape) each(fn func(*v1.ReplaySessionResponse) error) error {
	defer r.stream.Close()
	for r.stream.Receive() {
		if err := fn(r.stream.Msg()); err != nil {
			return err
		}
	}
	return r.stream.Err()
}

// load keeps the events for a player, in the background.
func (r *tape) load() {
	err := r.each(func(e *v1.ReplaySessionResponse) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.size += len(e.Data); r.size > maxRecording {
			return fault.New(fault.Exhausted, "cannot hold all of the recording of %s: it is larger than %s", r.session.Id, size(maxRecording)).
				WithHint("handrail replay %s > FILE", r.session.Id)
		}
		r.events = append(r.events, e)
		r.wakeLocked()
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.err = true, err
	r.wakeLocked()
}

func (r *tape) wakeLocked() {
	close(r.more)
	r.more = make(chan struct{})
}

// look returns what there is, whether it is all, and a channel that is closed
// when there is more.
func (r *tape) look() (events []*v1.ReplaySessionResponse, done bool, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events, r.done, r.more
}

// trouble is what ended the loading, if it did not end well.
func (r *tape) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func offsetOf(e *v1.ReplaySessionResponse) time.Duration {
	return time.Duration(min(e.OffsetMicros, 1<<52)) * time.Microsecond
}

// replayOutput prints what the session printed, at once.
func (t *tool) replayOutput(r *tape, start time.Duration) error {
	return r.each(func(e *v1.ReplaySessionResponse) error {
		if offsetOf(e) < start {
			return nil
		}
		switch e.Kind {
		case "output", "error":
			_, err := t.out().Write(e.Data)
			return err
		case "gap":
			t.say("[gap: %s]", clean(e.Text))
		}
		return nil
	})
}

func (t *tool) replayEvents(r *tape, start time.Duration) error {
	return r.each(func(e *v1.ReplaySessionResponse) error {
		if offsetOf(e) < start {
			return nil
		}
		return t.line(e, nil)
	})
}

// chapter is a command of a session.
type chapter struct {
	at   time.Duration
	text string
}

func (t *tool) listChapters(r *tape) error {
	tb := &table{head: []string{"AT", "COMMAND"}, empty: "This recording has no commands."}
	answer := &v1.GetSessionResponse{Session: r.session}
	err := r.each(func(e *v1.ReplaySessionResponse) error {
		if e.Kind != "chapter" {
			return nil
		}
		if t.format == "json" || t.format == "yaml" {
			return t.line(e, nil)
		}
		tb.add(stamp(offsetOf(e)), cells(stamp(offsetOf(e)), e.Text))
		return nil
	})
	if err != nil || t.format == "json" || t.format == "yaml" {
		return err
	}
	return t.emit(answer, tb)
}

// stamp is a position in a recording: "1:02:03" or "2:03".
func stamp(d time.Duration) string {
	s := int(d / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

func chaptersOf(events []*v1.ReplaySessionResponse) []chapter {
	var list []chapter
	for _, e := range events {
		if e.Kind == "chapter" {
			list = append(list, chapter{offsetOf(e), strings.TrimSpace(e.Text)})
		}
	}
	return list
}
