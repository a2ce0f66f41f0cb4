package app

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"google.golang.org/protobuf/encoding/protojson"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// This file makes the company's directory a part of the server: what it takes
// away ends sessions and grants, what waits for a person is asked for.

// openDirectory makes the directory, where one is configured. Nothing is
// connected before Run: while it is down, everything else works.
func (s *Server) openDirectory(context.Context) (err error) {
	var settings directory.Settings
	if s.c.sections.Directory != nil {
		settings = *s.c.sections.Directory
	}
	s.directory, err = directory.New(directory.Deps{
		Store: s.store, People: s.people, Settings: settings, Log: s.ring.Log(), Slog: s.c.Log, Leads: s.peers.Leads,
		Gone:   func(ctx context.Context, person, why string) { s.brakePerson(ctx, person, why) },
		Fallen: s.endByGrants,
		EndGrants: func(tx *store.Tx, person, why string) ([]ledger.Entry, error) {
			_, entries, err := s.access.EndAllTx(tx, person, ledger.System, access.Revoked, why)
			if err != nil {
				return nil, err
			}
			more, err := s.approvals.WithdrawAllTx(tx, ledger.System, person, why)
			return append(entries, more...), err
		},
		Ask: s.askDirectory,
		Unask: func(tx *store.Tx, approval, why string) ([]ledger.Entry, error) {
			return s.approvals.WithdrawTx(tx, ledger.System, approval, why)
		},
	})
	if err == nil && s.directory != nil {
		s.people.UseKeeper(s.directory)
	}
	return err
}

func (s *Server) askDirectory(tx *store.Tx, request []byte) (string, []ledger.Entry, error) {
	engine, err := s.force.EngineTx(tx)
	if err != nil {
		return "", nil, err
	}
	rule := approval.RuleOf(engine.Approval(roster.KindDirectoryChange))
	return roster.AskDirectory(tx, s.approvals, rule, request)
}

// endByGrants ends every session that a person has by a grant.
func (s *Server) endByGrants(ctx context.Context, person, why string) {
	inForce, err := s.inForce(ctx)
	if err != nil {
		s.c.Log.Error("the grants of somebody who lost a group could not be read", "error", err)
	}
	for _, g := range inForce {
		if g.Person == person {
			s.sessions.EndByGrant(g.ID, access.Revoked, why)
		}
	}
}

// moreApprovers makes a grant dearer while nobody knows who left.
func (s *Server) moreApprovers(q store.Queryer, now time.Time) (int, error) {
	stale, err := s.directory.StaleTx(q, now)
	if err != nil || !stale {
		return 0, err
	}
	return 1, nil
}

// heardDirectory has the directory look again when somebody decided about what
// waits.
func (s *Server) heardDirectory(e store.Recorded) {
	if noun, verb, _ := strings.Cut(string(e.Parsed.Action), "."); noun == "approval" && verb != "requested" {
		s.directory.Again()
	}
}

// directoryBanners say on every page that nobody knows who left, and what waits.
func (s *Server) directoryBanners(ctx context.Context) (out []notice.Banner, err error) {
	if s.directory == nil {
		return nil, nil
	}
	st, err := s.directory.Status(ctx)
	if err != nil {
		return nil, nil // the database is away, and says so itself
	}
	if st.Stale {
		out = append(out, notice.Banner{Loud: true, Text: fmt.Sprintf("the directory was last read %s: whoever left since may still be in, and a grant needs one approver more",
			st.Confirmed.UTC().Format("on 2006-01-02 at 15:04 MST"))})
	} else if st.Failing != "" {
		out = append(out, notice.Banner{Text: "the directory cannot be read since " + st.FailingSince.UTC().Format("15:04 MST") + " (handrail directory status)"})
	}
	for _, h := range st.Held {
		if h.What == directory.HeldLosses {
			out = append(out, notice.Banner{Loud: true, Text: fmt.Sprintf("%d people are gone from the directory, or lose groups, at once: nothing of it happens until somebody agrees (handrail directory status)", h.People)})
		}
	}
	return out, nil
}

