package web

import (
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// ago says when something was or will be, as people say it.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	if d < 0 {
		return "in " + span(-d)
	}
	if d < 5*time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

// span says a length of time with at most two units.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 24*time.Hour:
		h, m := int(d.Hours()), int(d.Minutes())%60
		if m == 0 {
			return fmt.Sprintf("%d h", h)
		}
		return fmt.Sprintf("%d h %d min", h, m)
	}
	days := int(d.Hours()) / 24
	if days == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", days)
}

// clock says a length as m:ss, for recordings.
func clock(d *durationpb.Duration) string {
	s := int(d.AsDuration().Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// lengthWord says how long something took; what is over at once has no "0:00".
func lengthWord(d *durationpb.Duration) string {
	switch n := d.AsDuration(); {
	case n < time.Second:
		return "under 1 s"
	case n < time.Minute:
		return span(n)
	}
	return clock(d) + " long"
}

func set(ts *timestamppb.Timestamp) bool { return ts != nil && ts.GetSeconds() > 0 }

func stamp(ts *timestamppb.Timestamp) string { return ts.AsTime().UTC().Format(time.RFC3339) }

func absolute(ts *timestamppb.Timestamp) string {
	return ts.AsTime().UTC().Format("2006-01-02 15:04:05 UTC")
}

func size(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	digits := 0
	if f < 10 {
		digits = 1
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + " " + [...]string{"KiB", "MiB", "GiB", "TiB", "PiB"}[unit]
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// sentence makes the tail of an error a sentence: "cannot decide a-1: nobody
// …" is what a log wants; a page that stands on the request wants the reason.
func sentence(s string) string {
	if strings.HasPrefix(s, "cannot ") {
		if _, why, ok := strings.Cut(s, ": "); ok {
			s = why
		}
	}
	s = strings.TrimRight(s, ".")
	if s == "" {
		return ""
	}
	r := []rune(s)
	return string(unicode.ToUpper(r[0])) + string(r[1:]) + "."
}

// asks says a request with its requester, once.
func asks(a *v1.Approval) string {
	if strings.HasPrefix(a.GetSummary(), a.GetRequesterName()+" ") {
		return a.Summary
	}
	return a.GetRequesterName() + " asks: " + a.GetSummary()
}

func hostNames(targets []*v1.GrantTarget) string {
	names := make([]string, 0, len(targets))
	for _, t := range targets {
		names = append(names, t.Name)
	}
	return strings.Join(names, ", ")
}

func hasProduction(targets []*v1.GrantTarget) bool {
	for _, t := range targets {
		if t.Environment == "production" {
			return true
		}
	}
	return false
}

// left is the time until ts, never negative.
func left(ts *timestamppb.Timestamp, now time.Time) string {
	d := ts.AsTime().Sub(now)
	if d <= 0 {
		return "over"
	}
	return span(d) + " left"
}

func hasKind(p *v1.Person, kind string) bool {
	for _, c := range p.GetCredentials() {
		if c.Kind == kind {
			return true
		}
	}
	return false
}

func itoa(n int) string { return strconv.Itoa(n) }

func initial(name string) string {
	for _, r := range name {
		return strings.ToUpper(string(r))
	}
	return "?"
}

func groupsOf(p *v1.Person) string {
	if len(p.GetGroups()) == 0 {
		return "in no group"
	}
	return strings.Join(p.Groups, ", ")
}

func titleOf(f frame) string {
	title := f.Title + " · handrail"
	if f.Inst.Demo {
		title += " (demo)"
	}
	if f.Status.ApprovalsOpen > 0 && f.Nav != "bare" {
		title = fmt.Sprintf("(%d) %s", f.Status.ApprovalsOpen, title)
	}
	return title
}

func modeWord(mode string) string {
	switch mode {
	case "root":
		return "runs as root"
	case "user-namespace":
		return "runs without root, in a user namespace"
	case "no-shells":
		return "no shells are possible"
	}
	return mode
}

func stateWord(name string) string {
	switch name {
	case "in-review":
		return "in review"
	case "never":
		return "never seen"
	}
	return name
}

func noticeIcon(kind string) string {
	switch kind {
	case "good":
		return "check"
	case "calm":
		return "eye"
	}
	return "alert"
}

// sshLine is the plain ssh command for a host through the gateway.
func sshLine(user, address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "ssh " + user + "@" + address
	}
	if host == "" || host == "::" || host == "0.0.0.0" {
		host = "localhost"
	}
	if port == "22" {
		return "ssh " + user + "@" + host
	}
	return "ssh -p " + port + " " + user + "@" + host
}

// secondName is a name for the second person that is not the first one's.
func secondName(f frame) string {
	if f.Status.GetPeople() > 1 {
		return "" // there is one already
	}
	if f.Me.GetName() == "grace" {
		return "ada"
	}
	return "grace"
}

// The environments and scopes that a host may have.
var (
	environments = []string{"dev", "staging", "production"}
	scopes       = []string{"none", "pci", "sox", "hipaa"}
)

func listOr(list []string, otherwise string) string {
	if len(list) == 0 {
		return otherwise
	}
	return strings.Join(list, ", ")
}

func accountOf(g *v1.Grant) string {
	who := g.GetAccount()
	switch {
	case g.GetRoot():
		return "root"
	case who == "":
		who = "the account that policy names"
	}
	if g.GetSudo() {
		return who + " with sudo"
	}
	return who
}

// quoteRegexp makes a pattern attribute that matches a name and nothing else. A
// dash stays as it is: browsers read patterns with the flag v, under which an
// escape that is not needed is an error, and the field takes anything.
func quoteRegexp(s string) string { return strings.ReplaceAll(s, ".", `\.`) }

func textOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// sandboxOf says what confines a session: a floor is of read sessions only.
func sandboxOf(s *v1.Session) string {
	if s.GetLevel() == "write" {
		return "none: write access"
	}
	return textOr(s.GetFloor(), "not known yet")
}

// endWord says why a session ended.
func endWord(s *v1.Session) string {
	switch s.GetEndedWhy() {
	case "exit":
		if s.ExitStatus != 0 {
			return "exit " + itoa(int(s.ExitStatus))
		}
		return "exit 0"
	case "hangup":
		return "connection went away"
	case "expired":
		return "time was up"
	case "revoked":
		return "grant ended"
	case "locked":
		return "person locked"
	case "lost":
		return "host was lost"
	case "shutdown":
		return "handrail was stopped"
	case "budget":
		return "used up its share of the host"
	case "recorder":
		return "could not be recorded"
	case "refused":
		return "refused by the host"
	case "pause-timeout":
		return "paused for too long"
	case "":
		return "ended"
	}
	return s.EndedWhy
}

func watchersOf(s *v1.Session) string {
	names := make([]string, 0, len(s.Watchers))
	for _, w := range s.Watchers {
		names = append(names, w.PersonName)
	}
	return "watched by " + strings.Join(names, ", ")
}

func recordingWord(s *v1.Session) string {
	if !s.GetRecorded() {
		return "none"
	}
	if s.RecordingBytes == 0 {
		return "recorded, encrypted"
	}
	return size(s.RecordingBytes) + ", encrypted"
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// kindWord says a kind of request in words.
func kindWord(kind string) string {
	switch kind {
	case "grant":
		return "write access"
	case "person.add":
		return "a new person"
	case "robot.add":
		return "a new robot"
	case "robot.set":
		return "a change of a robot"
	case "person.unlock":
		return "unlock a person"
	case "host.add":
		return "a new host without a node"
	case "host.adopt":
		return "a node for a host"
	case "host.set":
		return "a host's settings"
	case "policy.apply":
		return "new rules"
	case "ratification":
		return "ratify a break-glass"
	case "person.erase":
		return "erase a person"
	case "witness.set":
		return "the ledger's witnesses"
	case "webhook.add":
		return "a new webhook"
	}
	return kind
}

// saidOnce is the details of a request without those that the page says anyway.
func saidOnce(a *v1.Approval) []*v1.Detail {
	var rest []*v1.Detail
	for _, d := range a.GetDetails() {
		if d.Name != "who" || d.Value != a.RequesterName {
			rest = append(rest, d)
		}
	}
	return rest
}

// beganWord is what the start of a grant is called: it may be yet to come.
func beganWord(g *v1.Grant) string {
	switch g.GetState() {
	case "active", "paused":
		return "In force since"
	case "requested", "approved":
		return "Begins"
	}
	return "Began"
}

// grantEndWord says why a grant ended.
func grantEndWord(g *v1.Grant) string {
	switch g.GetEndedWhy() {
	case "done":
		return g.PersonName + " was done"
	case "expired":
		return "time was up"
	case "revoked":
		return "taken away"
	case "locked":
		return "the person was locked"
	case "unratified":
		return "nobody stood behind it in time"
	}
	return g.EndedWhy
}

// agreedTo is who agreed to a grant.
func agreedTo(g *v1.Grant) string {
	var names []string
	for _, d := range g.Decisions {
		if d.Counts {
			names = append(names, d.PersonName)
		}
	}
	return strings.Join(names, ", ")
}

func decidersOf(a *v1.Approval) string {
	var names []string
	for _, d := range a.Decisions {
		if d.Void == "" {
			names = append(names, d.PersonName)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "by " + strings.Join(names, ", ")
}

func credentialsOf(p *v1.Person) string {
	passkeys, devices := 0, 0
	for _, c := range p.GetCredentials() {
		if c.Kind == "passkey" {
			passkeys++
		} else {
			devices++
		}
	}
	var parts []string
	if passkeys > 0 {
		parts = append(parts, count(passkeys, "passkey", "passkeys"))
	}
	if devices > 0 {
		parts = append(parts, count(devices, "device", "devices"))
	}
	return textOr(strings.Join(parts, ", "), "none yet")
}

// askable is what the page Policy can be asked, with the words for it.
var askable = [][2]string{
	{"sessions.open", "open a session"}, {"grants.request", "ask for write"}, {"grants.breakglass", "break the glass"},
	{"approvals.decide", "approve a request"}, {"sessions.watch", "watch a session"}, {"sessions.control", "pause or stop a session"},
	{"sessions.replay", "replay a recording"}, {"people.add", "add a person"}, {"people.lock", "lock a person"}, {"hosts.set", "set a host"},
	{"hosts.invite", "invite a host"}, {"policies.apply", "change the rules"}, {"ledger.list", "read the ledger"}, {"ledger.export", "export the ledger"},
}

// ruleLine is one line of a rule file as the page shows it.
type ruleLine struct{ Text, Class, ID string }

// ruleLines colours a rule file by line, and gives each rule an anchor, so
// that a refusal can link to the rule that decided.
func ruleLines(text string) []ruleLine {
	var lines []ruleLine
	for _, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		line, bare := ruleLine{Text: l}, strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(bare, "//"), strings.HasPrefix(bare, "#"):
			line.Class = "c"
		case strings.HasPrefix(bare, "@id("):
			line.Class, line.ID = "a", strings.Trim(strings.TrimPrefix(bare, "@id("), `")`)
		case strings.HasPrefix(bare, "@"):
			line.Class = "a"
		case strings.HasPrefix(bare, "permit"):
			line.Class = "k"
		case strings.HasPrefix(bare, "forbid"):
			line.Class = "f"
		}
		lines = append(lines, line)
	}
	return lines
}

// entryWord is an entry in one line.
func entryWord(e *v1.Entry) string {
	if e.GetSummary() != "" {
		return e.Summary
	}
	who := textOr(e.GetActorName(), "handrail")
	if e.GetTargetName() != "" {
		return who + ": " + e.Action + " on " + e.TargetName
	}
	return who + ": " + e.Action
}

func leafOf(x entryView) string {
	if x.Proof != nil && len(x.Proof.Leaf) > 0 {
		return string(x.Proof.Leaf)
	}
	return x.Entry.GetLeafJson()
}
