package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func TestAnEscapeCountsOnlyAtTheStartOfALine(t *testing.T) {
	for _, c := range []struct {
		typed, pass string
		leave       bool
		said        bool
	}{
		{typed: "ls ~/src\r", pass: "ls ~/src\r"},
		{typed: "~.", leave: true},
		{typed: "ls\r~.", pass: "ls\r", leave: true},
		{typed: "ls ~.\r", pass: "ls ~.\r"},
		{typed: "~~.", pass: "~."},
		{typed: "~/bin/x\r", pass: "~/bin/x\r"},
		{typed: "~?", said: true},
		{typed: "~?~.", said: true, leave: true},
		{typed: "\x03~.", pass: "\x03~."},
	} {
		said := false
		whole := &escapes{word: func(string) { said = true }}
		pass, leave := whole.filter([]byte(c.typed))
		if string(pass) != c.pass || leave != c.leave || said != c.said {
			t.Errorf("%q passes %q, leaves %v, says %v; want %q, %v, %v", c.typed, pass, leave, said, c.pass, c.leave, c.said)
		}
		single := &escapes{word: func(string) {}}
		var pieces []byte
		for i := range len(c.typed) {
			p, left := single.filter([]byte{c.typed[i]})
			pieces = append(pieces, p...)
			if left {
				break
			}
		}
		if string(pieces) != c.pass {
			t.Errorf("%q byte by byte passes %q, want %q", c.typed, pieces, c.pass)
		}
	}
}

func TestAWatchedTerminalDrawsButCannotAct(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode 漢字\r\n":              "plain ünïcode 漢字\r\n",
		"\x1b[1;31mred\x1b[0m\x1b[2J\x1b[H": "\x1b[1;31mred\x1b[0m\x1b[2J\x1b[H",
		"\x1b[?1049h\x1b(B\x1b7\x1b8\x1b=":  "\x1b[?1049h\x1b(B\x1b7\x1b8\x1b=",
		"a\x1b]52;c;ZXZpbA==\x07b":          "ab",   // writes the clipboard
		"a\x1b]0;title\x1b\\b":              "ab",   // sets the title
		"a\x1bP+q544e\x1b\\b":               "ab",   // asks for a capability
		"a\x1b_G...\x1b\\b":                 "ab",   // an application's own
		"a\x1b[6nb\x1b[cb\x1b[>cb\x1b[5n":   "abbb", // questions
		"a\x1b[21tb":                        "ab",   // asks for the title
		"a\x1b[?1$pb":                       "ab",   // asks for a mode
		"a\x1b[>qb":                         "ab",   // asks for the version
		"\x1b[2 q":                          "\x1b[2 q",
		"\x1b[u":                            "\x1b[u",
		"a\x1b[?ub":                         "ab",
		"a\x05b":                            "ab",
		"a\x1bZb":                           "ab",
		"a\u0090x\u009d0;y\u009cb":          "ax0;yb", // the same in eight bits
		"\x1b[\x1b]0;x\x07b":                "b",
		"a\x1b]0;never ends":                "a",
	} {
		if got := new(screen).filter([]byte(in)); string(got) != want {
			t.Errorf("%q shows as %q, want %q", in, got, want)
		}
	}
}

func FuzzAWatchedTerminalIsTheSameInPieces(f *testing.F) {
	f.Add([]byte("a\x1b[6n\x1b]52;c;x\x07\xc2\x9b6n"), 3)
	f.Add([]byte("\x1b[1;31mx\x1b(B"), 1)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		whole := new(screen).filter(in)
		cut = max(0, min(cut, len(in)))
		s := new(screen)
		pieces := append(s.filter(in[:cut]), s.filter(in[cut:])...)
		if !bytes.Equal(whole, pieces) {
			t.Fatalf("%q is %q at once and %q in two pieces", in, whole, pieces)
		}
		if bytes.ContainsAny(whole, "\x05") || bytes.Contains(whole, []byte("\x1b]")) || bytes.Contains(whole, []byte("\x1bP")) {
			t.Fatalf("%q lets %q through", in, whole)
		}
	})
}

