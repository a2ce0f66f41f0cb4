package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/seal"
)

// A value is sealed on its host to a key that is made here for it, and opened
// here: no server can read it.

func unmaskKey(id string) string { return "unmask-" + id + ".key" }

// askUnmask asks a second person that one variable be shown.
func (t *tool) askUnmask(ctx context.Context, args []string, f agreedFlags) error {
	if len(args) < 3 || args[1] != "env" {
		return fault.New(fault.Invalid, "cannot unmask %s: only a variable of a process's environment can be", clean(f.unmask)).
			WithHint("handrail inspect %s env PID --unmask %s --why \"…\"", quoteShell(clean(args[0])), quoteShell(clean(f.unmask)))
	}
	if f.why == "" {
		return missing("unmask "+clean(f.unmask), "--why", "handrail inspect "+quoteShell(clean(args[0]))+" env "+quoteShell(clean(args[2]))+" --unmask "+quoteShell(clean(f.unmask))+" --why \"…\"")
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	public, private, err := seal.NewKey()
	if err != nil {
		return err
	}
	answer, err := c.unmaskings.Ask(ctx, &v1.AskUnmaskRequest{Host: args[0], Target: args[2], Name: f.unmask, Why: f.why, Key: public})
	if err != nil {
		return err
	}
	if !isRequestID(answer.Id) { // it becomes the name of a file
		return fault.New(fault.Internal, "cannot go on: the server names the request %q", clean(answer.Id))
	}
	if err := c.folder.write(unmaskKey(answer.Id), private); err != nil {
		return err
	}
	s := &sheet{id: answer.Id}
	s.put("request", answer.Id).put("asks", answer.Summary).list("", answer.Details).put("approval", answer.Approval)
	t.say("Once they agreed, from this device: handrail inspect unmask %s", clean(answer.Id))
	return t.awaiting(answer, s, answer.Approval, "unmasking "+clean(f.unmask))
}

func isRequestID(s string) bool {
	rest, ok := strings.CutPrefix(s, "c-")
	return ok && rest != "" && len(rest) <= 32 && !strings.ContainsFunc(rest, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') })
}

func (t *tool) unmaskCommand() *cobra.Command {
	c := t.command("unmask ID", "Show the value that a second person agreed to, once",
		"handrail inspect web-1 env api --unmask DB_URL --why \"wrong host?\"  # asks\nhandrail inspect unmask c-4k2m                                     # shows it, once, on the device that asked",
		exactly("the request"),
		func(cmd *cobra.Command, args []string) error { return t.unmask(cmd.Context(), args[0]) })
	c.Long = `Show the value that a second person agreed to, once, within an hour of the
approval. The host seals it to a key that only the device that asked has; the
ledger keeps that it was shown, not what.`
	return c
}

func (t *tool) unmask(ctx context.Context, id string) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	if !isRequestID(id) {
		return fault.New(fault.Invalid, "cannot show %q: a request to unmask is called c-…", clean(id)).WithHint("handrail inspect HOST env PID --unmask NAME --why \"…\"")
	}
	private, err := os.ReadFile(c.folder.path(unmaskKey(id)))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "cannot show %s: this device did not ask for it, or it was shown", id).WithHint("handrail inspect HOST env PID --unmask NAME --why \"…\"")
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the key of %s", id)
	}
	if err := c.folder.private(); err != nil {
		return err
	}
	answer, err := c.unmaskings.Show(ctx, &v1.ShowUnmaskedRequest{Id: id})
	if err != nil {
		return err
	}
	open, err := seal.NewReader(bytes.NewReader(answer.Sealed), private, answer.Info)
	if err != nil {
		return err
	}
	value, err := io.ReadAll(io.LimitReader(open, 1<<20))
	if err != nil {
		return err
	}
	_ = os.Remove(c.folder.path(unmaskKey(id)))
	shown := string(value)
	if clean(shown) != shown {
		shown = strconv.Quote(shown)
		t.say("It holds what is not printed; it is shown quoted.")
	}
	_, err = fmt.Fprintln(t.Stdout, shown)
	t.say("It is not shown again. A secret that somebody read is best replaced.")
	return err
}

func (t *tool) showAnswerCommand() *cobra.Command {
	c := t.command("show ENTRY", "Show again what an inspection was told, out of the ledger",
		"handrail inspect show n-4k2m9xw1  # the inspection, as it said of itself\nhandrail inspect show 1234        # or its entry of the ledger",
		exactly("the entry or the inspection"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			stream, err := c.answers.Show(cmd.Context(), &v1.ShowAnswerRequest{Entry: args[0]})
			if err != nil {
				return err
			}
			defer stream.Close()
			answer, q := &v1.InspectAnswer{}, &v1.InspectRequest{}
			var about *v1.ShownAnswer
			for stream.Receive() {
				m := stream.Msg()
				if m.GetAnswer() != nil {
					about = m.GetAnswer()
					q.What, q.Target, q.Host = about.What, about.Target, about.HostName
				}
				if h := m.GetHeard(); h != nil {
					answer.Records = append(answer.Records, &v1.InspectResponse{Record: h.Record})
				}
			}
			if err := stream.Err(); err != nil {
				return err
			}
			if about == nil {
				return fault.New(fault.Unavailable, "cannot show it: the answer broke off").WithHint("handrail inspect show %s", quoteShell(clean(args[0])))
			}
			t.say("%s looked at %s %s on %s, %s (entry #%d).", clean(about.PersonName), clean(about.What), clean(about.Target), clean(about.HostName), t.full(about.At), about.Seq)
			if about.Error != "" {
				t.say("It failed: %s", cleanText(about.Error))
			}
			if about.Cut {
				t.say("The ledger keeps the beginning of it; there was more.")
			}
			if len(answer.Records) == 0 {
				t.say("Nothing was told.")
				return nil
			}
			return t.emit(answer, &lookView{t: t, q: q, answer: answer})
		})
	return c
}
