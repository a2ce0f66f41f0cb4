package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

// inspectVerbs are what can be looked at, with a word about each.
var inspectVerbs = []struct{ name, what string }{
	{"stacks", "where every thread stands"},
	{"top", "who uses the processors, memory and disks"},
	{"journal", "the newest records of a unit or the host"},
	{"ports", "who listens and who is connected"},
	{"files", "open files of a process, or a path"},
	{"env", "the environment, with its secrets masked"},
	{"core", "ask for a dump of a process's memory"},
}

// inspectFlags are what a look can be told.
type inspectFlags struct {
	pause, since, until, priority, grep string
	lines                               uint32
	head, tail, stat, list              bool
}

func (t *tool) inspectCommand() *cobra.Command {
	var f inspectFlags
	var agreed agreedFlags
	c := t.command("inspect HOST stacks|top|journal|ports|files|env|core [TARGET]", "Look at a host's processes without a shell; secrets are masked there",
		"handrail inspect web-1 stacks api.service       # a stack dump, picked by runtime; TARGET is a pid, a unit or a name\n"+
			"handrail inspect web-1 journal pay --since -30m  # of a unit; also: top, ports, env PID, files PID, files /var/log",
		func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) < 1:
				return exactly("the host")(cmd, args)
			case len(args) < 2:
				return fault.New(fault.Invalid, "cannot inspect %s: what of it? One of %s", clean(args[0]), strings.Join(verbNames(), ", ")).
					WithHint("handrail inspect %s top", clean(args[0]))
			case len(args) > 3:
				return exactly("the host", "what to look at", "the target")(cmd, args)
			}
			return nil
		},
		func(cmd *cobra.Command, args []string) error {
			if args[1] == "core" {
				return t.askCore(cmd.Context(), args, f.pause, agreed)
			}
			if agreed.unmask != "" {
				return t.askUnmask(cmd.Context(), args, agreed)
			}
			q, err := t.lookRequest(args, f)
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.inspect(cmd.Context(), c, q)
		})
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			var out []string
			for _, v := range inspectVerbs {
				out = append(out, v.name+"\t"+v.what)
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		return t.completeHosts(cmd, args, word)
	}
	flags := c.Flags()
	flags.StringVar(&f.pause, "pause", "", "the longest that the process may be held (stacks: 200ms; core: 30s)")
	flags.StringVar(&f.since, "since", "", "journal: from then on (14:05, -30m, yesterday 14:05)")
	flags.StringVar(&f.until, "until", "", "journal: up to then")
	flags.StringVar(&f.priority, "priority", "", "journal: this grave or graver (err, warning, info, …)")
	flags.StringVar(&f.grep, "grep", "", "journal and files: only lines that contain this text")
	flags.Uint32VarP(&f.lines, "lines", "n", 0, "how many lines, rows or stacks at most")
	flags.BoolVar(&f.head, "head", false, "files: the first lines of a file")
	flags.BoolVar(&f.tail, "tail", false, "files: the last lines of a file (as without a flag)")
	flags.BoolVar(&f.stat, "stat", false, "files: only what the file system says of it")
	flags.BoolVar(&f.list, "list", false, "files: what lies in a folder (as without a flag)")
	agreed.on(c)
	c.Long = `Look at a host's processes without a shell: its node looks, and masks what it says.

core asks for a dump of a process's memory, and env with --unmask for a masked
value: a second person agrees first. What follows them is "handrail inspect core"
and "handrail inspect unmask"; an answer of the past is "handrail inspect show".
A host of one of these names is named by its id.`
	c.AddCommand(t.coreCommand(), t.unmaskCommand(), t.showAnswerCommand())
	t.completeWords(c, "priority", "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
	return c
}

func verbNames() []string {
	var out []string
	for _, v := range inspectVerbs {
		out = append(out, v.name)
	}
	return out
}

func (t *tool) lookRequest(args []string, f inspectFlags) (*v1.InspectRequest, error) {
	q := &v1.InspectRequest{Host: args[0], What: args[1], Priority: f.priority, Grep: f.grep, Lines: f.lines}
	if !slices.Contains(verbNames(), q.What) {
		e := fault.New(fault.Invalid, "cannot inspect %q: known are %s", clean(q.What), strings.Join(verbNames(), ", "))
		if near := fault.Nearest(q.What, verbNames()); near != "" {
			return nil, e.WithHint("handrail inspect %s %s", clean(q.Host), near)
		}
		return nil, e.WithHint("handrail inspect --help")
	}
	if len(args) == 3 {
		q.Target = args[2]
	}
	parts := 0
	for part, on := range map[string]bool{"head": f.head, "tail": f.tail, "stat": f.stat, "list": f.list} {
		if on {
			q.Part = part
			parts++
		}
	}
	if parts > 1 {
		return nil, fault.New(fault.Invalid, "cannot look in two ways at once: one of --head, --tail, --stat, --list")
	}
	if f.pause != "" {
		d, err := time.ParseDuration(f.pause)
		if err != nil || d <= 0 || d > 5*time.Second {
			return nil, fault.New(fault.Invalid, "cannot use the pause %q: a length of time up to 5s", clean(f.pause)).WithHint("--pause 50ms")
		}
		q.Pause = durationpb.New(d)
	}
	for _, x := range []struct {
		text string
		into **timestamppb.Timestamp
	}{{f.since, &q.Since}, {f.until, &q.Until}} {
		if x.text == "" {
			continue
		}
		at, err := when.Parse(x.text, t.Now())
		if err != nil {
			return nil, err
		}
		*x.into = timestamppb.New(at)
	}
	return q, nil
}

// inspect prints the answer; how it was come by is words, and goes to stderr.
func (t *tool) inspect(ctx context.Context, c *client, q *v1.InspectRequest) error {
	stream, err := c.inspect.Look(ctx, q)
	if err != nil {
		return err
	}
	defer stream.Close()
	answer := &v1.InspectAnswer{}
	for stream.Receive() {
		answer.Records = append(answer.Records, &v1.InspectResponse{Record: stream.Msg().Record}) // the message itself is used again
	}
	err = stream.Err()
	if len(answer.Records) > 0 {
		v := &lookView{t: t, q: q, answer: answer}
		if perr := t.emit(answer, v); perr != nil {
			return perr
		}
		if t.format == "table" || t.format == "wide" {
			v.words()
		}
	}
	return err
}
