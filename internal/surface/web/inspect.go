package web

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeInspect(mux *http.ServeMux) {
	mux.HandleFunc("GET /hosts/{host}/inspect", s.page(s.showInspect))
	mux.HandleFunc("POST /hosts/{host}/inspect", s.page(s.inspectHost))
}

// inspectVerbs are what can be looked at, as the page says it.
var inspectVerbs = []struct{ name, title, says, target string }{
	{"stacks", "Stacks", "Where every thread stands. The process is held for a moment, and this page says for how long.", "process number, unit or name"},
	{"top", "Top", "Who uses the processors, memory and disks, from two looks a second apart.", "empty: the whole host"},
	{"journal", "Journal", "The newest records of a unit or of the host.", "unit; empty: the whole host"},
	{"ports", "Ports", "Who listens, and who is connected to whom.", "empty: the whole host"},
	{"files", "Files", "What a process has open, or what lies at a path.", "process, or a path such as /var/log"},
	{"env", "Environment", "With what a process was started. Names stay, secrets are masked on the host.", "process number, unit or name"},
}

// inspectView is what the page of a brokered read shows.
type inspectView struct {
	Host      *v1.Host
	What      string
	Target    string
	Since     string
	Grep      string
	Asked     bool
	ID        string
	Floor     string // in force there
	Visited   bool   // by a node that came for it
	Found     *v1.InspectTarget
	Others    []*v1.InspectTarget
	Stacks    []*v1.InspectStack
	Processes []*v1.InspectProcess
	Threads   []*v1.InspectProcess
	Groups    []*v1.InspectGroup
	Listeners []*v1.InspectSocket
	Connected []*v1.InspectSocket
	Files     []*v1.InspectFile
	Variables []*v1.InspectVariable
	Lines     []*v1.InspectLine
	Notes     []string
	End       *v1.InspectEnd
	Fault     *fault.Error
}

func (s *site) inspectStart(v *visit) (inspectView, error) {
	got, err := s.hosts.Get(v.ctx, &v1.GetHostRequest{Host: v.r.PathValue("host")})
	if err != nil {
		return inspectView{}, err
	}
	return inspectView{Host: got.Host}, nil
}

// showInspect is the question; nothing is looked at before it is sent.
func (s *site) showInspect(v *visit) error {
	x, err := s.inspectStart(v)
	if err != nil {
		return err
	}
	q := v.r.URL.Query()
	x.What, x.Target = known(q.Get("what")), q.Get("target")
	f := v.frame("Inspect "+x.Host.Name, "hosts")
	return v.show(f, inspectPage(f, x))
}

func known(what string) string {
	for _, verb := range inspectVerbs {
		if verb.name == what {
			return what
		}
	}
	return inspectVerbs[0].name
}

// inspectHost asks the host and shows the answer once: it is not stored.
func (s *site) inspectHost(v *visit) error {
	x, err := s.inspectStart(v)
	if err != nil {
		return err
	}
	x.What, x.Target, x.Grep, x.Since, x.Asked = known(v.form("what")), v.form("target"), v.form("grep"), v.form("since"), true
	r := &v1.InspectRequest{Host: x.Host.Id, What: x.What, Target: x.Target, Grep: x.Grep, Pause: durationpb.New(0)}
	if d, err := time.ParseDuration(x.Since); err == nil && d > 0 {
		r.Since = timestamppb.New(s.now().Add(-d))
	}
	stream, err := s.inspect.Look(v.ctx, r)
	if err == nil {
		for stream.Receive() {
			x.take(stream.Msg())
		}
		err = stream.Err()
		stream.Close()
	}
	if err != nil {
		x.Fault = faultOf(err)
	}
	f := v.frame("Inspect "+x.Host.Name, "hosts")
	f.Path = x.address()
	return v.secret(f, inspectPage(f, x))
}

func (x *inspectView) take(m *v1.InspectResponse) {
	switch r := m.Record.(type) {
	case *v1.InspectResponse_Began:
		x.ID, x.Floor, x.Visited = r.Began.Id, r.Began.Floor, r.Began.Visited
	case *v1.InspectResponse_Target:
		x.Found = r.Target
	case *v1.InspectResponse_Candidate:
		x.Others = append(x.Others, r.Candidate)
	case *v1.InspectResponse_Stack:
		x.Stacks = append(x.Stacks, r.Stack)
	case *v1.InspectResponse_Process:
		if r.Process.Thread != 0 {
			x.Threads = append(x.Threads, r.Process)
		} else {
			x.Processes = append(x.Processes, r.Process)
		}
	case *v1.InspectResponse_Group:
		x.Groups = append(x.Groups, r.Group)
	case *v1.InspectResponse_Socket:
		if r.Socket.State == "listening" || r.Socket.State == "open" {
			x.Listeners = append(x.Listeners, r.Socket)
		} else {
			x.Connected = append(x.Connected, r.Socket)
		}
	case *v1.InspectResponse_File:
		x.Files = append(x.Files, r.File)
	case *v1.InspectResponse_Variable:
		x.Variables = append(x.Variables, r.Variable)
	case *v1.InspectResponse_Line:
		x.Lines = append(x.Lines, r.Line)
	case *v1.InspectResponse_Note:
		x.Notes = append(x.Notes, r.Note)
	case *v1.InspectResponse_End:
		x.End = r.End
	}
}

