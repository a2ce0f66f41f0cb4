package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) drillCommand() *cobra.Command {
	var host string
	var length time.Duration
	glass := t.command("break-glass --host HOST", "Rehearse the way in without a server, for real, on one host",
		"handrail drill break-glass --host web-1              # a host lets your voucher in for 5 minutes\nhandrail drill break-glass --host web-1 --for 10m    # longer",
		exactly(), func(cmd *cobra.Command, _ []string) error {
			if host == "" {
				return fault.New(fault.Invalid, "cannot drill: name a host").WithHint("handrail drill break-glass --host web-1")
			}
			return t.drill(cmd.Context(), host, length)
		})
	glass.Long = `Orders one host to act for you as if no server answered, for a few minutes, and
opens a recorded shell there with stock ssh and your voucher. The order, the
session and the time that it took are in the ledger. Nobody else's voucher
opens anything meanwhile.`
	glass.Flags().StringVar(&host, "host", "", "host to rehearse on")
	glass.Flags().DurationVar(&length, "for", 5*time.Minute, "how long the host lets your voucher in")
	_ = glass.RegisterFlagCompletionFunc("host", t.completeHosts)
	list := t.command("list", "List the last drills, and how long they took",
		"handrail drill list            # and the trend\nhandrail drill list -o json    # for a program",
		exactly(), func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			r, err := c.vouchers.Drills(cmd.Context(), &v1.DrillsRequest{})
			if err != nil {
				return err
			}
			return t.printDrills(r)
		})
	return t.group("drill", "Rehearse emergencies, and see how long they take", "handrail drill break-glass --host web-1    # the way in without a server\nhandrail drill list                        # what drills took", glass, list)
}

func (t *tool) printDrills(r *v1.DrillsResponse) error {
	tab := &table{head: []string{"DRILL", "WHEN", "HOST", "WHO", "TOOK", "OUTCOME"}, empty: "no drill yet; next: handrail drill break-glass --host HOST"}
	for _, d := range r.Drills {
		took, outcome := "-", cell{d.Outcome, warn}
		switch {
		case d.Outcome == "ok":
			took, outcome.tone = d.Took.AsDuration().Round(10*time.Millisecond).String(), good
		case d.Failure != "":
			outcome = cell{d.Outcome + ": " + d.Failure, bad}
		}
		tab.add(d.Id, append(cells(d.Id, t.at(d.At), d.HostName, d.PersonName, took), outcome))
	}
	if err := t.emit(r, tab); err != nil || t.format != "table" && t.format != "wide" {
		return err
	}
	if words := trend(r.Drills); words != "" {
		t.say("%s", words)
	}
	return nil
}

// trend compares the last five drills that worked with the five before them.
func trend(drills []*v1.Drill) string {
	var took []time.Duration
	for _, d := range drills {
		if d.Outcome == "ok" {
			took = append(took, d.Took.AsDuration())
		}
	}
	mean := func(some []time.Duration) time.Duration {
		var sum time.Duration
		for _, d := range some {
			sum += d
		}
		return (sum / time.Duration(len(some))).Round(10 * time.Millisecond)
	}
	switch n := len(took); {
	case n == 0:
		return ""
	case n <= 5:
		return fmt.Sprintf("the last %d took %s on average", n, mean(took))
	default:
		return fmt.Sprintf("the last 5 took %s on average, the %d before them %s", mean(took[:5]), min(n-5, 5), mean(took[5:min(n, 10)]))
	}
}

// drillPatience is how long the entrance may take to open: the goal is a shell
// within a minute.
const drillPatience = 90 * time.Second

func (t *tool) drill(ctx context.Context, host string, length time.Duration) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	v, err := t.fetchVoucher(ctx, c, "", []string{host})
	if err != nil {
		return err
	}
	if len(v.Hosts) != 1 {
		return fault.New(fault.Invalid, "cannot drill on %d hosts: name one", len(v.Hosts)).WithHint("handrail drill break-glass --host %s", v.Hosts[0].Name)
	}
	// The voucher for one host, and used: afterwards there is a good one again.
	defer func() { _, _ = t.fetchVoucher(context.WithoutCancel(ctx), c, "", nil) }()
	began := time.Now()
	r, err := c.vouchers.Drill(ctx, &v1.DrillRequest{Host: v.Hosts[0].ID, For: durationpb.New(length)})
	if err != nil {
		return unreachable(c.login.Address, err)
	}
	t.say("%s lets your voucher in until %s; opening a shell with stock ssh …", clean(r.HostName), r.Until.AsTime().Local().Format("15:04:05"))
	failure := t.rehearse(ctx, c.folder, v.Hosts[0].Name, began)
	took := time.Since(began)
	ended := &v1.DrilledRequest{Id: r.Id, Took: durationpb.New(took)}
	if failure != nil {
		ended.Failure = failure.Error()
	}
	if _, err := c.vouchers.Drilled(ctx, ended); err != nil {
		return err
	}
	if failure != nil {
		return fault.New(fault.Unavailable, "the drill failed after %s: %v", took.Round(10*time.Millisecond), failure).WithHint("handrail host show %s", clean(r.HostName))
	}
	fmt.Fprintf(t.out(), "drill %s: a recorded shell on %s after %s\n", r.Id, clean(r.HostName), took.Round(10*time.Millisecond))
	return nil
}

// rehearse runs the stock client until the entrance has opened and a shell has
// answered.
func (t *tool) rehearse(ctx context.Context, f folder, name string, began time.Time) error {
	const answer = "handrail-drill-shell"
	var last error
	for time.Since(began) < drillPatience {
		cmd := exec.CommandContext(ctx, "ssh", "-F", f.path(fileVoucherSSH), "-o", "ConnectTimeout=5", "-T", "bg-"+name, "id -un; echo "+answer)
		cmd.Stderr = nil
		out, err := cmd.Output()
		if err == nil && strings.Contains(string(out), answer) {
			t.say("  %s", clean(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(string(out)), answer))))
			return nil
		}
		last = fmt.Errorf("ssh: %w", err)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			last = fmt.Errorf("ssh: %s", strings.TrimSpace(lastLine(string(exit.Stderr))))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	return last
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
