package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

var keyKinds = []string{ledger.KeyLog, ledger.KeyOrder, ledger.KeyCA, ledger.KeySSHUser, ledger.KeySSHHost}

func (t *tool) keysCommand() *cobra.Command {
	c := t.group("keys", "Look at the keys of the installation, and replace them",
		"handrail keys list                                   # which keys count, and until when\nhandrail keys rotate order ca --reason \"quarterly\"    # makes new ones; a second person agrees",
		t.keysListCommand(), t.keysRotateCommand(), t.keysProposalCommand(), t.keysSignCommand(), t.keysInstallCommand(), t.keysDropCommand())
	c.Long = `Replace the keys of the installation while it runs.

  handrail keys rotate KIND…    new keys are made; a second person agrees to them
  handrail keys sign --with F   the root key signs the trust bundle that names them

Live sessions go on. Nodes, commands and servers learn the bundle by themselves,
those that were away too. Old and new count until the overlap ends.`
	return c
}

func (t *tool) keysListCommand() *cobra.Command {
	return t.command("list", "List the keys that count, the former ones, and a rotation that is open",
		"handrail keys list          # in force, former, proposed\nhandrail keys list -o wide  # with the public keys: what witnesses and hosts without a node need",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.keys.List(cmd.Context(), &v1.ListKeysRequest{})
			if err != nil {
				return err
			}
			tb := &table{head: []string{"KEY", "STATE", "UNTIL", "FINGERPRINT", "PUBLIC"}, wide: 4, empty: "No key."}
			for _, k := range answer.Keys {
				row := cells(k.Kind, k.State, "", k.Fingerprint, k.Public)
				switch k.State {
				case "in force":
					row[1] = cell{k.State, good}
				case "proposed":
					row[1] = cell{k.State, warn}
				}
				if k.Until != 0 && k.Kind != ledger.KeyLog {
					row[2] = cell{value: time.Unix(k.Until, 0).UTC().Format(time.RFC3339)}
				}
				tb.add(k.Fingerprint, row)
			}
			if err := t.emit(answer, tb); err != nil {
				return err
			}
			t.say("trust bundle %d is in force", answer.Bundle)
			if answer.HandingOver {
				t.say("The last rotation is being handed over: old and new keys act together for some seconds.")
			}
			t.sayOpen(answer.Open)
			return nil
		})
}

func (t *tool) sayOpen(open *v1.Rotation) {
	switch {
	case open == nil:
	case open.State == "asked":
		t.say("%s waits for a second person: handrail approve %s", clean(open.Id), clean(open.Approval))
	default:
		t.say("%s waits for the root key: handrail keys sign --with root.key", clean(open.Id))
	}
}

func (t *tool) keysRotateCommand() *cobra.Command {
	var reason string
	var overlap time.Duration
	c := t.command("rotate KIND…", "Have new keys made; a second person agrees, and the root key signs",
		"handrail keys rotate log order ca ssh-user-ca ssh-host-ca --reason \"quarterly\"   # all of them\nhandrail keys rotate order --overlap 1h --reason \"a server was stolen\"          # the old one ends soon",
		atLeast("a kind of key: "+strings.Join(keyKinds, ", ")),
		func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return missing("rotate "+strings.Join(args, " "), "--reason", "handrail keys rotate "+strings.Join(args, " ")+` --reason "…"`)
			}
			for _, kind := range args {
				if !slices.Contains(keyKinds, kind) {
					return fault.New(fault.Invalid, "cannot rotate %q: it is no kind of key", clean(kind)).WithHint("handrail keys rotate %s --reason \"…\"", strings.Join(keyKinds, " "))
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.keys.Rotate(cmd.Context(), &v1.RotateKeysRequest{Kinds: args, Overlap: int64(overlap / time.Second), Reason: reason})
			if err != nil {
				return err
			}
			r := answer.Rotation
			s := &sheet{id: r.Id}
			s.put("rotation", r.Id).put("keys", strings.Join(r.Kinds, ", ")).put("old ones until", time.Unix(r.Until, 0).UTC().Format(time.RFC3339)).put("approval", r.Approval)
			return t.awaiting(answer, s, r.Approval, "new keys")
		})
	c.Flags().StringVar(&reason, "reason", "", "why; kept in the ledger")
	c.Flags().DurationVar(&overlap, "overlap", 90*24*time.Hour, "how long the old keys count beside the new ones, from now")
	c.ValidArgsFunction = cobra.FixedCompletions(keyKinds, cobra.ShellCompDirectiveNoFileComp)
	return c
}

// openRotation is what waits.
func (t *tool) openRotation(ctx context.Context) (*client, *v1.Rotation, error) {
	c, err := t.client()
	if err != nil {
		return nil, nil, err
	}
	answer, err := c.keys.List(ctx, &v1.ListKeysRequest{})
	if err != nil {
		return nil, nil, err
	}
	if answer.Open == nil {
		return nil, nil, fault.New(fault.NotFound, "cannot sign keys: no rotation is open").WithHint("handrail keys rotate KIND… --reason \"…\"")
	}
	return c, answer.Open, nil
}

func (t *tool) keysProposalCommand() *cobra.Command {
	return t.command("proposal", "Print the trust bundle that waits for the root key, to carry it to where that is",
		"handrail keys proposal > proposal                                  # here\nhandrail keys sign --with root.key --proposal proposal > signed    # where the root key is",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			_, open, err := t.openRotation(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(t.Stdout, open.Text)
			return err
		})
}