// nothing says that the host answered, and had nothing to say.
func (x inspectView) nothing() bool {
	return x.Asked && x.Fault == nil && len(x.Stacks)+len(x.Processes)+len(x.Listeners)+len(x.Connected)+len(x.Files)+len(x.Variables)+len(x.Lines) == 0
}

// line is the same question for a terminal.
func (x inspectView) line() string {
	words := []string{"handrail", "inspect", x.Host.Name, x.What}
	if x.Target != "" {
		words = append(words, quoteWord(x.Target))
	}
	if x.Since != "" && x.What == "journal" {
		words = append(words, "--since", "-"+quoteWord(x.Since))
	}
	if x.Grep != "" {
		words = append(words, "--grep", quoteWord(x.Grep))
	}
	return strings.Join(words, " ")
}

func quoteWord(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// address is that of the page itself, by the host's id: a name is what people say.
func (x inspectView) address() string { return "/hosts/" + url.PathEscape(x.Host.Id) + "/inspect" }

// at is the address of the same question about another process.
func (x inspectView) at(what string, pid int64) string {
	return x.address() + "?what=" + what + "&target=" + strconv.FormatInt(pid, 10)
}

// many is how many threads stand in a stack.
func many(s *v1.InspectStack) int { return len(s.Threads) + int(s.More) }

// most is the largest of them, for the bars.
func (x inspectView) most() int {
	n := 1
	for _, s := range x.Stacks {
		n = max(n, many(s))
	}
	return n
}

func stackNoun(s *v1.InspectStack) string {
	one := "thread"
	if s.Kind == "goroutine" {
		one = "goroutine"
	}
	if many(s) == 1 {
		return one
	}
	return one + "s"
}

// summit is the frame that says most of a stack: the first that is not of the
// runtime or the C library.
func summit(s *v1.InspectStack) string {
	for _, f := range s.Frames {
		if !plumbing(f) {
			return f.Function
		}
	}
	if len(s.Frames) > 0 {
		return s.Frames[0].Function
	}
	return "no frames"
}

// plumbing says whether a frame is of what every program has below it.
func plumbing(f *v1.InspectFrame) bool {
	for _, p := range []string{"runtime.", "internal/", "java.", "jdk.", "sun.", "0x", "__", "uv_", "uv__", "v8::", "Builtins_", "node:", "pthread_", "epoll_", "syscall."} {
		if strings.HasPrefix(f.Function, p) {
			return true
		}
	}
	return strings.HasPrefix(f.Module, "libc.") || strings.HasPrefix(f.Module, "libc-") || strings.HasPrefix(f.Module, "ld-") || strings.HasPrefix(f.File, "node:") ||
		strings.HasPrefix(f.Module, "java.base") || strings.HasSuffix(f.File, "/threading.py") || f.Note == "began it"
}

func placeOfFrame(f *v1.InspectFrame) string {
	switch {
	case f.File != "" && f.Line > 0:
		return fmt.Sprintf("%s:%d", f.File, f.Line)
	case f.File != "":
		return f.File
	}
	return f.Module
}

func threadsOf(s *v1.InspectStack) string {
	var out []string
	for i, t := range s.Threads {
		if i == 8 {
			out = append(out, fmt.Sprintf("and %d more", many(s)-i))
			break
		}
		one := strconv.FormatInt(t.Id, 10)
		if t.Name != "" {
			one += " " + t.Name
		}
		if t.Wait != "" {
			one += " (" + t.Wait + ")"
		}
		out = append(out, one)
	}
	return strings.Join(out, ", ")
}

var maskForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`‹masked: [a-z ]+›`) })

// piece is a part of a text: shown, or what stands for a secret.
type piece struct {
	text   string
	masked bool
}

// pieces parts a text at what was masked in it.
func pieces(s string) (out []piece) {
	at := 0
	for _, m := range maskForm().FindAllStringIndex(s, -1) {
		if m[0] > at {
			out = append(out, piece{text: s[at:m[0]]})
		}
		out = append(out, piece{strings.TrimSuffix(strings.TrimPrefix(s[m[0]:m[1]], "‹masked: "), "›"), true})
		at = m[1]
	}
	if at < len(s) {
		out = append(out, piece{text: s[at:]})
	}
	return out
}

func pauseWords(e *v1.InspectEnd) string {
	d := e.Pause.AsDuration()
	switch {
	case d <= 0:
		return "nobody was held"
	case e.Bound:
		return "held for at most " + briefly(d)
	}
	return "held for " + briefly(d)
}

func briefly(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func bytesWord(n int64) string {
	if n <= 0 {
		return ""
	}
	return size(uint64(n))
}

func numberWord(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func grave(priority string) bool {
	return slices.Contains([]string{"emerg", "alert", "crit", "err"}, priority)
}

func stateOr(s string) string {
	if s == "" {
		return "held where it stood"
	}
	return s
}

// diskWords is what a process reads and writes in a second.
func diskWords(p *v1.InspectProcess) string {
	var out []string
	if p.Read > 0 {
		out = append(out, bytesWord(p.Read)+" read")
	}
	if p.Written > 0 {
		out = append(out, bytesWord(p.Written)+" written")
	}
	return strings.Join(out, ", ")
}