func FuzzCleanTextHoldsNoControls(f *testing.F) {
	f.Add("reason\x1b[2K\r\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		if got := clean(s); strings.ContainsFunc(got, unsafe) {
			t.Fatalf("clean(%q) = %q", s, got)
		}
		if got := cleanText(s); strings.ContainsAny(got, "\r\x1b\x07") {
			t.Fatalf("cleanText(%q) = %q", s, got)
		}
	})
}

// recordingAt makes events at these seconds.
func recordingAt(seconds ...float64) []*v1.ReplaySessionResponse {
	var events []*v1.ReplaySessionResponse
	for _, s := range seconds {
		events = append(events, &v1.ReplaySessionResponse{OffsetMicros: uint64(s * 1e6), Kind: "output"})
	}
	return events
}

func TestThePlayerShowsWhatIsDue(t *testing.T) {
	events := recordingAt(0, 1, 2, 100)
	p := &player{speed: 2}
	show, wait := p.due(events)
	if len(show) != 1 || wait < 500*time.Millisecond || wait > 502*time.Millisecond {
		t.Errorf("at the start it shows %d and waits %v", len(show), wait)
	}
	p.pass(time.Second)
	if show, _ = p.due(events); len(show) != 2 {
		t.Errorf("after a second at speed 2 it shows %d more, want 2", len(show))
	}
	if _, wait = p.due(events); wait < 48*time.Second {
		t.Errorf("it waits %v for the last one", wait)
	}
	p.idle = 3 * time.Second
	if _, wait = p.due(events); wait > 2*time.Second || p.pos != 97*time.Second {
		t.Errorf("a long pause is not shortened: %v at %v", wait, p.pos)
	}
	p.paused = true
	p.pass(time.Hour)
	if show, wait = p.due(events); len(show) != 0 || wait >= 0 {
		t.Errorf("paused, it shows %d and waits %v", len(show), wait)
	}
}

func TestThePlayerSeeksWithinTheRecording(t *testing.T) {
	events := recordingAt(0, 1, 2, 100)
	p := &player{speed: 1}
	for to, want := range map[time.Duration]int{-time.Hour: 1, 0: 1, 1500 * time.Millisecond: 2, time.Hour: 4} {
		if again := p.seek(to, events); len(again) != want || p.next != want {
			t.Errorf("seeking to %v shows %d again, want %d", to, len(again), want)
		}
	}
	if p.seek(time.Minute, nil); p.pos != 0 {
		t.Errorf("in an empty recording it stands at %v", p.pos)
	}
	for range 20 {
		p.faster(2)
	}
	if p.speed != maxSpeed {
		t.Errorf("speed %v is beyond its bound", p.speed)
	}
	list := []chapter{{time.Second, "a"}, {10 * time.Second, "b"}}
	p.pos = 10 * time.Second
	if to, _ := p.beside(list, false); to != time.Second {
		t.Errorf("the command before b is at %v", to)
	}
	if _, ok := p.beside(list, true); ok {
		t.Error("there is a command behind the last one")
	}
}

