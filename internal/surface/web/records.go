package web

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeRecords(mux *http.ServeMux) {
	mux.HandleFunc("GET /policy", s.page(s.showPolicy))
	mux.HandleFunc("GET /ledger", s.page(s.showLedger))
	mux.HandleFunc("GET /ledger/{number}", s.page(s.showEntry))
	mux.HandleFunc("POST /ledger/verify", s.page(s.verify))
	mux.HandleFunc("POST /ledger/export", s.page(s.export))
}

// question is the form "may they do this, and why".
type question struct {
	Person, Action, Host, Level string
	People                      []*v1.Person
	Hosts                       []*v1.Host
	Answer                      *v1.ExplainResponse
	Wrong                       string
}

func (s *site) showPolicy(v *visit) error {
	got, err := s.policies.Get(v.ctx, &v1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	in := v.r.URL.Query()
	q := question{Person: in.Get("person"), Action: in.Get("action"), Host: in.Get("host"), Level: in.Get("level")}
	if list, err := s.people.List(v.ctx, &v1.ListPeopleRequest{}); err == nil {
		q.People = list.People
	}
	if list, err := s.hosts.List(v.ctx, &v1.ListHostsRequest{}); err == nil {
		q.Hosts = list.Hosts
		sortHosts(q.Hosts)
	}
	if q.Person != "" && q.Action != "" {
		q.Answer, err = s.policies.Explain(v.ctx, &v1.ExplainRequest{Person: q.Person, Action: q.Action, Host: q.Host, Level: q.Level})
		if err != nil {
			q.Wrong = faultOf(err).Text
		}
	}
	f := v.frame("Policy", "policy")
	return v.show(f, policyPage(f, got, q))
}

// entryFilter is what of the ledger the page shows.
type entryFilter struct {
	Action, Person, Target, Session string
	Before                          uint64
	Each                            bool // upkeep too is a line each
}

// folds says whether runs of upkeep are one line: not for who asks for them.
func (e entryFilter) folds() bool { return !e.Each && e.Action == "" && e.Session == "" }

// older is the address of the entries before these.
func (e entryFilter) older(before uint64) string {
	q := url.Values{}
	for name, value := range map[string]string{"action": e.Action, "person": e.Person, "target": e.Target, "session": e.Session} {
		if value != "" {
			q.Set(name, value)
		}
	}
	q.Set("before", strconv.FormatUint(before, 10))
	return "/ledger?" + q.Encode()
}

func (s *site) showLedger(v *visit) error {
	in := v.r.URL.Query()
	e := entryFilter{Action: in.Get("action"), Person: in.Get("person"), Target: in.Get("target"), Session: in.Get("session")}
	e.Before, _ = strconv.ParseUint(in.Get("before"), 10, 64)
	e.Each = in.Get("each") != ""
	entries, more, err := s.entries(v, e)
	wrong := ""
	if err != nil {
		if k := faultOf(err).Kind; k != fault.Invalid && k != fault.NotFound {
			return err
		}
		wrong = faultOf(err).Text
	}
	f := v.frame("Ledger", "ledger")
	f.Script = "ledger.js"
	return v.show(f, ledgerPage(f, ledgerLines(entries, e.folds()), e, more, wrong))
}

// entries fetches until there is something to read: a long session leaves
// hundreds of pieces of its recording between two lines for people.
func (s *site) entries(v *visit, e entryFilter) (all []*v1.Entry, more bool, err error) {
	const page, pagesMax, enough = 100, 6, 30
	for range pagesMax {
		got, err := s.ledger.List(v.ctx, &v1.ListEntriesRequest{
			Before: e.Before, Limit: page, Action: e.Action, Person: e.Person, Target: e.Target, Session: e.Session,
		})
		if err != nil {
			return nil, false, err
		}
		all = append(all, got.Entries...)
		if len(got.Entries) < page || all[len(all)-1].Number == 0 {
			return all, false, nil
		}
		if e.Before = all[len(all)-1].Number; len(ledgerLines(all, e.folds())) >= enough {
			break
		}
	}
	return all, true, nil
}

// upkeep is what machines record of their own work, many a minute.
var upkeep = []string{"recording.chunks", "recording.started", "recording.closed", "recording.archived", "node.reported"}

// ledgerLine is one line of the page: an entry, or a run of upkeep.
type ledgerLine struct {
	*v1.Entry          // the newest
	First     uint64   // the number of the oldest
	Run       int      // how many entries
	Actions   []string // of the run
}

// ledgerLines makes one line of each run of upkeep that went well. Nothing is
// left out: the line says how many there are, and leads to them.
func ledgerLines(entries []*v1.Entry, fold bool) []ledgerLine {
	var lines []ledgerLine
	quiet := func(x *v1.Entry) bool { return fold && x.Outcome == "ok" && slices.Contains(upkeep, x.Action) }
	for _, x := range entries {
		if n := len(lines) - 1; n >= 0 && quiet(x) && quiet(lines[n].Entry) {
			lines[n].First, lines[n].Run = x.Number, lines[n].Run+1
			if !slices.Contains(lines[n].Actions, x.Action) {
				lines[n].Actions = append(lines[n].Actions, x.Action)
			}
			continue
		}
		lines = append(lines, ledgerLine{x, x.Number, 1, []string{x.Action}})
	}
	return lines
}

// entryView is one entry with its proof.
type entryView struct {
	Entry   *v1.Entry
	Proof   *v1.ProofResponse // nil while it is not yet in a signed checkpoint
	Payload string
}

func (s *site) showEntry(v *visit) error {
	number, err := strconv.ParseUint(v.r.PathValue("number"), 10, 64)
	if err != nil {
		return fault.New(fault.NotFound, "cannot find entry %q: an entry has a number", v.r.PathValue("number"))
	}
	got, err := s.ledger.Get(v.ctx, &v1.GetEntryRequest{Number: number})
	if err != nil {
		return err
	}
	x := entryView{Entry: got.Entry, Payload: indent(got.Entry.PayloadJson)}
	if proof, err := s.ledger.Proof(v.ctx, &v1.ProofRequest{Number: number}); err == nil {
		x.Proof = proof
	}
	f := v.frame("Entry #"+strconv.FormatUint(number, 10), "ledger")
	f.Script = "ledger.js"
	return v.show(f, entryPage(f, x))
}

func indent(text string) string {
	var buf bytes.Buffer
	if json.Indent(&buf, []byte(text), "", "  ") != nil {
		return text
	}
	return buf.String()
}

// proofJSON is the proof as the script in the browser checks it.
func proofJSON(x entryView) string {
	hashes := make([]string, 0, len(x.Proof.Inclusion))
	for _, h := range x.Proof.Inclusion {
		hashes = append(hashes, base64.StdEncoding.EncodeToString(h))
	}
	b, _ := json.Marshal(map[string]any{ // strings and numbers always marshal
		"index": x.Entry.Number, "leaf": base64.StdEncoding.EncodeToString(x.Proof.Leaf),
		"inclusion": hashes, "checkpoint": x.Proof.Checkpoint,
	})
	return string(b)
}

// verified is one step of a verification, one JSON line each.
type verified struct {
	Checked    uint64   `json:"checked"`
	Total      uint64   `json:"total"`
	Done       bool     `json:"done,omitempty"`
	OK         bool     `json:"ok,omitempty"`
	Findings   []string `json:"findings,omitempty"`
	Checkpoint string   `json:"checkpoint,omitempty"`
	Recordings uint64   `json:"recordings,omitempty"`
	Payloads   uint64   `json:"payloads,omitempty"`
}

func (s *site) verify(v *visit) error {
	stream, err := s.ledger.Verify(v.ctx, &v1.VerifyRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	return v.relay(func(line func(any) error) error {
		for stream.Receive() {
			m := stream.Msg()
			err := line(verified{m.Checked, m.Total, m.Done, m.Ok, m.Findings, m.Checkpoint, m.Recordings, m.Payloads})
			if err != nil {
				return err
			}
		}
		return streamEnd(stream.Err())
	})
}

// export relays the zip. When the stream breaks, so does the download: half a
// zip must not look whole.
func (s *site) export(v *visit) error {
	stream, err := s.ledger.Export(v.ctx, &v1.ExportRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	started := false
	for stream.Receive() {
		if !started {
			started = true
			name := "handrail-ledger-" + s.now().UTC().Format("20060102-150405") + ".zip"
			v.w.Header().Set("Content-Type", "application/zip")
			v.w.Header().Set("Cache-Control", "no-store")
			v.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
		}
		if _, err := v.w.Write(stream.Msg().Data); err != nil {
			return nil // the visitor has left
		}
	}
	if err := streamEnd(stream.Err()); err != nil {
		if !started {
			return err
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// beat keeps proxies from cutting a quiet stream.
const beat = 20 * time.Second

// streamEvents relays which topics changed, as server-sent events.
func (s *site) streamEvents(v *visit) error {
	changed, watching := make(chan *v1.WatchEventsResponse, 64), make(chan struct{})
	go s.watchEvents(v.ctx, watching, changed)
	select { // what happens after "hello" must not be missed
	case <-watching:
	case <-time.After(patience):
	case <-v.ctx.Done():
		return nil
	}
	v.w.Header().Set("Content-Type", "text/event-stream")
	v.w.Header().Set("Cache-Control", "no-store")
	v.w.Header().Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(v.w)
	_, _ = v.w.Write([]byte("retry: 2000\nevent: hello\ndata: {}\n\n"))
	if err := out.Flush(); err != nil {
		return nil // the visitor has left
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case m, ok := <-changed:
			if !ok {
				return nil // the API ended the stream; the browser comes again
			}
			line, _ := json.Marshal(map[string]string{"topic": m.Topic, "id": m.Id}) // strings always marshal
			_, _ = v.w.Write([]byte("event: change\ndata: " + string(line) + "\n\n"))
		case <-tick.C:
			_, _ = v.w.Write([]byte(": beat\n\n"))
		case <-v.ctx.Done():
			return nil
		}
		if err := out.Flush(); err != nil {
			return nil
		}
	}
}

// patience is how long a page waits for the API's word that it watches. An API
// that gives nothing, not even its head, until the first change must not hold
// up the stream to the browser.
const patience = 250 * time.Millisecond

// watchEvents passes on what changed until the API ends the stream or the
// visitor leaves.
func (s *site) watchEvents(ctx context.Context, watching chan<- struct{}, changed chan<- *v1.WatchEventsResponse) {
	defer close(changed)
	stream, err := s.events.Watch(ctx, &v1.WatchEventsRequest{})
	close(watching)
	if err != nil {
		return
	}
	defer stream.Close()
	for stream.Receive() {
		m := &v1.WatchEventsResponse{Topic: stream.Msg().Topic, Id: stream.Msg().Id}
		select {
		case changed <- m:
		case <-ctx.Done():
			return
		}
	}
}

// checkpointSize is the tree size that a checkpoint names, in its second line.
func checkpointSize(note string) string {
	lines := strings.SplitN(note, "\n", 4)
	if len(lines) < 3 {
		return ""
	}
	return lines[1]
}
