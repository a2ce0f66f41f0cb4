package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/drain"
	"handrail.dev/handrail/internal/feature/erasure"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/feature/rotation"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/feature/witness"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/oidc"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Deps is what the API is a surface of.
type Deps struct {
	Store      *store.Store
	Ring       *keyring.Ring
	People     *identity.People
	Hosts      *target.Hosts
	Force      *policy.Force
	Approvals  *approval.Approvals
	Door       *doorway.Door
	Fleet      *fleet.Fleet
	Access     *access.Access
	Roster     *roster.Roster
	Directory  *directory.Directory // nil: none is configured
	Workloads  *oidc.Workloads      // whose word on robots is taken
	Provider   *oidc.Provider       // nil: people log in by what this installation knows alone
	Sessions   *session.Sessions
	Inspect    *inspect.Inspections
	Drains     *drain.Drains
	Agentless  *agentless.Reach
	Recordings *recording.Recordings
	Notices    *notice.Hub
	Peers      *peer.Peers
	Vouchers   func() *voucher.Vouchers
	Erasures   *erasure.Erasures
	Rotations  *rotation.Rotations
	Witnesses  *witness.Circle
	Webhooks   *webhook.Hooks
	Retention  func(now time.Time) (Retention, error)
	WitnessKey string // by which this server cosigns others' ledgers
	// BeforeExport has the ledger cosigned as far as it goes; it may be nil.
	BeforeExport func(ctx context.Context)
	Info         func() Info
	Now          func() time.Time
	Log          *slog.Logger
}

// Info is what the installation says of itself and no feature knows.
type Info struct {
	Name, Version, DataDir, URL string
	Address                     string // host:port that commands and nodes dial
	SSHAddress                  string
	Mode                        string
	Missing                     []string
	Trial, Demo                 bool
}

// maxMessage bounds one message from a stranger.
const maxMessage = 4 << 20

// Handler serves the API: every service below /handrail.v1., and the attach
// stream below /v1/sessions/.
func Handler(d *Deps) http.Handler {
	options := []connect.HandlerOption{
		connect.WithInterceptors(newGate(d.People, d.Door, d.Log)),
		connect.WithReadMaxBytes(maxMessage),
	}
	mux := http.NewServeMux()
	for _, mount := range []func() (string, http.Handler){
		func() (string, http.Handler) { return handrailv1connect.NewLoginsHandler(logins{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewProviderHandler(provider{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewRobotsHandler(robots{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewPeopleHandler(people{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewHostsHandler(hosts{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewSSHHostsHandler(sshHosts{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewGrantsHandler(grants{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewApprovalsHandler(approvals{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewSessionsHandler(sessions{d}, options...) },
		func() (string, http.Handler) {
			return handrailv1connect.NewRecordingsHandler(recordings{d}, options...)
		},
		func() (string, http.Handler) {
			return handrailv1connect.NewInspectionsHandler(inspections{d}, options...)
		},
		func() (string, http.Handler) { return handrailv1connect.NewDrainsHandler(drains{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewCoresHandler(cores{d}, options...) },
		func() (string, http.Handler) {
			return handrailv1connect.NewUnmaskingsHandler(unmaskings{d}, options...)
		},
		func() (string, http.Handler) { return handrailv1connect.NewAnswersHandler(answers{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewLedgerHandler(ledgers{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewErasuresHandler(erasures{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewRetentionHandler(retention{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewKeysHandler(keys{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewWitnessesHandler(witnesses{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewPoliciesHandler(policies{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewEventsHandler(events{d}, options...) },
		func() (string, http.Handler) {
			return handrailv1connect.NewDirectoriesHandler(directories{d}, options...)
		},
		func() (string, http.Handler) { return handrailv1connect.NewRightsHandler(rights{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewServersHandler(servers{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewVouchersHandler(vouchers{d}, options...) },
		func() (string, http.Handler) { return handrailv1connect.NewWebhooksHandler(webhooks{d}, options...) },
	} {
		path, h := mount()
		mux.Handle(path, h)
	}
	mux.Handle("GET /v1/sessions/{id}/attach", attach{d})
	mux.HandleFunc("GET /v1/openapi.json", serveOpenAPI)
	return mux
}

type events struct{ d *Deps }

func (s events) Watch(ctx context.Context, _ *handrailv1.WatchEventsRequest, out *connect.ServerStream[handrailv1.WatchEventsResponse]) error {
	changes, err := s.d.changes(ctx)
	if err != nil {
		return err
	}
	// The head goes out at once: whoever reads it knows that no change from now
	// on is missed.
	if err := out.Send(nil); err != nil {
		return err
	}
	for topic, id := range changes {
		if err := out.Send(&handrailv1.WatchEventsResponse{Topic: string(topic), Id: id}); err != nil {
			return err
		}
	}
	return nil
}

func (s events) Status(ctx context.Context, _ *handrailv1.StatusRequest) (*handrailv1.StatusResponse, error) {
	installation, err := s.d.installation(ctx)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.StatusResponse{Installation: installation}
	all, err := s.d.Hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	out.HostsTotal = uint32(len(all))
	for _, h := range all {
		if s.d.Fleet.Node(h.ID).State == fleet.Online {
			out.HostsOnline++
		}
		out.SessionsLive += uint32(s.d.Sessions.LiveOn(h.ID))
	}
	persons, err := s.d.People.List(ctx)
	if err != nil {
		return nil, err
	}
	out.People = uint32(len(persons))
	open, err := s.d.Approvals.List(ctx, true)
	if err != nil {
		return nil, err
	}
	out.ApprovalsOpen = uint32(len(open))
	out.Attention, err = s.d.Notices.Attention(ctx, caller(ctx))
	return out, err
}

func (d *Deps) installation(ctx context.Context) (*handrailv1.Installation, error) {
	info := d.Info()
	state, err := d.People.Bootstrap(ctx)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.Installation{
		Name: info.Name, Mode: info.Mode, Missing: info.Missing, Trial: info.Trial, Bootstrap: state.Active,
		BootstrapEnds: stampTime(state.Ends), Demo: info.Demo, DataDir: info.DataDir, Version: info.Version,
		SshAddress: info.SSHAddress, RootKeyHash: d.Ring.RootHash(), LedgerSize: uint64(d.Store.Size()), Url: info.URL,
	}
	var texts []string
	for _, b := range d.Notices.Banners(ctx) {
		texts = append(texts, b.Text)
	}
	out.Banner = strings.Join(texts, " · ")
	return out, nil
}
