package app

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/surface/web"
)

// A server that does not reach the database can record nothing, so it decides
// nothing and orders nothing. After peer's Bounds.Away the others take it for
// away, and it stops by itself what it could still do: it takes no session, says
// so to whoever calls, and then ends what runs here. Its nodes get no lease and go
// to another server. Brakes go on working. When the database answers again all of
// it ends without anybody's help.

// frozenAfter is how long sessions go on at a server that is cut off: with the
// time until that is noticed it is what a node grants them without a lease.
const frozenAfter = 20 * time.Second

// cutOff is since when this server has not reached the database.
type cutOff struct {
	mu    sync.Mutex
	since time.Time // zero: it does
	end   *time.Timer
}

func (c *cutOff) why() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since.IsZero() {
		return ""
	}
	return "this server is cut off from the database since " + c.since.UTC().Format("15:04:05 MST")
}

// cutFromDatabase hears of it, and of the end of it.
func (s *Server) cutFromDatabase(off bool) {
	c := &s.cut
	s.store.Away(off)
	c.mu.Lock()
	if c.end != nil {
		c.end.Stop()
		c.end = nil
	}
	c.since = time.Time{}
	if off {
		c.since = time.Now()
		c.end = time.AfterFunc(frozenAfter, func() { s.sessions.EndAll(s.cut.why()) })
	}
	c.mu.Unlock()
	s.sessions.Shut(c.why())
	if off {
		s.c.Log.Error("the database cannot be reached: this server opens and decides nothing until it can")
		s.sessions.TellHost("", "This server is cut off from its database. This session ends in 20 seconds unless it comes back; a new one opens at another server.")
	} else {
		s.c.Log.Info("the database is reached again")
	}
	s.notices.Publish(notice.Event{Topic: notice.Installation})
}

func (s *Server) cutBanners(context.Context) (out []notice.Banner, err error) {
	if why := s.cut.why(); why != "" {
		out = append(out, notice.Banner{Loud: true, Text: why + ": it opens and decides nothing; locks and stops work"})
	}
	return out, nil
}

// brakeCalls are the calls that only take power away, which work without the
// database too.
var brakeCalls = map[string]bool{
	"/handrail.v1.People/Lock": true, "/handrail.v1.Grants/Revoke": true, "/handrail.v1.Sessions/Stop": true, "/handrail.v1.Sessions/Pause": true,
}

// whileCut refuses at once, and with the reason, what would wait for the
// database in vain. The page is a client of the API, so it says so too.
func (s *Server) whileCut(next http.Handler) http.Handler {
	if !s.shared() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		why := s.cut.why()
		if why == "" || brakeCalls[r.URL.Path] || strings.HasPrefix(r.URL.Path, "/v1/sessions/") {
			next.ServeHTTP(w, r)
			return
		}
		text := "cannot do this here: " + why
		for _, p := range s.peers.List() {
			if !p.Self && p.Serves() {
				text += "; try " + p.Name + " at " + p.Address
				break
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set(web.CutHeader, "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": "unavailable", "message": text}) // as Connect says errors
	})
}
