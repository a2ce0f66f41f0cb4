package agentless

import (
	"context"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What a session runs there is found by two marks that its children inherit:
// a variable of its environment, and the audit session that sshd gave its
// connection, where PAM gives one. Whoever clears the first keeps the second.
//
// The scripts run under any shell that an account may have: one line, single
// quotes outside only, no exclamation mark.

const (
	mark      = "HANDRAIL_SESSION="
	sweepWord = "handrail-sweep"
)

// wrapper is the forced command of a session: it runs what was asked for with
// the session's mark, or sweeps.
func wrapper(session, level string) string {
	guard := ""
	if level == wire.LevelRead {
		guard = readGuard
	}
	return `exec /bin/sh -c 'c=$SSH_ORIGINAL_COMMAND; unset SSH_ORIGINAL_COMMAND; case "$c" in ` +
		`"` + sweepWord + ` "*) ` + sweepBody(session) + `; exit ;; esac; ` + guard + `case "$c" in ` +
		`"") exec env ` + mark + session + ` "${SHELL:-/bin/sh}" -l ;; ` +
		`*) exec env ` + mark + session + ` "${SHELL:-/bin/sh}" -c "$c" ;; esac'`
}

// readGuard refuses a read session to an account that may use sudo without a
// password: nothing but the account keeps such a session from writing, and this
// one would be root. What is root by itself says so. It is the host's own word, for
// who set the host up without thinking of it, and no wall.
const readGuard = `if [ "$(id -u)" = 0 ]; then echo "handrail: this read session is root, and nothing on this host keeps it from writing" >&2; ` +
	`elif command -v sudo >/dev/null 2>&1 && sudo -n -l >/dev/null 2>&1 </dev/null; then ` +
	`echo "handrail: no read session here: the account $(id -un) may use sudo without a password, so it would be root." >&2; ` +
	`echo "  next: take that from the account, or give the host a node: handrail host adopt" >&2; exit 126; fi; `

// sweeper is the forced command of a connection that does nothing but sweep.
func sweeper(session string) string {
	return `exec /bin/sh -c 'c=$SSH_ORIGINAL_COMMAND; unset SSH_ORIGINAL_COMMAND; ` + sweepBody(session) + `'`
}

// sweepBody signals all that carries the mark of the session, with the signal
// that $c names. KILL is repeated until nothing is found. The audit session
// counts only where sshd, three steps above, has another one: without PAM
// everybody shares that of whoever started sshd. Spared are this shell, what it
// starts, and the two processes of sshd above it.
func sweepBody(session string) string {
	return `s=${c##* }; case $s in KILL|STOP|CONT) ;; *) exit 2 ;; esac; ` +
		`up() { sed -n "s/^PPid:[[:space:]]*//p" "/proc/${1:-0}/status" 2>/dev/null; }; ` +
		`a=$(up $$); b=$(up "$a"); top=$(up "$b"); id=$(cat /proc/self/sessionid 2>/dev/null); ` +
		`case "$id" in ""|0|4294967295) id= ;; "$(cat "/proc/${top:-1}/sessionid" 2>/dev/null)") id= ;; esac; ` +
		`seek() { { grep -ls "` + mark + session + `" /proc/[0-9]*/environ; [ -z "$id" ] || grep -lsx "$id" /proc/[0-9]*/sessionid; } 2>/dev/null | ` +
		`while IFS=/ read -r x y p z; do case $p in $$|"$a"|"$b") continue ;; esac; [ -d "/proc/$p" ] || continue; ` +
		`grep -qs "^State:[[:space:]]*[ZX]" "/proc/$p/status" && continue; [ "$(up "$p")" = $$ ] && continue; echo "$p"; done; }; ` +
		`k=0; t=0; while :; do l=0; for p in $(seek); do kill -s "$s" "$p" 2>/dev/null && k=$((k+1)); l=$((l+1)); done; ` +
		`t=$((t+1)); [ "$s" = KILL ] && [ $l -gt 0 ] && [ $t -lt 20 ] || break; sleep 0.05 2>/dev/null || sleep 1; done; ` +
		`echo "` + sweepWord + ` $k $l"`
}

var swept = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + sweepWord + ` ([0-9]{1,6}) ([0-9]{1,6})\r?$`)
})

// maxSwept is how much a sweep's answer may be; an account's own shell may put
// noise before it.
const maxSwept = 16 << 10

// sweep signals what the session runs, through the connection that is there or
// through another one, and says how many it signalled and how many are left.
func (s *Stream) sweep(ctx context.Context, signal string) (hit, left int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.r.b.SweepTime)
	defer cancel()
	half, stop := context.WithTimeout(ctx, s.r.b.SweepTime/2)
	hit, left, err = sweepThrough(half, s.conn, signal)
	stop()
	if err == nil {
		return hit, left, nil
	}
	return s.r.sweepAnew(ctx, s.host, s.account, s.spec.ID, s.spec.Person, s.spec.Level, signal)
}

