package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func (t *tool) ledgerWitnessCommand() *cobra.Command {
	return t.group("witness", "Say who outside vouches for the ledger",
		"handrail ledger witness list                                     # who vouches, and how far\nhandrail ledger witness add audit 'audit+1a2b…' http://audit:7099  # ask one more; a second person agrees",
		t.witnessListCommand(), t.witnessAddCommand(), t.witnessRemoveCommand(), t.witnessCosignCommand(), t.witnessPolicyCommand())
}

func (t *tool) witnessListCommand() *cobra.Command {
	return t.command("list", "List the witnesses, how many must cosign, and how far they have",
		"handrail ledger witness list          # who cosigned what, and when\nhandrail ledger witness list -o wide  # with keys",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.witnesses.List(cmd.Context(), &v1.ListWitnessesRequest{})
			if err != nil {
				return err
			}
			tb := &table{
				head: []string{"WITNESS", "STATE", "COSIGNED", "AT", "TOOK", "ADDRESS", "KEY"}, wide: 6,
				empty: "No witness: whoever holds the server's keys could keep two histories. Start one elsewhere: handrail witness --data ./witness --log '" + answer.LogKey + "'",
			}
			for _, w := range answer.Witnesses {
				row := cells(w.Name, "", "", t.at(w.CosignedAt), length(w.Took.AsDuration()), w.Url, w.Key)
				switch {
				case w.MissingSince != nil:
					row[1] = cell{"missing since " + t.at(w.MissingSince), bad}
				case w.Why != "":
					row[1] = cell{"silent", warn}
				case w.CosignedAt != nil:
					row[1], row[2] = cell{"cosigns", good}, cell{value: fmt.Sprint(w.Size)}
				}
				tb.add(w.Name, row)
			}
			if err := t.emit(answer, tb); err != nil {
				return err
			}
			for _, w := range answer.Witnesses {
				if w.Why != "" {
					t.say("%s: %s", clean(w.Name), cleanText(w.Why))
				}
			}
			if answer.Need != 0 {
				t.say("%s. %s.", needed(answer.Need, len(answer.Witnesses)), tailWords(t, answer))
			}
			t.say("The key by which others witness this ledger: %s", clean(answer.LogKey))
			t.say("The key by which this server witnesses others: %s (address: its own, with /witness)", clean(answer.WitnessKey))
			return nil
		})
}

func needed(need int32, of int) string {
	switch {
	case need < 0:
		return "By groups they must cosign: handrail ledger witness policy"
	case need == 0:
		return "None must cosign"
	}
	return fmt.Sprintf("%d of %d must cosign", need, of)
}

func tailWords(t *tool, answer *v1.ListWitnessesResponse) string {
	switch {
	case answer.CosignedAt == nil:
		return "Enough of them have not cosigned yet"
	case answer.Tail == 0:
		return "The whole ledger is cosigned"
	}
	return fmt.Sprintf("%s not cosigned yet, since %s", count(answer.Tail, "entry"), t.at(answer.CosignedAt))
}

// setWitnesses asks for another policy, made from the one in force.
func (t *tool) setWitnesses(ctx context.Context, c *client, change func(p ledger.WitnessPolicy) (string, error)) error {
	now, err := c.witnesses.List(ctx, &v1.ListWitnessesRequest{})
	if err != nil {
		return err
	}
	p, err := ledger.ParseWitnessPolicy([]byte(now.Policy))
	if err != nil {
		return err
	}
	text, err := change(p)
	if err != nil {
		return err
	}
	next, err := ledger.ParseWitnessPolicy([]byte(text))
	if err != nil {
		return err
	}
	answer, err := c.witnesses.Set(ctx, &v1.SetWitnessesRequest{Base: now.Version, Policy: text})
	if err != nil {
		return err
	}
	s := &sheet{id: "witnesses"}
	s.put("witnesses", needed(int32(next.Need()), len(next.Witnesses))).put("approval", answer.Approval)
	s.below = text
	return t.awaiting(answer, s, answer.Approval, "the witnesses")
}

// simple refuses to rebuild a policy that somebody wrote by groups.
func simple(p ledger.WitnessPolicy) error {
	if p.Need() >= 0 {
		return nil
	}
	return fault.New(fault.Conflict, "cannot change the witnesses one by one: the policy in force has groups").
		WithHint("handrail ledger witness policy > witnesses; edit it; handrail ledger witness policy witnesses")
}

