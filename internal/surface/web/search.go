package web

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// A search is a POST, and is not made while somebody types: each is an entry in
// the name of who searched, so that no link may make one, and its words belong
// into no history. What it found is shown once and kept nowhere.
func (s *site) routeSearch(mux *http.ServeMux) {
	mux.HandleFunc("GET /sessions/search", s.page(s.showSearch))
	mux.HandleFunc("POST /sessions/search", s.page(s.searchRecordings))
}

// searchView is a question about what recordings hold, and its answer.
type searchView struct {
	Words, Person, Host, Since string
	Before                     string // a session: those before it
	Asked                      bool
	Found                      []foundIn
	Sum                        *v1.SearchSummary // nil: the answer broke off, or there was none
	Fault                      *fault.Error
}

// foundIn is what was found in one recording.
type foundIn struct {
	Session *v1.Session
	Hits    []*v1.SearchHit
}

// searchTimes are since when a search can look, as the page and the command say it.
var searchTimes = []struct {
	name, title string
	ago         time.Duration
}{{"", "any time", 0}, {"1d", "a day", 24 * time.Hour}, {"7d", "7 days", 7 * 24 * time.Hour}, {"30d", "30 days", 30 * 24 * time.Hour}}

// showSearch is the question; nothing is searched before it is sent.
func (s *site) showSearch(v *visit) error {
	f := v.frame("Search recordings", "sessions")
	return v.show(f, searchPage(f, searchView{}))
}

func (s *site) searchRecordings(v *visit) error {
	x := searchView{Words: v.form("words"), Person: v.form("person"), Host: v.form("host"), Since: v.form("since"), Before: v.form("before"), Asked: true}
	r := &v1.SearchRecordingsRequest{Words: x.Words, Person: x.Person, Host: x.Host, Before: x.Before}
	for _, t := range searchTimes {
		if t.name == x.Since && t.ago > 0 {
			r.Since = timestamppb.New(s.now().Add(-t.ago))
		}
	}
	stream, err := s.recordings.Search(v.ctx, r)
	if err == nil {
		for stream.Receive() {
			x.take(stream.Msg())
		}
		err = stream.Err()
		stream.Close()
	}
	switch {
	case err != nil:
		x.Fault = faultOf(err)
	case x.Sum == nil:
		x.Fault = fault.New(fault.Unavailable, "cannot search to the end: the answer broke off").WithHint("%s", x.line())
	}
	if x.Fault != nil && x.Fault.Kind == fault.Unauthenticated {
		return x.Fault
	}
	f := v.frame("Search recordings", "sessions")
	return v.secret(f, searchPage(f, x))
}

func (x *searchView) take(m *v1.SearchRecordingsResponse) {
	if m.Hit == nil {
		x.Sum = m.Summary
		return
	}
	if n := len(x.Found); n == 0 || x.Found[n-1].Session.GetId() != m.Hit.Session.GetId() {
		x.Found = append(x.Found, foundIn{Session: m.Hit.Session})
	}
	last := &x.Found[len(x.Found)-1]
	last.Hits = append(last.Hits, m.Hit)
}

// hits says how much was found, in how much.
func (x *searchView) hits() string {
	n := 0
	for _, in := range x.Found {
		n += len(in.Hits)
	}
	return count(n, "line", "lines") + " in " + count(len(x.Found), "recording", "recordings")
}

// unsearched is where the words may stand all the same.
func (x *searchView) unsearched() []string {
	var out []string
	for _, left := range []struct {
		n   uint32
		why string
	}{
		{x.Sum.GetDenied(), "that you may not replay"},
		{x.Sum.GetElsewhere(), "with another server alone"},
		{x.Sum.GetUnread(), "that cannot be read: erased, removed or damaged"},
	} {
		if left.n > 0 {
			out = append(out, count(int(left.n), "recording", "recordings")+" "+left.why)
		}
	}
	if n := int(x.Sum.GetCut()); n > 0 {
		out = append(out, "the end of "+count(n, "recording that is", "recordings that are")+" too long")
	}
	return append(out, "sessions that are still open")
}

// line is the same search from a terminal.
func (x *searchView) line() string {
	line := "handrail sessions search"
	for _, flag := range [][2]string{{"--person", x.Person}, {"--host", x.Host}, {"--since", x.Since}, {"--before", x.Before}} {
		if flag[1] != "" {
			line += " " + flag[0] + " " + shellWord(flag[1])
		}
	}
	if x.Words == "" {
		return line + ` "disk full"`
	}
	if strings.HasPrefix(x.Words, "-") {
		line += " --"
	}
	return line + " " + shellWord(x.Words)
}

// shellWord is one word to a shell, whatever is in it.
func shellWord(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && r != '.' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// stretch is a part of a line: words that were looked for, or what is around them.
type stretch struct {
	Text string
	Hit  bool
}

// How much of a long line is shown: letters before the first hit, and in all.
const (
	lineBefore = 60
	lineShown  = 240
)

// marked shows where the words stand in a line, as the search finds them: whatever their
// case, and with one space between them.
func marked(line, words string) []stretch {
	text, lower, want := []rune(line), lowered(line), lowered(strings.Join(strings.Fields(words), " "))
	from, end := 0, len(text)
	if first := indexOf(lower, want, 0); first > lineBefore {
		from = first - lineBefore
	}
	end = min(end, from+lineShown)
	var out []stretch
	put := func(to int, hit bool) {
		if to > from {
			out = append(out, stretch{string(text[from:to]), hit})
			from = to
		}
	}
	if from > 0 {
		out = append(out, stretch{Text: "…"})
	}
	for at := indexOf(lower[:end], want, from); at >= 0; at = indexOf(lower[:end], want, from) {
		put(at, false)
		put(at+len(want), true)
	}
	put(end, false)
	if end < len(text) {
		out = append(out, stretch{Text: "…"})
	}
	return out
}

func lowered(s string) []rune {
	out := []rune(s)
	for i, r := range out {
		out[i] = unicode.ToLower(r)
	}
	return out
}

// indexOf is where want stands in text from there on, or -1.
func indexOf(text, want []rune, from int) int {
	for i := from; len(want) > 0 && i+len(want) <= len(text); i++ {
		if slices.Equal(text[i:i+len(want)], want) {
			return i
		}
	}
	return -1
}

// replayAt is a moment of a recording, in the address of its session.
func replayAt(id string, at *durationpb.Duration) string {
	return "/sessions/" + id + "?at=" + seconds(at.AsDuration())
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s" }

// askedMoment is the moment that an address asks for; 0 is the start.
func (v *visit) askedMoment() time.Duration {
	d, err := time.ParseDuration(v.r.URL.Query().Get("at"))
	if err != nil || d < 0 {
		return 0
	}
	return d
}

// hitKind says what is not plainly on the screen.
func hitKind(kind string) string {
	switch kind {
	case "input":
		return "typed"
	case "error":
		return "error output"
	}
	return ""
}