// sweepAnew is sweep through a connection of its own.
func (r *Reach) sweepAnew(ctx context.Context, h target.Host, account, session, person, level, signal string) (hit, left int, err error) {
	c, err := r.connect(ctx, h, account, keyring.Hop{Session: session, Person: person,
		Principals: []string{account, h.Principal(level)}, ForceCommand: sweeper(session)})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	return sweepThrough(ctx, c, signal)
}

func sweepThrough(ctx context.Context, c *conn, signal string) (hit, left int, err error) {
	type answer struct {
		hit, left int
		err       error
	}
	done := make(chan answer, 1)
	var ch ssh.Channel
	var mu sync.Mutex
	go func() {
		opened, asked, err := c.OpenChannel("session", nil)
		if err != nil {
			done <- answer{err: fault.Wrap(fault.Unavailable, err, "cannot look for what a session left")}
			return
		}
		mu.Lock()
		ch = opened
		mu.Unlock()
		defer opened.Close()
		go ssh.DiscardRequests(asked)
		go func() { _, _ = io.Copy(io.Discard, io.LimitReader(opened.Stderr(), maxSwept)) }()
		ok, err := opened.SendRequest("exec", true, ssh.Marshal(word{sweepWord + " " + signal}))
		if err != nil || !ok {
			done <- answer{err: fault.New(fault.Unavailable, "cannot look for what a session left: the host runs no command for it")}
			return
		}
		said, _ := io.ReadAll(io.LimitReader(opened, maxSwept))
		hit, left, err := parseSwept(said)
		done <- answer{hit, left, err}
	}()
	select {
	case a := <-done:
		return a.hit, a.left, a.err
	case <-ctx.Done():
		mu.Lock()
		if ch != nil {
			_ = ch.Close()
		}
		mu.Unlock()
		return 0, 0, fault.Wrap(fault.Unavailable, ctx.Err(), "cannot look for what a session left: the host does not answer")
	}
}

// parseSwept reads the last line of that form. It is the host's word.
func parseSwept(said []byte) (hit, left int, err error) {
	all := swept().FindAllSubmatch(said, -1)
	if len(all) == 0 {
		return 0, 0, fault.New(fault.Unavailable, "cannot look for what a session left: the host answered %.60q", strings.TrimSpace(string(said)))
	}
	last := all[len(all)-1]
	hit, _ = strconv.Atoi(string(last[1])) // digits, by the pattern
	left, _ = strconv.Atoi(string(last[2]))
	return hit, left, nil
}

type sweptPayload struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Killed  int    `json:"killed"`
	Left    int    `json:"left"`
	Error   string `json:"error,omitempty"`
}

// release gives up the connection, once. What the session left behind is sought
// first; what was found, or that nobody could look, is an entry.
func (s *Stream) release() {
	s.mu.Lock()
	again := s.released
	due := s.launched && !s.swept && s.spec.Kind != wire.SessionSFTP
	s.released = true
	s.mu.Unlock()
	if again {
		return
	}
	if !due {
		s.conn.Close()
		return
	}
	s.r.later(s.host, s.spec.ID, s.spec.Person, func(ctx context.Context) (int, int, error) {
		defer s.conn.Close()
		return s.sweep(ctx, "KILL")
	})
}

// later seeks what a session left and records what it found.
func (r *Reach) later(h target.Host, session, person string, sweep func(context.Context) (killed, left int, err error)) {
	r.wg.Go(func() {
		r.sweeps <- struct{}{} // each is bounded in time, so this is
		defer func() { <-r.sweeps }()
		ctx, cancel := context.WithTimeout(context.Background(), 2*r.b.SweepTime)
		defer cancel()
		killed, left, err := sweep(ctx)
		if err == nil && killed == 0 && left == 0 {
			return
		}
		p := sweptPayload{V: 1, Session: session, Killed: killed, Left: left}
		outcome := ledger.OK
		if err != nil {
			outcome, p.Error = ledger.Unknown, fault.From(err).Text
		} else if left > 0 {
			outcome = ledger.Failed
		}
		r.record(ledger.Entry{Action: SessionSwept, Outcome: outcome, Subjects: []string{person}, Session: session, Target: h.Path(), Payload: p})
	})
}

// SweepLost seeks what a session left running that a crash of a server lost.
// Its connection died with the server; what ignored that goes on.
func (r *Reach) SweepLost(h target.Host, session, person, level string) {
	account := h.SSHUser
	if level == wire.LevelWrite {
		account = h.SSHWrite
	}
	if account == "" || !wire.ValidID('s', session) {
		return
	}
	r.later(h, session, person, func(ctx context.Context) (int, int, error) {
		return r.sweepAnew(ctx, h, account, session, person, level, "KILL")
	})
}
