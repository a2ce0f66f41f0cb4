package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/shamir"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The second level: an authority for vouchers that no server has. Its key is
// split 2 of 3 the moment it is made, each share sealed to an officer, and
// exists whole only in the memory of this program, for as long as it takes to
// sign one certificate.

// officers and enough are the split.
const (
	officers = 3
	enough   = 2
	maxShare = 64 << 10
)

// share is what an officer's file holds once it is opened.
type share struct {
	V       int    `json:"v"`
	Officer string `json:"officer"`
	Public  string `json:"public"` // of the whole key; authorized_keys line
	X       byte   `json:"x"`
	Y       []byte `json:"y"`
}

// VoucherCommands are the verbs of `handrail voucher` that no server takes part in.
func VoucherCommands() []*cobra.Command {
	return []*cobra.Command{trustCommand(), ceremonyCommand()}
}

// trustLocal offers what is to be signed, or takes the bundle that was signed.
func (s *Server) trustLocal(ctx context.Context, signed []byte) (localAnswer, error) {
	if len(signed) == 0 {
		line, err := s.ring.OfferVoucherAuthority()
		_, bundle := s.ring.Bundle()
		return localAnswer{Bundle: bundle, Voucher: line}, err
	}
	return localAnswer{}, s.rotations.Trust(ctx, signed)
}

func trustCommand() *cobra.Command {
	var data, root, offline string
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Sign, with the root key, whose vouchers count",
		Long: `Adds this installation's authority for vouchers to the trust bundle, where it is
from before vouchers, and the offline authority of a ceremony. It signs nothing
else, whatever the server offers. It counts at once, on every server of the
installation; hosts learn it with their next lease.`,
		Example: `  sudo handrail voucher trust                              # an installation from before vouchers
  sudo handrail voucher trust --offline-ca offline-ca.pub  # and the ceremony's authority`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			if root == "" {
				root = place(dir).rootKey()
			}
			line := ""
			if offline != "" {
				b, err := os.ReadFile(offline)
				if err != nil {
					return fault.Wrap(fault.Invalid, err, "cannot read the offline authority")
				}
				line = string(b)
			}
			return trustVouchers(cmd.Context(), cmd.ErrOrStderr(), dir, root, line)
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder of the server that runs here")
	cmd.Flags().StringVar(&root, "root", "", "folder that holds root.key (default: DIR/root)")
	cmd.Flags().StringVar(&offline, "offline-ca", "", "public key that `handrail voucher ceremony split` wrote")
	return cmd
}

func trustVouchers(ctx context.Context, out io.Writer, dir, root, offline string) error {
	now, err := askLocal(ctx, dir, "trust", localQuestion{})
	if err != nil {
		return err
	}
	signed, err := keyring.SignVoucherTrust(root, now.Bundle, now.Voucher, offline)
	if err != nil {
		return err
	}
	if _, err := askLocal(ctx, dir, "trust", localQuestion{Bundle: signed}); err != nil {
		return err
	}
	fmt.Fprintln(out, "signed: it counts on every server, and hosts take it with their next lease")
	return nil
}

func ceremonyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ceremony", Short: "Make a voucher for an hour from two officers' shares, without any server", Args: cobra.NoArgs,
		Example: `  handrail voucher ceremony split --officer ada=age1… --officer ben=age1… --officer cy=   # once, on a clean machine
  handrail voucher ceremony make share-ada.age share-ben.age --key id.pub --for ada --reason R --everywhere`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(splitCommand(), makeCommand())
	return c
}

func splitCommand() *cobra.Command {
	var names []string
	var out string
	cmd := &cobra.Command{
		Use:   "split",
		Short: "Make the offline authority, and seal its three shares to officers",
		Example: `  handrail voucher ceremony split --officer ada=age1… --officer ben=age1… --officer cy=age1… --out ./shares
  handrail voucher ceremony split --officer ada= --officer ben= --officer cy=    # a passphrase each`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := splitAuthority(names, out, askPassphrase)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "three shares and offline-ca.pub are in %s; give each officer theirs, and then:\n", out)
			fmt.Fprintln(cmd.ErrOrStderr(), "  next: sudo handrail voucher trust --offline-ca offline-ca.pub")
			fmt.Fprintln(cmd.OutOrStdout(), line)
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&names, "officer", nil, "NAME=AGE-RECIPIENT, three times; without a recipient a passphrase is asked for")
	cmd.Flags().StringVar(&out, "out", ".", "folder for the shares")
	return cmd
}

