package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/store"
)

// serverChecks are those that only the running server can answer.
var serverChecks = []func(*Server, context.Context) ([]finding, error){
	(*Server).checkLedger, (*Server).checkDatabase, (*Server).checkPeople, (*Server).checkNodes, (*Server).checkDirectory, (*Server).checkWitnesses,
	(*Server).checkBucket,
}

// checkupLocal answers the doctor of this machine. It names no person.
func (s *Server) checkupLocal(ctx context.Context) (localAnswer, error) {
	all := []finding{}
	for _, check := range serverChecks {
		found, err := check(s, ctx)
		if err != nil {
			return localAnswer{}, err
		}
		all = append(all, found...)
	}
	raw, err := json.Marshal(all)
	return localAnswer{Report: raw}, err
}

func (s *Server) checkLedger(context.Context) ([]finding, error) {
	if damage := s.store.Damage(); damage != nil {
		return one(finding{ID: "ledger-damaged", Group: "database", Bad: true, What: "the ledger takes no entry: " + damage.Error(), Fix: "handrail ledger verify"}), nil
	}
	return nil, nil
}

// clockOff is how far the clocks of server and database may be apart.
const clockOff = 5 * time.Second

func (s *Server) checkDatabase(ctx context.Context) (all []finding, err error) {
	if !strings.HasPrefix(s.c.Database, "postgres") {
		return nil, nil
	}
	var off []string
	var theirs int64
	err = s.store.View(ctx, func(v *store.View) (err error) {
		off, err = store.All[string](v, `SELECT name FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'off' ORDER BY name`)
		if err == nil {
			theirs, err = store.One[int64](v, `SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)`)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(off) > 0 {
		all = append(all, finding{ID: "database-loses", Group: "database", Bad: true,
			What: "PostgreSQL may lose what it said it kept: " + strings.Join(off, ", ") + " off", Fix: "ALTER SYSTEM SET " + off[0] + " = on; SELECT pg_reload_conf();   -- fsync and full_page_writes in postgresql.conf"})
	}
	if apart := time.Since(time.UnixMicro(theirs)).Abs(); apart > clockOff {
		all = append(all, finding{ID: "clock-off", Group: "database", Bad: true, What: fmt.Sprintf("the clocks of server and database are %s apart", apart.Round(time.Second)), Fix: "timedatectl   # on both machines"})
	}
	return all, nil
}

func (s *Server) checkPeople(ctx context.Context) (all []finding, err error) {
	if s.bootstrap.Active() {
		all = append(all, finding{ID: "bootstrap-on", Group: "people", What: "bootstrap is on: one person may add people who approve at once", Fix: "handrail bootstrap end"})
	}
	people, err := s.people.List(ctx)
	if err != nil {
		return nil, err
	}
	may := 0
	for _, p := range people {
		if !p.Locked() && (slices.Contains(p.Groups, "admin") || slices.Contains(p.Groups, "operator")) {
			may++
		}
	}
	if may < 2 {
		all = append(all, finding{ID: "one-approver", Group: "people", Bad: !s.bootstrap.Active(), What: "nobody could approve what the only operator asks for", Fix: "handrail person add NAME --group operator"})
	}
	return all, nil
}

// nodeClockOff is how far a node's clock may be from the server's: what it
// reports may have waited.
const nodeClockOff = 30 * time.Second

func (s *Server) checkNodes(ctx context.Context) (all []finding, err error) {
	hosts, err := s.hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	var old, below, refused, apart []string
	for _, h := range hosts {
		n := s.fleet.Node(h.ID)
		if n.Refused != "" {
			refused = append(refused, h.Name)
		}
		if n.State == fleet.Never || n.State == fleet.Offline {
			continue
		}
		if n.Apart.Abs() > nodeClockOff {
			apart = append(apart, fmt.Sprintf("%s (%s)", h.Name, n.Apart.Round(time.Second)))
		}
		if n.Version != s.c.Version {
			old = append(old, h.Name)
		}
		if h.Environment == "production" && n.Floor != "full" {
			below = append(below, h.Name)
		}
	}
	if len(refused) > 0 {
		all = append(all, finding{ID: "node-refused", Group: "hosts", Bad: true, What: fmt.Sprintf("%d nodes are too old for this server and are not let in: %s", len(refused), few(refused)), Fix: "install the handrail-node of this server's release there, then start it again"})
	}
	if len(apart) > 0 {
		all = append(all, finding{ID: "node-clock", Group: "hosts", What: fmt.Sprintf("the clocks of %d hosts are not the server's: %s; deadlines hold all the same, times in logs and vouchers do not", len(apart), few(apart)), Fix: "timedatectl   # on those hosts"})
	}
	if len(old) > 0 {
		all = append(all, finding{ID: "node-version", Group: "hosts", What: fmt.Sprintf("%d nodes run another version than this server (%s): %s", len(old), s.c.Version, few(old)), Fix: "upgrade handrail-node there"})
	}
	if len(below) > 0 {
		all = append(all, finding{ID: "floor-below", Group: "hosts", Bad: true, What: fmt.Sprintf("%d hosts in production give less than the full sandbox: %s", len(below), few(below)), Fix: "handrail doctor   # on those hosts"})
	}
	return all, nil
}

// few names some of many.
func few(names []string) string {
	slices.Sort(names)
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

func (s *Server) checkDirectory(ctx context.Context) ([]finding, error) {
	if s.directory == nil || s.c.sections.Directory == nil {
		return nil, nil
	}
	st, err := s.directory.Status(ctx)
	if err != nil {
		return nil, err
	}
	if st.Failing != "" || st.Stale {
		return one(finding{ID: "directory-old", Group: "people", Bad: st.Stale, What: "the copy of the directory is old: " + orWords(st.Failing, "it has not answered for too long"), Fix: "handrail directory test"}), nil
	}
	return nil, nil
}

func orWords(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (s *Server) checkWitnesses(context.Context) (all []finding, err error) {
	list, _, _ := s.circle.List()
	for _, w := range list {
		if !w.Missing.IsZero() {
			all = append(all, finding{ID: "witness-silent", Group: "database", Bad: true, What: fmt.Sprintf("witness %s has cosigned nothing since %s", w.Name, w.Missing.UTC().Format(time.RFC3339)), Fix: "handrail ledger witness list"})
		}
	}
	return all, nil
}