func (t *tool) keysSignCommand() *cobra.Command {
	var with, proposal string
	var sure bool
	c := t.command("sign", "Sign the trust bundle with the root key, and put it in force",
		"handrail keys sign --with /var/lib/handrail/root/root.key        # shows what changes, and asks\nhandrail keys sign --with root.key --proposal proposal > signed  # without any server",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			if with == "" {
				return missing("sign keys", "--with", "handrail keys sign --with root.key")
			}
			key, err := readRootKey(with)
			if err != nil {
				return err
			}
			if proposal != "" {
				text, err := readSmall(proposal)
				if err != nil {
					return err
				}
				signed, err := t.signBundle(cmd.Context(), text, key, nil, sure)
				if err != nil {
					return err
				}
				_, err = t.Stdout.Write(signed)
				return err
			}
			c, open, err := t.openRotation(cmd.Context())
			if err != nil {
				return err
			}
			if open.State != "agreed" {
				return fault.New(fault.NeedsApproval, "cannot sign keys: nobody has agreed to %s", clean(open.Approval)).WithHint("handrail approve %s", clean(open.Approval))
			}
			now := c.bundle()
			signed, err := t.signBundle(cmd.Context(), []byte(open.Text), key, &now, sure)
			if err != nil {
				return err
			}
			return t.bring(cmd.Context(), c, signed)
		})
	c.Flags().StringVar(&with, "with", "", "file that holds the root key")
	c.Flags().StringVar(&proposal, "proposal", "", "file of `handrail keys proposal`; the signed bundle goes to stdout")
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return c
}

func (t *tool) keysInstallCommand() *cobra.Command {
	return t.command("install FILE", "Bring a trust bundle that the root key has signed elsewhere",
		"handrail keys install signed        # what `handrail keys sign --proposal` wrote\nhandrail keys list                  # what counts now",
		exactly("the file"),
		func(cmd *cobra.Command, args []string) error {
			signed, err := readSmall(args[0])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.bring(cmd.Context(), c, signed)
		})
}

func (t *tool) keysDropCommand() *cobra.Command {
	return t.command("drop", "Give up the rotation that is open",
		"handrail keys drop  # nothing has changed until the root key signed\nhandrail keys list  # what is open",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.keys.Drop(cmd.Context(), &v1.DropRotationRequest{})
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Rotation.Id}
			s.put("dropped", answer.Rotation.Id)
			return t.emit(answer, s)
		})
}

func (t *tool) bring(ctx context.Context, c *client, signed []byte) error {
	answer, err := c.keys.Bring(ctx, &v1.BringBundleRequest{Signed: signed})
	if err != nil {
		return err
	}
	if err := c.trust.accept(signed); err != nil {
		return err
	}
	s := &sheet{id: answer.Rotation.Id}
	s.put("trust bundle", fmt.Sprint(answer.Bundle)).put("keys", strings.Join(answer.Rotation.Kinds, ", "))
	s.put("old ones until", time.Unix(answer.Rotation.Until, 0).UTC().Format(time.RFC3339))
	if err := t.emit(answer, s); err != nil {
		return err
	}
	t.say("In force. The new keys act alone in some seconds; nodes and commands learn them by themselves.")
	if slices.Contains(answer.Rotation.Kinds, ledger.KeyLog) {
		t.say("Give witnesses elsewhere the new log key: handrail keys list -o wide")
	}
	if slices.Contains(answer.Rotation.Kinds, ledger.KeySSHUser) {
		t.say("Hosts without a node need the new authority before the old one ends: handrail host trust HOST")
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read %s", path)
	}
	if len(b) > ledger.MaxBundle {
		return nil, fault.New(fault.Invalid, "cannot read %s: it is too long for a trust bundle", path)
	}
	return b, nil
}

// readRootKey never quotes what it read.
func readRootKey(path string) (note.Signer, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "cannot sign keys: there is no root key at %s", path).WithHint("it is root.key of the data folder's root/, or what was printed")
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, "cannot read the root key")
	}
	s, err := note.NewSigner(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot sign keys: %s holds no root key", path).WithHint("it is root.key of the data folder's root/, or what was printed")
	}
	return s, nil
}

// signBundle shows what would count, and signs exactly that. Whoever made the
// proposal could be lying about anything but these keys, so they are shown.
func (t *tool) signBundle(ctx context.Context, text []byte, key note.Signer, now *ledger.Bundle, sure bool) ([]byte, error) {
	b, err := ledger.ReadBundle(text)
	if err != nil {
		return nil, err
	}
	if now != nil {
		if err := onlyKeysDiffer(*now, b); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(t.Stderr, "trust bundle %d of %s, epoch %d\n", b.Version, clean(b.Origin), b.Epoch)
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if now == nil || !hasLine(*now, line) {
			fmt.Fprintln(t.Stderr, "  + "+shorten(clean(line), 140))
		}
	}
	if err := t.unless(ctx, sure, "Sign this with the root key? [y/N] "); err != nil {
		return nil, err
	}
	return ledger.SignBundle(b, key)
}

func hasLine(b ledger.Bundle, line string) bool {
	text, err := b.Text()
	return err == nil && bytes.Contains(text, []byte("\n"+line+"\n"))
}

// onlyKeysDiffer refuses a proposal that follows another bundle than the one in
// force, or changes more than rotations change.
func onlyKeysDiffer(now, next ledger.Bundle) error {
	if next.Version != now.Version+1 || next.Epoch != now.Epoch || next.Origin != now.Origin || next.RootKey != now.RootKey ||
		!slices.Equal(next.VoucherCA, now.VoucherCA) || !slices.Equal(next.OfflineCA, now.OfflineCA) {
		return fault.New(fault.Denied, "cannot sign keys: the proposal for trust bundle %d changes more than keys, or does not follow %d", next.Version, now.Version).
			WithHint("handrail keys drop, and ask who runs the server")
	}
	return nil
}