func TestYAMLHoldsWhatTheJSONHolds(t *testing.T) {
	var b strings.Builder
	raw := `{"id":"g-1","yes":"yes","none":[],"empty":{},"n":3,"b":true,"z":null,"t":"a: \"b\"\n#c","list":[{"a":1,"b":{"c":[1,2]}},{"a":"2026-01-02"}],"words":["x","- y"]}`
	if err := writeYAML(&b, []byte(raw)); err != nil {
		t.Fatal(err)
	}
	want := `id: g-1
"yes": "yes"
none: []
empty: {}
"n": 3
b: true
z: null
t: "a: \"b\"\n#c"
list:
  - a: 1
    b:
      c:
        - 1
        - 2
  - a: "2026-01-02"
words:
  - x
  - "- y"
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if err := writeYAML(&b, []byte(`{"a":`)); err == nil {
		t.Error("half of a JSON text is no error")
	}
}

func TestLengthsAndSizesReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m30s", 30 * time.Minute: "30m", 90 * time.Minute: "1h30m", 2 * time.Hour: "2h", 49 * time.Hour: "2d",
	} {
		if got := length(d); got != want {
			t.Errorf("length(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	if got := []string{count(1, "entry"), count(2, "entry"), count(0, "loss"), count(3, "host")}; strings.Join(got, ", ") != "1 entry, 2 entries, 0 losses, 3 hosts" {
		t.Errorf("%v", got)
	}
}

func TestEveryKindOfFaultCrossesTheWire(t *testing.T) {
	for k := fault.Internal; k <= fault.Partial; k++ {
		err := connect.NewWireError(connect.Code(k.ConnectCode()), errors.New("text"))
		d, _ := connect.NewErrorDetail(&v1.Fault{Kind: k.String(), Text: "cannot x", Hint: "handrail y", Rule: "z", Entry: "#1"})
		err.AddDetail(d)
		f := understand(fmt.Errorf("wrapped: %w", err))
		if f.Kind != k || f.Text != "cannot x" || f.Hint != "handrail y" || f.Rule != "z" || f.Entry != "#1" {
			t.Errorf("%v arrives as %+v", k, f)
		}
	}
}

func TestAPlainWordIsNotQuotedForTheShell(t *testing.T) {
	for in, want := range map[string]string{"web-1": "web-1", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := quoteShell(in); got != want {
			t.Errorf("quoteShell(%q) = %s", in, got)
		}
	}
}

func TestTheAddressOfATokenMayBeAURL(t *testing.T) {
	for in, want := range map[string]string{"127.0.0.1:7400": "127.0.0.1:7400", "https://h.example:7400/": "h.example:7400", "http://localhost:1": "localhost:1", "[::1]:9/": "[::1]:9"} {
		if got := address(in); got != want {
			t.Errorf("address(%q) = %q", in, got)
		}
	}
}

func TestAnIdMayBeGivenByItsStart(t *testing.T) {
	ids := []string{"g-aaaa1111", "g-aaab2222", "g-bbbb3333"}
	if id, err := oneOf("grant", "g-b", "", ids); err != nil || id != "g-bbbb3333" {
		t.Errorf("%q, %v", id, err)
	}
	if _, err := oneOf("grant", "g-aaa", "handrail x", ids); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "g-aaaa1111, g-aaab2222") {
		t.Errorf("two that match: %v", err)
	}
	if _, err := oneOf("grant", "z", "", ids); fault.KindOf(err) != fault.NotFound {
		t.Errorf("none that match: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsNamedWithWhatToDo(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: &os.SyscallError{Syscall: "connect", Err: errors.New("connection refused")}}
	for address, hint := range map[string]string{"127.0.0.1:8480": "handrail up starts it on this machine", "[::1]:8480": "handrail up starts it on this machine",
		"localhost:8480": "handrail up starts it on this machine", "gate.example:443": "handrail up, on the machine that it ran on; or let this machine reach it"} {
		f := fault.From(unreachable(address, connect.NewError(connect.CodeUnavailable, refused)))
		if f.Text != "cannot reach the server at "+address+": connection refused" || f.Hint != hint || f.Kind != fault.Unavailable {
			t.Errorf("%s: %q, next %q", address, f.Text, f.Hint)
		}
	}
}

func TestEveryAnswerPrintsAsJSON(t *testing.T) {
	raw, err := marshal(&v1.ListHostsResponse{Hosts: []*v1.Host{{Name: "web-1"}}})
	var back struct {
		Hosts []struct{ Name, NodeVersion string }
	}
	if err != nil || json.Unmarshal(raw, &back) != nil || back.Hosts[0].Name != "web-1" || !bytes.Contains(raw, []byte(`"nodeVersion"`)) {
		t.Errorf("%s, %v", raw, err)
	}
}
