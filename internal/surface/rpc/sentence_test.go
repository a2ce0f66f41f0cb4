package rpc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

var calling = &names{of: map[string]string{"system": "handrail", "p-ada": "ada", "p-ben": "ben", "h-web": "web-1"}}

// told is the sentence of an entry as the API makes it.
func told(t *testing.T, action, outcome string, subjects []string, host string, payload any) string {
	t.Helper()
	raw, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	e := &handrailv1.Entry{Action: action, Outcome: outcome, Subjects: subjects, ActorName: calling.name(subjects[0]), TargetName: calling.of[host], Session: "s-1"}
	return (&said{Entry: e, names: calling, payload: raw, describe: func(a approval.Approval) string { return "add cy, in groups: admin" }}).sentence()
}

func TestEachEntrySaysWhatHappened(t *testing.T) {
	ada, both, byBen := []string{"p-ada"}, []string{"p-ben", "p-ada"}, []string{"p-ben"}
	grant := access.Grant{Person: "p-ada", PersonName: "ada", Targets: []access.Target{{ID: "h-web", Name: "web-1"}}, AskedFor: 30 * time.Minute, Reason: "disk full",
		EndedWhy: access.Revoked, EndedBy: "p-ben", EndedNote: "enough", Expires: time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC).UnixMicro(), Verdict: "not-justified", Notes: "ask"}
	root := grant
	root.Root = true
	request := json.RawMessage(`{"v":1,"grant":"g-1","person":"p-ada","person_name":"ada","kind":"routine","targets":[{"id":"h-web","name":"web-1","environment":"dev","scope":"none"}],"sudo":false,"root":false,"reason":"x","for_ms":1800000,"buddy_required":false,"requested":1,"policy":1}`)
	asks := approval.Approval{Kind: access.KindGrant, State: approval.Approved, Request: request, Rule: approval.Rule{Needed: 2}}
	open := asks
	open.State = approval.Requested
	adds := approval.Approval{Kind: "person.add", State: approval.Denied, Request: []byte(`{}`), Decisions: []approval.Decision{{Reason: "who is she"}}}
	g := func(g access.Grant) any { return map[string]any{"v": 1, "grant": g} }
	a := func(a approval.Approval) any { return map[string]any{"v": 1, "approval": a} }
	order := func(s wire.SessionSpec) any { return wire.OrderPayload{V: 1, Session: &s} }
	for _, c := range []struct {
		action, outcome string
		subjects        []string
		payload         any
		want            string
	}{
		{"approval.approved", "ok", both, a(asks), "ben approved ada's write access to web-1 for 30 min"},
		{"approval.approved", "ok", both, a(open), "ben agreed, one of 2, to ada's write access to web-1 for 30 min"},
		{"approval.requested", "ok", ada, a(open), "ada waits for somebody to agree to write access to web-1 for 30 min"},
		{"approval.denied", "ok", both, a(adds), "ben refused: add cy, in groups: admin: who is she"},
		{"grant.requested", "ok", ada, g(root), "ada asked for root on web-1 for 30 min: disk full"},
		{"grant.activated", "ok", both, g(grant), "ada's write access to web-1 for 30 min is in force, until 12:30 UTC"},
		{"grant.ended", "ok", both, g(grant), "ben revoked ada's grant on web-1: enough"},
		{"grant.reviewed", "ok", both, g(grant), "ben reviewed ada's break-glass on web-1, not justified: ask"},
		{"session.opened", "ok", ada, order(wire.SessionSpec{Level: wire.LevelRead, Kind: wire.SessionExec, Command: "tail -f\n/var/log/x"}), "ada ran a command on web-1, read-only: tail -f /var/log/x"},
		{"session.opened", "failed", ada, order(wire.SessionSpec{Level: wire.LevelWrite, Kind: wire.SessionShell, BreakGlass: true}), "ada opened a shell on web-1, with write access, BREAK-GLASS, failed"},
		{"session.closed", "ok", ada, map[string]any{"why": "exit", "status": 3}, "ada's session on web-1 is over, with status 3"},
		{"session.stopped", "ok", both, map[string]any{"reason": "enough"}, "ben stopped ada's session on web-1: enough"},
		{"session.watched", "ok", []string{"p-ada", "p-ada"}, map[string]any{}, "ada watches their own session on web-1"},
		{"act.denied", "denied", byBen, map[string]any{"action": "grants.breakglass", "text": "Refused: who owes a review cannot."}, "ben could not break the glass on web-1: who owes a review cannot"},
		{"person.locked", "ok", both, identity.PersonPayload{Person: "p-ada", Reason: "lost laptop"}, "ben LOCKED ada: lost laptop"},
		{"person.regrouped", "ok", both, identity.PersonPayload{Person: "p-ada", Groups: []string{"admin"}}, "ben regrouped ada, in admin; before that, in no group"},
		{"host.set", "ok", byBen, map[string]any{"host": target.Host{Name: "web-1", Environment: "production"}, "before": target.Host{Name: "web-1", Environment: "dev"}}, "ben set web-1: environment production (was dev)"},
		{"login.failed", "denied", []string{"system"}, identity.FailuresPayload{Sources: []identity.SourceFailure{{Source: "192.0.2.1", Counts: map[string]int64{"x": 3}}}}, "logging in failed 3 times within a minute from 192.0.2.1, denied"},
		{"node.renewed", "ok", []string{"h-web"}, map[string]any{"not_after": 1_800_000_000_000_000}, "web-1's node got another certificate, good until 2027-01-15"},
		{"node.alarmed", "denied", []string{"h-web"}, map[string]any{"rule": "replay", "text": "an order came twice"}, "web-1's node ALARM replay: an order came twice, denied"},
		{"person.added", "ok", both, json.RawMessage(`"from a newer version"`), "ben: person added for ada on web-1"},
		{"fix.rolled", "ok", both, map[string]any{}, "ben: fix rolled for ada on web-1"},
	} {
		if got := told(t, c.action, c.outcome, c.subjects, "h-web", c.payload); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.action, got, c.want)
		}
	}
}

