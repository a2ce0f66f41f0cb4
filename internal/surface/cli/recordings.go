package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

func (t *tool) searchCommand() *cobra.Command {
	r := &v1.SearchRecordingsRequest{}
	var since string
	c := t.command("search WORDS", "Search recordings for words that stood on the screen or were typed",
		"handrail sessions search \"disk full\" --host web-1      # every search is an entry\nhandrail sessions search deploy --person bob --since 7d  # what bob did this week",
		func(_ *cobra.Command, args []string) error {
			if len(strings.TrimSpace(strings.Join(args, " "))) == 0 {
				return missing("search", "the words", `handrail sessions search "disk full"`)
			}
			return nil
		},
		func(cmd *cobra.Command, args []string) error {
			if since != "" {
				at, err := when.Parse(since, t.Now())
				if d, derr := when.Duration(since); derr == nil {
					at, err = t.Now().Add(-d), nil
				}
				if err != nil {
					return err
				}
				r.Since = timestamppb.New(at)
			}
			r.Words = strings.Join(args, " ")
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.search(cmd.Context(), c, r)
		})
	c.Long = `Search the recordings that you may replay, the newest first, for words that stood
on the screen or were typed, whatever their case. Sessions that are open are not
searched. Every search is an entry: who looked for what in which recordings.`
	c.Flags().StringVar(&r.Host, "host", "", "only on this host")
	c.Flags().StringVar(&r.Person, "person", "", "only of this person")
	c.Flags().StringVar(&since, "since", "", "only sessions that began since: 7d, or a time")
	c.Flags().StringVar(&r.Before, "before", "", "only those that started before this session")
	_ = c.RegisterFlagCompletionFunc("host", t.completeHosts)
	_ = c.RegisterFlagCompletionFunc("person", t.completePeople)
	return c
}

func (t *tool) search(ctx context.Context, c *client, r *v1.SearchRecordingsRequest) error {
	stream, err := c.recordings.Search(ctx, r)
	if err != nil {
		return err
	}
	defer stream.Close()
	var sum *v1.SearchSummary
	first, last := true, ""
	for stream.Receive() {
		hit := stream.Msg().Hit
		if hit == nil {
			sum = stream.Msg().Summary
			continue
		}
		s := hit.Session
		at := hit.Offset.AsDuration().Truncate(time.Millisecond).String()
		tb := &table{head: []string{"SESSION", "AT", "PERSON", "HOST", "LINE", "WHEN", "WHAT"}, wide: 5, headless: !first}
		tb.add(s.Id, cells(s.Id, at, s.PersonName, s.HostName, hit.Line, t.at(hit.At), hit.Kind))
		if err := t.line(hit, tb); err != nil {
			return err
		}
		first, last = false, "handrail replay "+s.Id+" --at "+at
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if sum == nil {
		return fault.New(fault.Unavailable, "cannot search: the answer broke off").WithHint("handrail sessions search %s", quoteShell(clean(r.Words)))
	}
	t.sayOfSearch(sum, last)
	return nil
}

// sayOfSearch says what a search covered, and what it did not.
func (t *tool) sayOfSearch(sum *v1.SearchSummary, jump string) {
	t.say("%d recordings searched, %d lines found", sum.Recordings, sum.Hits)
	for _, left := range []struct {
		n    uint32
		what string
	}{
		{sum.Denied, "you may not replay"}, {sum.Elsewhere, "lie with another server alone"},
		{sum.Unread, "cannot be read: erased, removed or damaged"}, {sum.Cut, "are too long: only their beginnings were searched"},
	} {
		if left.n > 0 {
			t.say("%d recordings %s", left.n, left.what)
		}
	}
	if sum.More {
		t.say("there is more: narrow it with --host, --person or --since")
	}
	if sum.Next != "" {
		t.say("older ones: --before %s", clean(sum.Next))
	}
	if jump != "" {
		t.say("jump to a line: %s", clean(jump))
	}
}

func (t *tool) recordingsCommand() *cobra.Command {
	move := t.command("move", "Put what waits into the bucket now, and show how far it is",
		"handrail recordings move             # after [recordings] names a bucket\nhandrail recordings move -o json     # stop and start it as you like: nothing is sent twice",
		exactly(), func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.moveRecordings(cmd.Context(), c)
		})
	c := t.command("recordings", "Say where finished recordings lie, and what waits for the bucket",
		"handrail recordings          # of the server that you are logged in at\nhandrail recordings move     # do not wait for the next round",
		exactly(), func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			at, err := c.recordings.Storage(cmd.Context(), &v1.RecordingStorageRequest{})
			if err != nil {
				return err
			}
			return t.emit(at, t.storageSheet(at))
		})
	c.AddCommand(move)
	return c
}

func (t *tool) storageSheet(at *v1.RecordingStorageResponse) *sheet {
	s := &sheet{id: at.Place}
	if at.Place == "" {
		s.put("lie", "with the server that recorded them, as files").put("files here", fmt.Sprint(at.Here))
		return s
	}
	s.put("go to", at.Place).put("files here", fmt.Sprint(at.Here)).put("waiting", fmt.Sprintf("%d, %s", at.Waiting, size(at.WaitingBytes)))
	if at.Limit > 0 {
		s.put("may wait", size(at.Limit))
	}
	if at.Oldest != nil {
		s.put("since", t.at(at.Oldest))
	}
	if at.Delayed {
		s.put("ALARM", "it is behind")
	}
	if at.Failed != "" {
		s.put("last failure", at.Failed)
	}
	return s
}

// moveRecordings lets rounds begin until nothing waits, or one fails.
func (t *tool) moveRecordings(ctx context.Context, c *client) error {
	at, err := c.recordings.Storage(ctx, &v1.RecordingStorageRequest{Now: true})
	if err != nil {
		return err
	}
	if at.Place == "" {
		return fault.New(fault.Conflict, "cannot move recordings: no bucket is configured").WithHint("handrail config explain --help")
	}
	from, shown := at.Rounds, ""
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for at.Rounds == from || at.Waiting > 0 && at.Failed == "" {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if at, err = c.recordings.Storage(ctx, &v1.RecordingStorageRequest{Now: at.Rounds > from}); err != nil {
			return err
		}
		if now := fmt.Sprintf("%d recordings wait, %s", at.Waiting, size(at.WaitingBytes)); now != shown && at.Waiting > 0 {
			t.say("%s", now)
			shown = now
		}
	}
	if err := t.emit(at, t.storageSheet(at)); err != nil {
		return err
	}
	if at.Failed != "" {
		return fault.New(fault.Partial, "cannot move all recordings: %s", clean(at.Failed)).WithHint("handrail recordings move")
	}
	return nil
}