// splitAuthority makes the key, writes its shares, and forgets it.
func splitAuthority(names []string, out string, passphrase func(officer string, again bool) (string, error)) (string, error) {
	if len(names) != officers {
		return "", fault.New(fault.Invalid, "cannot split the authority: %d officers are named, %d are needed", len(names), officers).
			WithHint("handrail voucher ceremony split --help")
	}
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails
	defer clear(seed)
	pub, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(seed).Public())
	if err != nil {
		return "", err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
	shares, err := shamir.Split(seed, officers, enough, rand.Reader)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot make the folder for the shares")
	}
	seen := map[string]bool{}
	for i, name := range names {
		officer, recipient, _ := strings.Cut(name, "=")
		if officer == "" || seen[officer] || wire.Plain(officer, 32) != officer || strings.ContainsAny(officer, "/. ") {
			return "", fault.New(fault.Invalid, "cannot give a share to officer %q: a word of at most 32 letters, each another", officer)
		}
		seen[officer] = true
		to, err := recipientOf(officer, recipient, passphrase)
		if err != nil {
			return "", err
		}
		body, err := json.Marshal(share{V: 1, Officer: officer, Public: line, X: shares[i].X, Y: shares[i].Y})
		if err != nil {
			return "", err
		}
		if err := seal(filepath.Join(out, "share-"+officer+".age"), body, to); err != nil {
			return "", err
		}
		clear(shares[i].Y)
		clear(body)
	}
	return line, os.WriteFile(filepath.Join(out, "offline-ca.pub"), []byte(line+"\n"), 0o644)
}

func recipientOf(officer, recipient string, passphrase func(string, bool) (string, error)) (age.Recipient, error) {
	if recipient != "" {
		to, err := age.ParseX25519Recipient(recipient)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the key of officer %s", officer).WithHint("age-keygen prints one that begins with age1")
		}
		return to, nil
	}
	words, err := passphrase(officer, true)
	if err != nil {
		return nil, err
	}
	return age.NewScryptRecipient(words)
}

func seal(path string, body []byte, to age.Recipient) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot write a share")
	}
	text := armor.NewWriter(f)
	w, err := age.Encrypt(text, to)
	if err == nil {
		_, err = w.Write(body)
		err = errors.Join(err, w.Close(), text.Close(), f.Sync(), f.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write a share")
	}
	return nil
}

// rite is what a ceremony makes a voucher of.
type rite struct {
	shares     []string // files
	identities []string // age identity files
	key        string   // public key to certify
	person     string   // name
	id         string   // p-…; "" is nobody that a server knows
	reason     string
	hosts      []string // h-…
	everywhere bool
	account    string
	life       time.Duration
	out        string
}

func makeCommand() *cobra.Command {
	var r rite
	cmd := &cobra.Command{
		Use:   "make SHARE SHARE",
		Short: "Put the key together in memory, and sign one voucher",
		Long: `Opens two officers' shares, signs one voucher for at most an hour, and forgets
the key. It opens any host that trusts the offline authority and has had no word
of a server for two minutes. Its use is the loudest entry of the ledger.`,
		Example: `  handrail voucher ceremony make share-ada.age share-ben.age --key id.pub --for ada --reason "data centre burnt" --everywhere
  handrail voucher ceremony make share-ada.age share-cy.age --identity ada.txt --key id.pub --for ada --reason R --on h-7k3f9q2m`,
		Args: cobra.ExactArgs(enough),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.shares = args
			if err := r.run(time.Now(), askPassphrase); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "the voucher is in %s, for %s; then:\n  ssh -i KEY -o CertificateFile=%s -p %s bg@HOST\n", r.out, r.life, r.out, "7322")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&r.identities, "identity", nil, "age identity file of an officer")
	f.StringVar(&r.key, "key", "", "public key file to certify")
	f.StringVar(&r.person, "for", "", "who gets in: their name")
	f.StringVar(&r.id, "person", "", "their id (p-…), if it is at hand")
	f.StringVar(&r.reason, "reason", "", "why; it is in the voucher, on the host and in the ledger")
	f.StringArrayVar(&r.hosts, "on", nil, "id of a host (h-…)")
	f.BoolVar(&r.everywhere, "everywhere", false, "every host that trusts the offline authority")
	f.StringVar(&r.account, "account", "root", "account on the hosts")
	f.DurationVar(&r.life, "valid", wire.MaxCeremonyLife, "how long, at most an hour")
	f.StringVar(&r.out, "out", "voucher-cert.pub", "file for the voucher")
	return cmd
}

func (r rite) check() error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "cannot make a voucher: %s", why).WithHint("handrail voucher ceremony make --help")
	}
	switch {
	case r.person == "" || r.reason == "" || r.key == "":
		return bad("say for whom, on which key, and why (--for, --key, --reason)")
	case (len(r.hosts) == 0) != r.everywhere:
		return bad("name hosts (--on), or say --everywhere")
	case r.life <= 0 || r.life > wire.MaxCeremonyLife:
		return bad("it is valid for an hour at most")
	}
	return nil
}

