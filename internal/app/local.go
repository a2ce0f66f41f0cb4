package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/host/socket"
	"handrail.dev/handrail/internal/surface/rpc"
)

// The control socket is the door for whoever owns the data folder on this
// machine: it makes single-use tokens for the first person and for this
// machine's own node, verifies the ledger for whoever can no longer log in
// because nothing can be recorded, and nothing else. The kernel says who calls.

// localDoor answers on the control socket.
type localDoor struct {
	owner     int // the account that owns the data folder
	supervise int // the account of the supervisor
	login     func(ctx context.Context) (localAnswer, error)
	verify    func(ctx context.Context) (localAnswer, error)
	join      func(ctx context.Context, hostname, mode string, trial bool) (localAnswer, error)
	company   func(ctx context.Context, q localQuestion) (localAnswer, error) // what a configuration of the directory would bring about
	checkup   func(ctx context.Context) (localAnswer, error)
	trust     func(ctx context.Context, bundle []byte) (localAnswer, error) // nil: what to sign; else the bundle that was signed

	support func(account int, w http.ResponseWriter, r *http.Request) error
}

// localAnswer is what the control socket says.
type localAnswer struct {
	Token string `json:"token,omitempty"`
	Link  string `json:"link,omitempty"`
	// Damage says why the ledger accepts no new entry.
	Damage string          `json:"damage,omitempty"`
	Report json.RawMessage `json:"report,omitempty"` // a VerifyResponse
	// Bundle is the trust bundle in force, Voucher the authority to add to it.
	Bundle  []byte `json:"bundle,omitempty"`
	Voucher string `json:"voucher,omitempty"`
	Kind    string `json:"kind,omitempty"` // of a fault
	Text    string `json:"text,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

type localQuestion struct {
	Hostname string `json:"hostname,omitempty"`
	Mode     string `json:"mode,omitempty"`
	Trial    bool   `json:"trial,omitempty"`
	Bundle   []byte `json:"bundle,omitempty"`

	Directory *directory.Settings `json:"directory,omitempty"` // to be tried, without its password
	Copy      []byte              `json:"copy,omitempty"`      // that was read by them
	Hash      string              `json:"hash,omitempty"`
}

type peerKey struct{}

// listen opens the socket at path.
func (d *localDoor) listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot replace the control socket")
	}
	l, err := socket.Listen(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot listen on the control socket")
	}
	// Everybody may connect; the kernel says who did, and only owners are heard.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the control socket")
	}
	return l, nil
}

// serve answers until ctx ends.
func (d *localDoor) serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(localQuestion) (localAnswer, error) { return d.login(r.Context()) })
	})
	mux.HandleFunc("POST /verify", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // a long ledger takes as long as it takes
		d.answer(w, r, func(localQuestion) (localAnswer, error) { return d.verify(r.Context()) })
	})
	mux.HandleFunc("POST /join", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(q localQuestion) (localAnswer, error) {
			return d.join(r.Context(), q.Hostname, q.Mode, q.Trial)
		})
	})
	mux.HandleFunc("POST /company", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(q localQuestion) (localAnswer, error) { return d.company(r.Context(), q) })
	})
	mux.HandleFunc("POST /checkup", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(localQuestion) (localAnswer, error) { return d.checkup(r.Context()) })
	})
	mux.HandleFunc("POST /trust", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(q localQuestion) (localAnswer, error) { return d.trust(r.Context(), q.Bundle) })
	})
	mux.HandleFunc("POST /support", func(w http.ResponseWriter, r *http.Request) {
		if account, err := d.may(r); err != nil {
			refuse(w, err)
		} else if err := d.support(account, w, r); err != nil {
			refuse(w, err)
		}
	})
	srv := &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 20 * time.Second, MaxHeaderBytes: 4096,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peerUID(c)
			if err != nil {
				uid = -1
			}
			return context.WithValue(ctx, peerKey{}, uid)
		},
	}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fault.Wrap(fault.Internal, err, "cannot serve the control socket")
	}
	return nil
}

func (d *localDoor) answer(w http.ResponseWriter, r *http.Request, do func(localQuestion) (localAnswer, error)) {
	var out localAnswer
	_, err := d.may(r)
	if err == nil {
		var q localQuestion
		if e := json.NewDecoder(io.LimitReader(r.Body, 512<<10)).Decode(&q); e != nil && !errors.Is(e, io.EOF) {
			err = fault.Wrap(fault.Invalid, e, "cannot read the question")
		} else {
			out, err = do(q)
		}
	}
	if err != nil {
		refuse(w, err)
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

// may says whose account calls, and refuses all but owners.
func (d *localDoor) may(r *http.Request) (account int, err error) {
	uid, _ := r.Context().Value(peerKey{}).(int)
	if uid != d.owner && uid != d.supervise && uid != 0 {
		return uid, fault.New(fault.Denied, "cannot act on this installation: account %d does not own its data folder", uid).
			WithHint("ask the owner for `handrail login-link`, or run this with sudo")
	}
	return uid, nil
}

func refuse(w http.ResponseWriter, err error) {
	f := fault.From(err)
	w.WriteHeader(f.Kind.HTTPStatus())
	_ = json.NewEncoder(w).Encode(localAnswer{Kind: f.Kind.String(), Text: f.Text, Hint: f.Hint})
}

// askLocal puts one question to the control socket of a data folder.
func askLocal(ctx context.Context, dir, what string, q localQuestion) (out localAnswer, err error) {
	resp, err := postLocal(ctx, dir, what, q)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil {
		return out, fault.Wrap(fault.Internal, err, "cannot read the server's answer")
	}
	return out, nil
}

// postLocal is askLocal for what reads the answer itself, unless it is a refusal.
func postLocal(ctx context.Context, dir, what string, q localQuestion) (*http.Response, error) {
	path := place(dir).control()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return socket.Dial(ctx, path)
	}}}
	body, _ := json.Marshal(q) // a struct of strings and bools always marshals
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://local/"+what, bytes.NewReader(body))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot ask the server")
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fault.New(fault.Unavailable, "cannot reach the server of %s: none runs there", dir).WithHint("handrail up --data %s", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "cannot reach the server of %s: the folder belongs to another account", dir).WithHint("its owner: handrail login --local --data %s", dir)
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the server of %s", dir).WithHint("handrail up --data %s", dir)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var out localAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the server's answer")
	}
	return nil, &fault.Error{Kind: fault.ParseKind(out.Kind), Text: out.Text, Hint: out.Hint}
}

// local is the door for the owner of the data folder.
func (s *Server) local() *localDoor {
	return &localDoor{
		owner: s.c.Owner, supervise: s.c.Owner,
		verify: func(ctx context.Context) (localAnswer, error) {
			report, err := rpc.Verify(ctx, s.store, s.recordings, func(*handrailv1.VerifyResponse) {})
			if err != nil {
				return localAnswer{}, err
			}
			raw, err := protojson.Marshal(report)
			return localAnswer{Report: raw}, err
		},
		login: func(ctx context.Context) (localAnswer, error) {
			if damage := s.store.Damage(); damage != nil {
				return localAnswer{Damage: damage.Error()}, nil
			}
			secret, err := s.people.EnsureBootstrapLink(ctx)
			if err != nil {
				return localAnswer{}, err
			}
			token := ledger.Token{Address: s.address(), RootHash: s.ring.RootHash(), Secret: secret}
			return localAnswer{Token: token.String(), Link: s.url() + "/login?t=" + secret}, nil
		},
		join: s.joinLocal, checkup: s.checkupLocal, trust: s.trustLocal, company: s.tryCompany, support: s.serveSupport,
	}
}

// joinLocal invites this machine itself, as the supervisor asks at the first
// start. It is the one invitation without a person: there is none yet.
func (s *Server) joinLocal(ctx context.Context, hostname, _ string, _ bool) (localAnswer, error) {
	var secret string
	_, err := s.store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		all, err := s.hosts.ListTx(tx, "")
		if err != nil {
			return nil, err
		}
		if len(all) > 0 {
			return nil, fault.New(fault.Conflict, "cannot join %s by itself: this installation has hosts already", hostname).
				WithHint("handrail host invite")
		}
		var entry ledger.Entry
		secret, entry, err = s.hosts.InviteTx(tx, "system", target.Invite{Environment: "dev", Scope: "none", Server: true, For: 10 * time.Minute})
		return []ledger.Entry{entry}, err
	})
	if err != nil {
		return localAnswer{}, err
	}
	token := ledger.Token{Address: s.address(), RootHash: s.ring.RootHash(), Secret: secret}
	return localAnswer{Token: token.String()}, nil
}