// What is erased has no payload, and what somebody writes is as long as they like.
func TestASentenceNeedsNoPayloadAndHasAnEnd(t *testing.T) {
	for action, tell := range sentences {
		e := &handrailv1.Entry{Action: action, Outcome: "ok", Subjects: []string{"p-ada"}, ActorName: "ada"}
		if got := (&said{Entry: e, names: calling}).sentence(); !strings.HasPrefix(got, "ada: ") {
			t.Errorf("%s, erased: %q", action, got)
		}
		s := &said{Entry: e, names: calling, payload: []byte(`{"v":1}`), describe: func(approval.Approval) string { return "x" }}
		if action != "session.opened" && tell(s) == "" { // without a session it is no order
			t.Errorf("%s says nothing of an empty payload", action)
		}
	}
	long := told(t, "person.locked", "ok", []string{"p-ben", "p-ada"}, "", identity.PersonPayload{Person: "p-ada", Reason: strings.Repeat("é", 5000)})
	if n := len([]rune(long)); n != maxSentence {
		t.Errorf("a sentence of %d letters", n)
	}
}

func TestAGapIsSaidInWords(t *testing.T) {
	for data, want := range map[string]string{
		`{"stream":"output","length":5000000,"skipped":3885888,"sha256":"eA=="}`: "3.7 MiB of 4.8 MiB of output were not kept, only their hash",
		`{"stream":"output","length":5000,"skipped":0}`:                          "nothing of 4.9 KiB of output is missing",
		"the server was away": "the server was away",
		`{}`:                  `{}`,
	} {
		if got := gapWords([]byte(data)); got != want {
			t.Errorf("%s\n got %q\nwant %q", data, got, want)
		}
	}
}