// completeDirectory reads the files that the settings name.
func completeDirectory(config string, s *directory.Settings) error {
	if s.PasswordFile != "" {
		secret, err := secretFile(config, s.PasswordFile)
		if err != nil {
			return err
		}
		s.Password = string(secret.Reveal())
	}
	if s.CAFile != "" {
		name := s.CAFile
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(config), name)
		}
		f, err := os.Open(name)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read [directory] ca-file")
		}
		defer f.Close()
		if s.CA, err = io.ReadAll(io.LimitReader(f, maxCA+1)); err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read [directory] ca-file")
		}
		if len(s.CA) > maxCA {
			return fault.New(fault.Invalid, "cannot use [directory] ca-file: it is larger than %d bytes", maxCA)
		}
	}
	return s.Check()
}

// maxCA bounds the file of authorities: it goes through an environment.
const maxCA = 48 << 10

// unknownInSection says which setting of a table there is not, and which may
// have been meant.
func unknownInSection(key toml.Key) error {
	name := strings.Join(key[1:], ".")
	if key[0] == "directory" {
		if near := fault.Nearest(name, directory.Keys()); near != "" {
			return fmt.Errorf("there is no setting %s in [directory], did you mean %q?", name, near)
		}
	}
	return fmt.Errorf("there is no setting %s in [%s]", name, key[0])
}

// directoryHelp says each setting of the directory, in the words that are
// beside it in the code.
func directoryHelp() string {
	var b strings.Builder
	for _, key := range directory.Keys() {
		if key != "map" {
			fmt.Fprintf(&b, "  %-20s # %s\n", key, directory.About(key))
		}
	}
	return b.String()
}

// tryCompany says what settings would bring about here, with what they read.
func (s *Server) tryCompany(ctx context.Context, q localQuestion) (localAnswer, error) {
	if q.Directory == nil {
		return localAnswer{}, fault.New(fault.Invalid, "cannot try a directory: there are no settings")
	}
	t, err := directory.Try(ctx, s.store, *q.Directory, q.Copy, q.Hash)
	if err != nil {
		return localAnswer{}, err
	}
	out := &handrailv1.DirectoryTestResponse{People: uint32(t.People), Groups: uint32(t.Groups), More: uint32(t.More), OddCount: uint32(t.OddCount), Waits: t.Waits}
	for _, l := range t.Lines {
		out.Lines = append(out.Lines, &handrailv1.DirectoryTestLine{Person: l.Name, What: l.What})
	}
	for _, o := range t.Odd {
		out.Odd = append(out.Odd, &handrailv1.DirectoryOdd{Id: o.ID, Name: o.Name, Why: o.Why})
	}
	raw, err := protojson.Marshal(out)
	return localAnswer{Report: raw}, err
}

// maxTried bounds a copy that is tried: a question to the control socket is small.
const maxTried = 300 << 10

// LocalDirectory reads the directory by the configuration as it stands in the
// file, in force or not, and has the server of a data folder on this machine say
// what that would bring about; it is `handrail directory test`.
func LocalDirectory(ctx context.Context, dir string) (*handrailv1.DirectoryTestResponse, error) {
	dir, err := dataFolder(dir)
	if err != nil {
		return nil, err
	}
	tables, err := readSections()
	if err != nil {
		return nil, err
	}
	if tables.Directory == nil {
		return nil, fault.New(fault.Invalid, "cannot try a directory: the configuration has no [directory]").WithHint("handrail config explain --help shows one")
	}
	body, hash, err := tables.Directory.Read(ctx)
	if err != nil {
		return nil, err
	}
	if len(body) > maxTried {
		return nil, fault.New(fault.Exhausted, "cannot try a directory of that size: the copy has %d bytes, at most %d", len(body), maxTried)
	}
	asked := *tables.Directory
	asked.Password = ""
	answer, err := askLocal(ctx, dir, "company", localQuestion{Directory: &asked, Copy: body, Hash: hash})
	if err != nil {
		return nil, err
	}
	out := &handrailv1.DirectoryTestResponse{}
	if err := protojson.Unmarshal(answer.Report, out); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the server's answer")
	}
	return out, nil
}
