package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

// agreedFlags are what a look that somebody agrees to can be told.
type agreedFlags struct {
	why, most, keep, unmask string
}

func (f *agreedFlags) on(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.why, "why", "", "core and --unmask: why, for the person who agrees")
	flags.StringVar(&f.most, "most", "", "core: the largest dump (default 1GiB, at most 16GiB)")
	flags.StringVar(&f.keep, "keep", "", "core: how long it is kept (default 24h, at most 7d)")
	flags.StringVar(&f.unmask, "unmask", "", "env: ask that the value of this variable be shown, once")
}

// bytesOf reads 512MiB or 2GiB.
func bytesOf(text string) (uint64, error) {
	for _, u := range []struct {
		name string
		n    uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"G", 1 << 30}, {"M", 1 << 20}} {
		if number, ok := strings.CutSuffix(text, u.name); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
			if err == nil && n > 0 {
				return n * u.n, nil
			}
		}
	}
	return 0, fault.New(fault.Invalid, "cannot read %q as a size", clean(text)).WithHint("--most 2GiB")
}

// askCore asks a second person for a dump of a process's memory.
func (t *tool) askCore(ctx context.Context, args []string, pause string, f agreedFlags) error {
	host := clean(args[0])
	if len(args) < 3 {
		return missing("dump memory on "+host, "the process", "handrail inspect "+quoteShell(host)+" core PID --why \"…\"")
	}
	if f.why == "" {
		return missing("dump memory on "+host, "--why", "handrail inspect "+quoteShell(host)+" core "+quoteShell(clean(args[2]))+" --why \"…\"")
	}
	r := &v1.AskCoreRequest{Host: args[0], Target: args[2], Why: f.why}
	var err error
	if f.most != "" {
		if r.Most, err = bytesOf(f.most); err != nil {
			return err
		}
	}
	for _, x := range []struct {
		text string
		into **durationpb.Duration
	}{{pause, &r.Pause}, {f.keep, &r.Keep}} {
		if x.text != "" {
			d, err := when.Duration(x.text)
			if err != nil {
				return err
			}
			*x.into = durationpb.New(d)
		}
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	answer, err := c.cores.Ask(ctx, r)
	if err != nil {
		return err
	}
	s := &sheet{id: answer.Id}
	s.put("request", answer.Id).put("asks", answer.Summary).list("", answer.Details).put("approval", answer.Approval)
	t.say("Once they agreed, and while %s is drained: handrail inspect core take %s", host, clean(answer.Id))
	return t.awaiting(answer, s, answer.Approval, "the dump")
}

func (t *tool) coreCommand() *cobra.Command {
	return t.group("core", "Take, list and fetch core dumps that a second person agreed to",
		"handrail inspect web-1 core api.service --why \"it leaks\"  # asks for one; web-1 has to be drained\nhandrail inspect core list                               # what was asked for, and what is kept",
		t.coreTakeCommand(), t.coreListCommand(), t.coreGetCommand(), t.coreRemoveCommand())
}

func (t *tool) coreTakeCommand() *cobra.Command {
	return t.command("take ID", "Have the dump made that was agreed to; the process stands still meanwhile",
		"handrail inspect core take c-4k2m  # within an hour of the approval, while the host is drained\nhandrail inspect core list         # which ones are agreed to",
		exactly("the request"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			stream, err := c.cores.Take(cmd.Context(), &v1.TakeCoreRequest{Id: args[0]})
			if err != nil {
				return err
			}
			defer stream.Close()
			var core *v1.Core
			var end *v1.InspectEnd
			for stream.Receive() {
				m := stream.Msg()
				switch x := m.GetHeard().GetRecord().(type) {
				case *v1.InspectResponse_Target:
					t.say("The memory of %s (%d) of %s is being copied.", clean(x.Target.Name), x.Target.Pid, clean(x.Target.User))
				case *v1.InspectResponse_Note:
					t.say("handrail: %s", clean(x.Note))
				case *v1.InspectResponse_End:
					end = x.End
				}
				if m.GetCore() != nil {
					core = m.GetCore()
				}
			}
			if err := stream.Err(); err != nil {
				return err
			}
			if core == nil {
				return fault.New(fault.Unavailable, "cannot take the dump: the answer broke off").WithHint("handrail inspect core list")
			}
			s := &sheet{id: core.Id}
			s.put("core", core.Id).put("size", size(core.Bytes)).put("kept as", size(core.Sealed)+", sealed").put("destroyed", t.full(core.Until))
			if end != nil {
				s.put("pause", end.Pause.AsDuration().Round(10*time.Microsecond).String())
			}
			t.say("Fetch it: handrail inspect core get %s FILE", clean(core.Id))
			return t.emit(core, s)
		})
}

func (t *tool) coreListCommand() *cobra.Command {
	return t.command("list", "List core dumps: asked for, agreed to, kept, gone",
		"handrail inspect core list          # the newest first\nhandrail inspect core list -o wide  # with requests, sizes and reasons",
		exactly(),
		func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.cores.List(cmd.Context(), &v1.ListCoresRequest{})
			if err != nil {
				return err
			}
			tb := &table{
				head: []string{"CORE", "STATE", "HOST", "PROCESS", "PERSON", "SIZE", "UNTIL", "YOURS", "REQUEST", "KEPT AS", "SERVER", "WHY"}, wide: 8,
				empty: "No core dump was asked for. Ask: handrail inspect HOST core PID --why \"…\"",
			}
			for _, x := range answer.Cores {
				row := cells(x.Id, "", x.HostName, x.Process, x.PersonName, "", "", yes(x.Mine), x.Approval, "", x.Home, x.Why)
				row[1] = state(x.State)
				if x.Bytes > 0 {
					row[5], row[9] = cell{size(x.Bytes), calm}, cell{size(x.Sealed), calm}
				}
				if x.State == "agreed" || x.State == "kept" {
					row[6] = cell{t.at(x.Until), calm}
				}
				tb.add(x.Id, row)
			}
			return t.emit(answer, tb)
		})
}

