package app

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/witness"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// This file wires who vouches for this ledger, and this server as a witness of
// others.

// witnessPath is where others have their checkpoints cosigned by this server.
const witnessPath = "/witness"

func (s *Server) openWitness(context.Context) (err error) {
	s.circle = witness.New(witness.Deps{
		Store: s.store, Door: s.door, Approvals: s.approvals, People: s.people, Policy: s.force, Log: s.c.Log,
		Leads: func() bool { return s.peers.Leads() },
	})
	if s.witness, err = witness.Open(filepath.Join(s.p.server(), "witness"), "", s.circle.LogsOf); err != nil {
		return err
	}
	s.onClose(func() { s.witness.Close() })
	return nil
}

// cosigned waits for a checkpoint that enough witnesses cosigned.
func (s *Server) cosigned(ctx context.Context, size int64) (tlog.Tree, []byte, error) {
	return s.circle.Cosigned(ctx, size)
}

// asWitness answers add-checkpoint beside the pages and the API.
func (s *Server) asWitness(next http.Handler) http.Handler {
	cosign := http.StripPrefix(witnessPath, s.witness)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == witnessPath || strings.HasPrefix(r.URL.Path, witnessPath+"/") {
			cosign.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// witnessBanners hang while a witness is missing or refuses, or the ledger
// grows without enough of them.
func (s *Server) witnessBanners(context.Context) (out []notice.Banner, err error) {
	states, _, _ := s.circle.List()
	for _, w := range states {
		if !w.Missing.IsZero() {
			out = append(out, notice.Banner{Loud: true, Text: fmt.Sprintf("witness %s has not cosigned the ledger since %s: %s",
				w.Name, w.Missing.UTC().Format("15:04 MST"), w.Why)})
		}
	}
	if t := s.circle.Tail(); t.Late {
		out = append(out, notice.Banner{Loud: true, Text: fmt.Sprintf("%d entries of the ledger have no witness: %s", t.Entries, t.Why)})
	}
	return out, nil
}

// alarmOf is the page that an entry of a witness causes, if it does.
func alarmOf(e store.Recorded) (notice.Event, bool) {
	text := map[ledger.Action]string{
		witness.ActionMissing: "a witness of the ledger is missing", witness.ActionRefused: "a witness refuses to cosign the ledger",
	}[e.Parsed.Action]
	return notice.Event{Topic: notice.Installation, Group: "admin", Urgency: notice.Paged, Text: text}, text != ""
}

// witnessCommand runs a witness of its own: a folder and a port.
func witnessCommand() *cobra.Command {
	var dir, listen, name string
	var logs []string
	cmd := &cobra.Command{
		Use:   "witness",
		Short: "Vouch for the ledgers of others: cosign what only ever grew",
		Long: `Cosigns the checkpoints of other installations' ledgers (C2SP tlog-witness), and
never one that does not extend what it cosigned before. It needs a folder and
a port, no server and no account; its key is made at the first start. Run it
where whoever runs the other server has no say.`,
		Example: `  handrail witness --data ./witness --log 'prod+1a2b3c4d+AR…'   # the log key: handrail ledger witness list
  handrail witness --data ./witness --listen 0.0.0.0:7099      # again, for the logs that it knows`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fault.New(fault.Invalid, "cannot run a witness: --data is missing").WithHint("handrail witness --data ./witness")
			}
			for _, l := range logs {
				if err := witness.Trust(dir, l); err != nil {
					return err
				}
			}
			w, err := witness.Open(dir, name, witness.LogsOf(dir))
			if err != nil {
				return err
			}
			defer w.Close()
			known, err := witness.Logs(dir)
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fault.Wrap(fault.Unavailable, err, "cannot listen on %s", listen)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "key:     %s\naddress: http://%s\n", w.Key(), l.Addr())
			for _, k := range known {
				fmt.Fprintf(out, "cosigns: %s\n", k.Name())
			}
			if len(known) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "No ledger is known here yet. Name one with --log; its key is shown there by: handrail ledger witness list\n")
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "To have it asked, on the other installation: handrail ledger witness add %s '%s' http://%s\n", w.Key().Name(), w.Key(), l.Addr())
			return w.Serve(cmd.Context(), l, logger())
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "", "folder of its key and of what it cosigned")
	f.StringVar(&listen, "listen", "127.0.0.1:7099", "address that the other servers reach it at")
	f.StringArrayVar(&logs, "log", nil, "key of a ledger to cosign from now on (may be given more than once)")
	f.StringVar(&name, "name", "", "name in its key, at the first start (default: made)")
	return cmd
}

// exportWait bounds how long an export waits for a younger cosignature.
const exportWait = 3 * time.Second

// beforeExport has the ledger cosigned as far as it goes, if there is anybody.
func (s *Server) beforeExport(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, exportWait)
	defer cancel()
	_, _, _ = s.circle.Cosigned(ctx, s.store.Size()) // without it the export ends in an older cosignature
}
