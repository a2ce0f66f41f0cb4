package web

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// A brake works also where no page can be shown: at a server that is cut off from
// its database. So a form that only takes power away goes to the API before
// anything else is asked, and the API finds out who sent it. What comes after it
// is a page of its own where the usual one cannot be had.

// CutHeader marks the API's refusals by a server that is cut off, whose pages then
// offer what still works.
const CutHeader = "Handrail-Cut-Off"

// pagePatience is how long a brake that was done waits for the page to go on to.
const pagePatience = 5 * time.Second

func (s *site) routeBrakes(mux *http.ServeMux) {
	mux.HandleFunc("POST /brake", s.open(s.brake))
}

// cutOff says whether an answer is that of a server that is cut off.
func cutOff(err error) bool {
	var c *connect.Error
	return errors.As(err, &c) && c.Meta().Get(CutHeader) != ""
}

// brake takes the form that a page of a server that is cut off shows: no list can
// be had there, so whoever or whatever is meant is named.
func (s *site) brake(v *visit) (err error) {
	whom, reason := v.form("whom"), v.form("reason")
	if whom == "" {
		return fault.New(fault.Invalid, "cannot brake: nobody and nothing is named")
	}
	at := url.PathEscape(whom)
	switch what := v.form("what"); what {
	case "lock":
		if _, err = s.people.Lock(v.ctx, &v1.LockRequest{Person: whom, Reason: reason}); err == nil {
			return v.braked("/people", "locked")
		}
	case "revoke":
		if _, err = s.grants.Revoke(v.ctx, &v1.RevokeRequest{Id: whom, Reason: reason}); err == nil {
			return v.braked("/grants/"+at, "revoked")
		}
	case "pause":
		if _, err = s.sessions.Pause(v.ctx, &v1.PauseSessionRequest{Id: whom, Reason: reason}); err == nil {
			return v.braked("/sessions/"+at, "paused")
		}
	case "stop":
		if _, err = s.sessions.Stop(v.ctx, &v1.StopSessionRequest{Id: whom, Reason: reason}); err == nil {
			return v.braked("/sessions/"+at, "stopped")
		}
	default:
		err = fault.New(fault.Invalid, "cannot do %q: it is no brake", what)
	}
	return err
}

// braked goes on to a page after a brake; where none can be had it says here what
// was done, and why there is no more to see.
func (v *visit) braked(to, done string) error {
	whole := v.ctx
	ctx, cancel := context.WithTimeout(whole, pagePatience)
	defer cancel()
	v.ctx = ctx
	err := v.identify()
	late := ctx.Err() != nil
	v.ctx = whole
	if err == nil || !late && faultOf(err).Kind != fault.Unavailable {
		return v.goOn(to, done) // whatever is wrong there, that page says
	}
	why := "nothing else can be shown here now"
	if !late {
		why = faultOf(err).Text
	}
	v.w.Header().Set("Cache-Control", "no-store")
	page := v.frame("Done", "bare")
	return v.render(http.StatusOK, layout(page, brakedPage(doneWords[done], strings.TrimSuffix(why, "."), cutOff(err))))
}