func (t *tool) witnessAddCommand() *cobra.Command {
	need := 0
	c := t.command("add NAME KEY URL", "Ask one more witness to cosign the ledger; a second person agrees",
		"handrail ledger witness add audit 'audit+1a2b3c4d+BA…' http://audit:7099           # it must answer\nhandrail ledger witness add site2 'w+5e6f7a8b+BA…' https://h2:7080/witness --need 1  # one of two must",
		exactly("its name", "its key", "its address"),
		func(cmd *cobra.Command, args []string) error {
			key, err := ledger.ParseWitnessKey(args[1])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.setWitnesses(cmd.Context(), c, func(p ledger.WitnessPolicy) (string, error) {
				if err := simple(p); err != nil {
					return "", err
				}
				all := append(p.Witnesses, ledger.PolicyWitness{Name: args[0], Key: key, URL: args[2]})
				return ledger.SimplePolicy(p.Logs, all, wanted(need, max(p.Need(), 1), len(all))), nil
			})
		})
	c.Flags().IntVar(&need, "need", 0, "how many of all witnesses must cosign (default: as many as now, at least one)")
	return c
}

// wanted is how many must cosign: as the flag says, else as before.
func wanted(flag, before, of int) int {
	if flag == 0 {
		flag = before
	}
	return min(flag, of)
}

func (t *tool) witnessRemoveCommand() *cobra.Command {
	need := 0
	c := t.command("remove NAME", "Ask a witness no more; a second person agrees",
		"handrail ledger witness remove audit           # the others go on\nhandrail ledger witness remove audit --need 1  # and one of them must",
		exactly("its name"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.setWitnesses(cmd.Context(), c, func(p ledger.WitnessPolicy) (string, error) {
				if err := simple(p); err != nil {
					return "", err
				}
				rest := slices.DeleteFunc(slices.Clone(p.Witnesses), func(w ledger.PolicyWitness) bool { return w.Name == args[0] })
				if len(rest) == len(p.Witnesses) {
					return "", fault.New(fault.NotFound, "cannot remove witness %q: there is none of that name", clean(args[0])).WithHint("handrail ledger witness list")
				}
				return ledger.SimplePolicy(p.Logs, rest, wanted(need, p.Need(), len(rest))), nil
			})
		})
	c.Flags().IntVar(&need, "need", 0, "how many of those that stay must cosign (default: as many as now)")
	return c
}

func (t *tool) witnessCosignCommand() *cobra.Command {
	return t.command("cosign LOGKEY", "Have this server cosign another installation's ledger; a second person agrees",
		"handrail ledger witness cosign 'other+1a2b3c4d+AR…'  # its log key: handrail ledger witness list, over there\nhandrail ledger witness list                         # this server's witness key, to add over there",
		exactly("the log key of the other ledger"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.setWitnesses(cmd.Context(), c, func(p ledger.WitnessPolicy) (string, error) {
				return "log " + args[0] + "\n" + p.Text(), nil
			})
		})
}

func (t *tool) witnessPolicyCommand() *cobra.Command {
	c := t.command("policy [FILE]", "Print the witness policy (C2SP tlog-policy), or put FILE in force; a second person agrees",
		"handrail ledger witness policy > witnesses  # as it is\nhandrail ledger witness policy witnesses    # with groups: \"2 of ours and any of theirs\"",
		atMost("the file"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				text, err := readBounded(args[0])
				if err != nil {
					return fault.Wrap(fault.Invalid, err, "cannot read %s", clean(args[0]))
				}
				return t.setWitnesses(cmd.Context(), c, func(ledger.WitnessPolicy) (string, error) { return string(text), nil })
			}
			answer, err := c.witnesses.List(cmd.Context(), &v1.ListWitnessesRequest{})
			if err != nil {
				return err
			}
			s := &sheet{id: "policy"}
			if t.format == "table" || t.format == "wide" {
				_, err := io.WriteString(t.out(), strings.TrimRight(cleanText(answer.Policy), "\n")+"\n")
				return err
			}
			return t.emit(answer, s)
		})
	c.ValidArgsFunction = nil
	return c
}
