package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func (t *tool) ledgerCommand() *cobra.Command {
	return t.group("ledger", "Read, verify and export the record of who looked at and changed what",
		"handrail ledger list --person bob  # what bob did\nhandrail ledger verify             # prove that nothing was touched",
		t.ledgerListCommand(), t.ledgerShowCommand(), t.ledgerVerifyCommand(), t.ledgerProofCommand(), t.ledgerExportCommand(), t.ledgerWitnessCommand(), t.ledgerRetainCommand(), t.ledgerEraseCommand())
}

func (t *tool) ledgerListCommand() *cobra.Command {
	r := &v1.ListEntriesRequest{}
	var before string
	var follow, all bool
	c := t.command("list", "List entries, the newest first",
		"handrail ledger list --action grant --person bob  # bob's grants\nhandrail ledger list -f                           # live",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			if before != "" {
				n, err := number(before)
				if err != nil {
					return err
				}
				r.Before = n
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if follow {
				return t.followEntries(cmd.Context(), c, all)
			}
			r.Unfolded = all
			answer, err := c.ledger.List(cmd.Context(), r)
			if err != nil {
				return err
			}
			return t.emit(answer, t.entryTable(answer.Entries))
		})
	c.Flags().StringVar(&r.Action, "action", "", "only this action (grant.approved), or all of a noun (grant)")
	c.Flags().StringVar(&r.Person, "person", "", "only what concerns this person")
	c.Flags().StringVar(&r.Target, "host", "", "only on this host")
	c.Flags().StringVar(&r.Session, "session", "", "only of this session")
	c.Flags().Uint32Var(&r.Limit, "limit", 50, "how many, at most 500")
	c.Flags().StringVar(&before, "before", "", "only entries with a smaller number")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print each new entry")
	c.Flags().BoolVar(&all, "all", false, "the outcome of each act as an entry of its own too")
	_ = c.RegisterFlagCompletionFunc("person", t.completePeople)
	_ = c.RegisterFlagCompletionFunc("host", t.completeHosts)
	_ = c.RegisterFlagCompletionFunc("session", t.completeSessions(false))
	return c
}

// actEnded is the outcome of an act that has no closing entry of its own.
const actEnded = "act.ended"

func (t *tool) followEntries(ctx context.Context, c *client, all bool) error {
	newest, err := c.ledger.List(ctx, &v1.ListEntriesRequest{Limit: 1, Unfolded: true})
	if err != nil {
		return err
	}
	r := &v1.WatchEntriesRequest{}
	if len(newest.Entries) > 0 {
		r.After = newest.Entries[0].Number
	}
	stream, err := c.ledger.Watch(ctx, r)
	if err != nil {
		return err
	}
	defer stream.Close()
	first := true
	for stream.Receive() {
		if e := stream.Msg().Entry; !all && e.Action == actEnded && e.Outcome == "ok" {
			continue // its opening has been told; only what went wrong is news
		}
		tb := t.entryTable([]*v1.Entry{stream.Msg().Entry})
		tb.headless, first = !first, false
		if err := t.line(stream.Msg().Entry, tb); err != nil {
			return err
		}
	}
	return ended(ctx, stream.Err())
}

func entryName(e *v1.Entry) string { return fmt.Sprintf("#%d", e.GetNumber()) }

func (t *tool) entryTable(entries []*v1.Entry) *table {
	tb := &table{head: []string{"ENTRY", "AT", "ACTION", "OUTCOME", "SUMMARY", "WHO", "WHERE", "SESSION", "OBJECT", "BOOTSTRAP"}, wide: 5, empty: "No entry matches."}
	for _, e := range entries {
		object := e.Object
		if e.ObjectVersion != 0 {
			object += fmt.Sprintf(" v%d", e.ObjectVersion)
		}
		summary := e.Summary
		if e.Erased {
			summary = "(erased)"
		}
		row := cells(entryName(e), t.at(e.At), e.Action, "", summary, orElse(e.ActorName, firstOf(e.Subjects)), orElse(e.TargetName, e.Target), e.Session, object, map[bool]string{true: "yes"}[e.Bootstrap])
		row[3] = state(orElse(e.EndedOutcome, e.Outcome))
		tb.add(entryName(e), row)
	}
	return tb
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// number reads the number of an entry: 1234 or #1234.
func number(s string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "#"), 10, 63)
	if err != nil {
		return 0, fault.New(fault.Invalid, "cannot read entry %q: it is a number, such as 1234 or #1234", clean(s)).WithHint("handrail ledger list")
	}
	return n, nil
}

// entryNumber is number, or - for the newest entry.
func (c *client) entryNumber(ctx context.Context, s string) (uint64, error) {
	if s != latest {
		return number(s)
	}
	answer, err := c.ledger.List(ctx, &v1.ListEntriesRequest{Limit: 1, Unfolded: true})
	if err != nil {
		return 0, err
	}
	if len(answer.Entries) == 0 {
		return 0, nothingLatest("entry", "handrail ledger list")
	}
	return answer.Entries[0].Number, nil
}