func (t *tool) coreGetCommand() *cobra.Command {
	return t.command("get ID FILE", "Fetch a core dump into a new file; for who asked and who agreed, and recorded",
		"handrail inspect core get c-4k2m core    # then: gdb PROGRAM core\nhandrail inspect core list               # what is there to fetch",
		exactly("the core dump", "the file"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.getCore(cmd.Context(), c, args[0], args[1])
		})
}

// getCore writes a file that is there only when it is whole, and for its owner
// alone: it holds whatever the process held.
func (t *tool) getCore(ctx context.Context, c *client, id, name string) (err error) {
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "cannot write %s: there is something of that name", clean(name)).WithHint("handrail inspect core get %s OTHER-FILE", clean(id))
	}
	part := name + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot write %s", clean(name))
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(part)
		}
	}()
	stream, err := c.cores.Download(ctx, &v1.DownloadCoreRequest{Id: id})
	if err != nil {
		return err
	}
	defer stream.Close()
	var core *v1.Core
	n := uint64(0)
	for stream.Receive() {
		if m := stream.Msg(); m.Core != nil {
			core = m.Core
		}
		k, err := f.Write(stream.Msg().Part)
		if n += uint64(k); err != nil {
			return fault.Wrap(fault.Exhausted, err, "cannot write %s", clean(name))
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if core == nil || n != core.Bytes {
		return fault.New(fault.Unavailable, "cannot fetch the dump: the answer broke off").WithHint("handrail inspect core get %s %s", clean(id), quoteShell(clean(name)))
	}
	if err := f.Sync(); err != nil {
		return fault.Wrap(fault.Exhausted, err, "cannot write %s", clean(name))
	}
	if err := os.Link(part, name); err != nil { // not over what came meanwhile
		return fault.Wrap(fault.Conflict, err, "cannot write %s", clean(name))
	}
	_ = os.Remove(part)
	t.say("It holds whatever the process held: keep it as you keep its secrets, and delete it. The server's copy is destroyed %s.", t.full(core.Until))
	s := &sheet{id: core.Id}
	s.put("core", core.Id).put("file", name).put("size", size(n))
	return t.emit(core, s)
}

func (t *tool) coreRemoveCommand() *cobra.Command {
	var sure bool
	c := t.command("remove ID", "Destroy a core dump before its time is over",
		"handrail inspect core remove c-4k2m        # asks first\nhandrail inspect core remove c-4k2m --yes  # does not ask",
		exactly("the core dump"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := t.unless(cmd.Context(), sure, fmt.Sprintf("Destroy core dump %s? Nobody can open it then. [y/N] ", clean(args[0]))); err != nil {
				return err
			}
			if _, err := c.cores.Remove(cmd.Context(), &v1.RemoveCoreRequest{Id: args[0]}); err != nil {
				return err
			}
			t.say("Core dump %s is destroyed.", clean(args[0]))
			return nil
		})
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return c
}
