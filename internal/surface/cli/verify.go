package cli

import (
	"archive/zip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func (t *tool) ledgerVerifyCommand() *cobra.Command {
	var file, rootHash, dataDir string
	var witnesses []string
	var local bool
	c := t.command("verify [FILE]", "Prove that nothing in the ledger was touched, or name what was",
		"handrail ledger verify                    # the server recomputes all; its checkpoint is checked here\nhandrail ledger verify --file ledger.zip  # an export, with no server",
		func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1 && file != "") {
				return exactly("the export")(cmd, append(args, file))
			}
			return nil
		},
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				file = args[0]
			}
			if file != "" {
				return t.verifyFile(file, rootHash, witnesses)
			}
			if len(witnesses) > 0 {
				return fault.New(fault.Invalid, "cannot verify: --witness goes with --file").WithHint("handrail ledger verify --file FILE --witness KEY")
			}
			if rootHash != "" {
				return fault.New(fault.Invalid, "cannot verify: --root goes with --file").WithHint("handrail ledger verify --file FILE --root %s", clean(rootHash))
			}
			if local || dataDir != "" {
				return t.verifyLocal(cmd.Context(), dataDir)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.verifyServer(cmd.Context(), c)
		})
	c.Long = `Prove that nothing in the ledger was touched, or name what was.

With a server, it recomputes every hash of entries, payloads and recordings,
and the checkpoint that it ends in is verified here, against the root key that
this device pinned at login and the newest checkpoint that this device has
seen. With --file an export is verified here altogether; the root key is the
pinned one, or the one that --root names;
--witness names outsiders whose cosignatures it must hold. With --local the owner of the data
folder has the server on this machine verify, without a login: a ledger that was
touched accepts no entry, so nobody can log in any more.`
	c.Flags().StringVar(&file, "file", "", "verify this export instead, with no server")
	c.Flags().StringVar(&rootHash, "root", "", "the hash of the root key to trust, for --file (sha256:…)")
	c.Flags().StringArrayVar(&witnesses, "witness", nil, "key of an outsider who must have cosigned it, for --file (repeatable)")
	c.Flags().BoolVar(&local, "local", false, "on the server's machine, by the owner of its data folder, without a login")
	c.Flags().StringVar(&dataDir, "data", "", "the server's data folder, for --local")
	c.MarkFlagsMutuallyExclusive("file", "local")
	_ = c.MarkFlagFilename("file", "zip")
	c.ValidArgsFunction = cobra.FixedCompletions([]string{"zip"}, cobra.ShellCompDirectiveFilterFileExt)
	return c
}