func (t *tool) ledgerShowCommand() *cobra.Command {
	return t.command("show ENTRY", "Show one entry, with its leaf and payload",
		"handrail ledger show 1234  # by number\nhandrail ledger show -     # the newest",
		exactly("the number of the entry"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			n, err := c.entryNumber(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			answer, err := c.ledger.Get(cmd.Context(), &v1.GetEntryRequest{Number: n})
			if err != nil {
				return err
			}
			e := answer.Entry
			s := &sheet{id: entryName(e)}
			s.put("entry", entryName(e)).put("at", t.full(e.GetAt())).put("action", e.GetAction()).toned("outcome", e.GetOutcome(), stateTone[e.GetOutcome()])
			s.put("who", e.GetActorName()).put("subjects", strings.Join(e.GetSubjects(), ", ")).put("where", orElse(e.GetTargetName(), e.GetTarget()))
			s.put("session", e.GetSession()).put("object", e.GetObject()).put("summary", e.GetSummary())
			if e.GetBootstrap() {
				s.toned("bootstrap", "yes", warn)
			}
			payload := e.GetPayloadJson()
			if e.GetErased() {
				payload = "erased; every proof stays valid"
			}
			s.put("payload", payload).put("leaf", e.GetLeafJson())
			return t.emit(answer, s)
		})
}

func (t *tool) ledgerProofCommand() *cobra.Command {
	return t.command("proof ENTRY", "Prove that one entry is in the ledger, checked on this machine",
		"handrail ledger proof 1234          # checked against the log key of the trust bundle\nhandrail ledger proof 1234 -o json  # leaf, hashes and checkpoint, to check elsewhere",
		exactly("the number of the entry"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			n, err := c.entryNumber(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			answer, err := c.ledger.Proof(cmd.Context(), &v1.ProofRequest{Number: n})
			if err != nil {
				return err
			}
			s, err := t.checkProof(c, n, answer)
			if err != nil {
				return err
			}
			return t.emit(answer, s)
		})
}

// checkProof verifies a proof here: the server that sent it is not believed.
func (t *tool) checkProof(c *client, n uint64, answer *v1.ProofResponse) (*sheet, error) {
	tree, err := c.checkpoint(answer.Checkpoint)
	if err != nil {
		return nil, err
	}
	key, err := c.bundle().Log(time.Now())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the log key of the trust bundle")
	}
	proof := ledger.Proof{Index: int64(n), Leaf: answer.Leaf, Checkpoint: []byte(answer.Checkpoint)}
	for _, h := range answer.Inclusion {
		var hash tlog.Hash
		if copy(hash[:], h) != len(hash) || len(h) != len(hash) {
			return nil, fault.New(fault.Internal, "cannot verify entry #%d: the server sent a malformed proof", n)
		}
		proof.Inclusion = append(proof.Inclusion, hash)
	}
	leaf, err := proof.VerifyLeaf(key, c.bundle().Origin)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot trust entry #%d", n).WithHint("handrail ledger verify")
	}
	s := &sheet{id: fmt.Sprintf("#%d", n)}
	s.put("entry", fmt.Sprintf("#%d", n)).put("action", string(leaf.Action)).put("outcome", string(leaf.Outcome))
	s.toned("proof", fmt.Sprintf("valid: in the ledger of %s, signed by its log key", count(tree.N, "entry")), good)
	s.wide("leaf hash", ledger.HashOf(answer.Leaf).String()).wide("log key", c.bundle().LogKey)
	s.below = answer.Checkpoint
	return s, nil
}

func (t *tool) ledgerExportCommand() *cobra.Command {
	return t.command("export FILE", "Export the ledger as a zip that verifies with no server",
		"handrail ledger export ledger.zip  # then: handrail ledger verify --file ledger.zip\nhandrail ledger export - > out.zip  # to stdout",
		exactly("the file (- is stdout)"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if args[0] == "-" {
				if _, tty := terminal(t.Stdout); tty {
					return fault.New(fault.Invalid, "cannot export to a terminal").WithHint("handrail ledger export ledger.zip")
				}
				_, err := t.export(cmd.Context(), c, t.out())
				return err
			}
			return t.exportFile(cmd.Context(), c, args[0])
		})
}

// exportFile writes beside the file and renames: a broken export leaves what
// was there before.
func (t *tool) exportFile(ctx context.Context, c *client, name string) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot write %s", clean(name))
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	n, err := t.export(ctx, c, tmp)
	if err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return fault.Wrap(fault.Exhausted, err, "cannot write %s", clean(name))
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot write %s", clean(name))
	}
	t.say("Wrote %s, %s. It holds what was recorded: keep it as you would the ledger. Verify it anywhere:\n  handrail ledger verify --file %s", clean(name), size(uint64(n)), quoteShell(name))
	return nil
}

func (t *tool) export(ctx context.Context, c *client, w io.Writer) (int64, error) {
	stream, err := c.ledger.Export(ctx, &v1.ExportRequest{})
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	p := t.progress()
	defer p.clear()
	var n int64
	for stream.Receive() {
		m, err := w.Write(stream.Msg().Data)
		if n += int64(m); err != nil {
			return n, fault.Wrap(fault.Exhausted, err, "cannot write the export")
		}
		p.show(fmt.Sprintf("exporting: %s", size(uint64(n))))
	}
	return n, stream.Err()
}