func (r rite) run(now time.Time, passphrase func(string, bool) (string, error)) error {
	if err := r.check(); err != nil {
		return err
	}
	raw, err := os.ReadFile(r.key)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read the key to certify")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(raw)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read the key to certify")
	}
	terms := wire.VoucherTerms{V: 1, Person: r.id, PersonName: r.person, Key: wire.KeyFile, Minutes: int64(r.life / time.Minute), Reason: r.reason}
	if terms.Person == "" {
		terms.Person = "p-ceremony"
	}
	if r.everywhere {
		r.hosts = []string{wire.EveryHost}
	}
	for _, h := range r.hosts {
		terms.Hosts = append(terms.Hosts, wire.VoucherHost{ID: h, Account: r.account})
	}
	authority, names, err := r.combine(passphrase)
	if err != nil {
		return err
	}
	terms.Officers = names
	var serial [8]byte
	_, _ = rand.Read(serial[:]) // never fails
	cert, err := keyring.MakeVoucher(authority, key, binary.BigEndian.Uint64(serial[:])>>1|1, terms, now, r.life)
	if err != nil {
		return err
	}
	return os.WriteFile(r.out, ssh.MarshalAuthorizedKey(cert), 0o600)
}

// combine opens the shares and puts the key together.
func (r rite) combine(passphrase func(string, bool) (string, error)) (ssh.Signer, []string, error) {
	var points []shamir.Share
	var names []string
	public := ""
	for _, path := range r.shares {
		s, err := r.open(path, passphrase)
		if err != nil {
			return nil, nil, err
		}
		if public != "" && s.Public != public {
			return nil, nil, fault.New(fault.Invalid, "cannot make a voucher: the shares are of two authorities")
		}
		public = s.Public
		points, names = append(points, shamir.Share{X: s.X, Y: s.Y}), append(names, s.Officer)
	}
	seed, err := shamir.Combine(points)
	if err != nil {
		return nil, nil, err
	}
	defer clear(seed)
	if len(seed) != ed25519.SeedSize {
		return nil, nil, fault.New(fault.Invalid, "cannot make a voucher: a share is damaged")
	}
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return nil, nil, err
	}
	if line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); line != public {
		return nil, nil, fault.New(fault.Invalid, "cannot make a voucher: the shares do not give the authority's key; one is damaged or forged")
	}
	return signer, names, nil
}

func (r rite) open(path string, passphrase func(string, bool) (string, error)) (share, error) {
	var s share
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) > maxShare {
		return s, fault.New(fault.Invalid, "cannot read share %s", path)
	}
	ids, err := r.identitiesFor(path, raw, passphrase)
	if err != nil {
		return s, err
	}
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(raw)), ids...)
	if err != nil {
		return s, fault.Wrap(fault.Denied, err, "cannot open share %s", path).WithHint("its officer's identity: --identity FILE")
	}
	body, err := io.ReadAll(io.LimitReader(plain, maxShare))
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil || s.V != 1 || s.X == 0 || len(s.Y) != ed25519.SeedSize {
		return s, fault.New(fault.Invalid, "cannot read share %s: it is damaged", path)
	}
	return s, nil
}

// identitiesFor are the identity files, or, for a share sealed with a
// passphrase, that.
func (r rite) identitiesFor(path string, raw []byte, passphrase func(string, bool) (string, error)) (all []age.Identity, err error) {
	head, _ := io.ReadAll(io.LimitReader(armor.NewReader(bytes.NewReader(raw)), 64))
	if bytes.Contains(head, []byte("-> scrypt ")) {
		words, err := passphrase(filepath.Base(path), false)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(words)
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	}
	for _, file := range r.identities {
		f, err := os.Open(file)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read an officer's identity")
		}
		ids, err := age.ParseIdentities(f)
		f.Close()
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the identity in %s", file)
		}
		all = append(all, ids...)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "cannot open share %s: whose identity is at hand?", path).WithHint("handrail voucher ceremony make … --identity FILE")
	}
	return all, nil
}

// askPassphrase asks on the terminal, never in argv.
func askPassphrase(officer string, again bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot ask for the passphrase of %s: there is no terminal", officer)
	}
	defer tty.Close()
	read := func(prompt string) (string, error) {
		fmt.Fprint(tty, prompt)
		b, err := term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(tty)
		return string(b), err
	}
	words, err := read("passphrase of " + officer + ": ")
	if err != nil {
		return "", err
	}
	if again {
		if len(words) < 12 {
			return "", fault.New(fault.Invalid, "cannot seal a share with %d letters: at least 12", len(words))
		}
		twice, err := read("once more: ")
		if err != nil || twice != words {
			return "", fault.New(fault.Invalid, "cannot seal a share: the passphrases differ")
		}
	}
	return words, nil
}