func (t *tool) verifyServer(ctx context.Context, c *client) error {
	stream, err := c.ledger.Verify(ctx, &v1.VerifyRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	p := t.progress()
	var last *v1.VerifyResponse
	for stream.Receive() {
		last = stream.Msg()
		p.part("verifying", int64(last.Checked), int64(last.Total), "entries")
	}
	p.clear()
	if err := stream.Err(); err != nil {
		return err
	}
	if last == nil || !last.Done {
		return fault.New(fault.Unavailable, "cannot verify the ledger: the server stopped before the end").WithHint("handrail ledger verify")
	}
	tree, mistrust := c.head(ctx)
	if mistrust == nil && last.Checked > 0 && tree.N == 0 {
		mistrust = fault.New(fault.Internal, "cannot trust the ledger: the server checked %s, and has signed none", count(last.Checked, "entry")).WithHint("handrail ledger verify")
	}
	s := &sheet{id: "ledger"}
	verdict(s, last.Ok && mistrust == nil)
	s.put("entries", fmt.Sprint(last.Checked)).put("payloads", fmt.Sprint(last.Payloads)).put("recordings", fmt.Sprint(last.Recordings))
	if mistrust == nil {
		s.put("checkpoint", fmt.Sprintf("at %d, signed by the log key that root key %s vouches for", tree.N, c.login.RootHash))
	}
	s.list("touched", last.Findings).wide("up to", last.Checkpoint)
	if err := t.emit(last, s); err != nil {
		return err
	}
	if mistrust != nil {
		return mistrust
	}
	return t.touched(last.Ok, len(last.Findings))
}

// verifyLocal believes the server: whoever owns its folder reads what it reads.
func (t *tool) verifyLocal(ctx context.Context, dataDir string) error {
	if t.LocalVerify == nil {
		return fault.New(fault.Invalid, "cannot verify locally: this program holds no server").WithHint("handrail ledger verify")
	}
	report, err := t.LocalVerify(ctx, dataDir)
	if err != nil {
		return err
	}
	s := &sheet{id: "ledger"}
	verdict(s, report.Ok)
	s.put("entries", fmt.Sprint(report.Checked)).put("payloads", fmt.Sprint(report.Payloads)).put("recordings", fmt.Sprint(report.Recordings))
	s.list("touched", report.Findings).wide("up to", report.Checkpoint)
	if err := t.emit(report, s); err != nil {
		return err
	}
	return t.touched(report.Ok, len(report.Findings))
}

// head is the newest tree that the server has signed, checked here. The proof
// of any entry carries it.
func (c *client) head(ctx context.Context) (tlog.Tree, error) {
	answer, err := c.ledger.Proof(ctx, &v1.ProofRequest{Number: 0})
	if err != nil {
		return tlog.Tree{}, err
	}
	return c.checkpoint(answer.Checkpoint)
}

func verdict(s *sheet, ok bool) {
	if ok {
		s.toned("ledger", "nothing was touched", good)
		return
	}
	s.toned("ledger", "does not verify", bad)
}

// touched is the error of a ledger that does not verify.
func (t *tool) touched(ok bool, findings int) error {
	if ok {
		return nil
	}
	return fault.New(fault.Internal, "cannot trust the ledger: %s", count(findings, "finding")).
		WithHint("keep a copy of the server's data folder as evidence, and tell who runs it")
}

func (t *tool) verifyFile(name, rootHash string, witnesses []string) error {
	file, err := os.Open(name)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot verify %s", clean(name)).WithHint("handrail ledger export %s", quoteShell(clean(name)))
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot verify %s", clean(name))
	}
	opts := ledger.ExportOptions{RootHash: rootHash}
	if rootHash == "" {
		opts = t.pinned(file, info.Size())
	}
	for _, w := range witnesses {
		k, err := ledger.ParseWitnessKey(w)
		if err != nil {
			return err
		}
		opts.Witnesses = append(opts.Witnesses, k)
	}
	p := t.progress()
	report, err := ledger.VerifyExport(file, info.Size(), opts, func(done, total int64) {
		p.part("verifying", done, total, "entries")
	})
	p.clear()
	if err != nil {
		return err
	}
	answer := &v1.VerifyResponse{
		Checked: uint64(report.Entries), Total: uint64(report.Entries), Done: true, Ok: report.OK,
		Checkpoint: report.Checkpoint, Recordings: uint64(report.Recordings), Payloads: uint64(report.Payloads),
	}
	for _, f := range report.Findings {
		answer.Findings = append(answer.Findings, f.String())
	}
	if report.More > 0 {
		answer.Findings = append(answer.Findings, fmt.Sprintf("and %d more", report.More))
	}
	s := &sheet{id: name}
	verdict(s, report.OK)
	s.put("file", name).put("entries", fmt.Sprint(report.Entries)).put("payloads", fmt.Sprint(report.Payloads))
	if report.Erased > 0 {
		s.put("erased", fmt.Sprint(report.Erased))
	}
	trusted := report.Trust
	if rootHash == "" && opts.RootHash != "" {
		trusted = "root key " + opts.RootHash + ", pinned by the login of this device"
	}
	s.put("recordings", fmt.Sprint(report.Recordings)).put("trust", trusted).put("up to", report.Checkpoint)
	if opts.Anchor != nil {
		s.put("extends", "the newest checkpoint that this device has seen")
	}
	for _, w := range report.Witnesses {
		s.put("witness "+w.Name, fmt.Sprintf("cosigned the first %s at %s", count(w.Entries, "entry"), time.Unix(w.Time, 0).UTC().Format(time.RFC3339)))
	}
	s.list("touched", answer.Findings)
	if opts.RootHash == "" {
		t.say("No root key was given and nobody is logged in here: the export was checked against the keys that it brings itself. Name the root key with --root.")
	}
	if err := t.emit(answer, s); err != nil {
		return err
	}
	if report.OK {
		return nil
	}
	return fault.New(fault.Internal, "cannot trust %s: %s", clean(name), count(len(report.Findings)+int(report.More), "finding")).
		WithHint("keep the file, and tell who runs the server")
}

// pinned is what this device's login lets it hold an export against: the root
// key, and the newest checkpoint seen, unless the export is older than that.
func (t *tool) pinned(file io.ReaderAt, size int64) ledger.ExportOptions {
	f, err := t.folder()
	if err != nil {
		return ledger.ExportOptions{}
	}
	l, err := f.login()
	if err != nil {
		return ledger.ExportOptions{}
	}
	opts := ledger.ExportOptions{RootHash: l.RootHash}
	c, err := connectTo(f, l)
	if err != nil {
		return opts
	}
	key, err := c.bundle().LogEver()
	if err != nil {
		return opts // no bundle is kept: the root key alone counts
	}
	seen, signed, known := c.seenBefore(c.bundle())
	z, err := zip.NewReader(file, size)
	if err != nil || !known {
		return opts
	}
	head, err := fs.ReadFile(bounded{z}, "checkpoint")
	if err != nil {
		return opts
	}
	if tree, err := ledger.OpenCheckpoint(head, c.bundle().Origin, key); err == nil && tree.N >= seen.N {
		opts.Anchor = signed
	}
	return opts
}

// bounded opens only small files: an export may be anybody's.
type bounded struct{ *zip.Reader }

func (b bounded) Open(name string) (fs.File, error) {
	f, err := b.Reader.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Size() > ledger.MaxCheckpoint {
		f.Close()
		return nil, fs.ErrInvalid
	}
	return f, nil
}

// progress is one line on stderr that long work rewrites. It is silent where
// stderr is no terminal.
type progress struct {
	t     *tool
	on    bool
	shown bool
	last  time.Time
}

func (t *tool) progress() *progress {
	_, tty := terminal(t.Stderr)
	return &progress{t: t, on: tty && t.Env("TERM") != "dumb"}
}

func (p *progress) show(text string) {
	now := p.t.Now()
	if !p.on || now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	p.last, p.shown = now, true
	fmt.Fprintf(p.t.Stderr, "\r%s\x1b[K", clean(text))
}

func (p *progress) part(doing string, done, total int64, what string) {
	if total <= 0 {
		p.show(doing)
		return
	}
	const width = 20
	full := int(min(done, total) * width / total)
	p.show(fmt.Sprintf("%s [%s%s] %d of %d %s", doing, strings.Repeat("#", full), strings.Repeat(".", width-full), done, total, what))
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.t.Stderr, "\r\x1b[K")
	}
}
