package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func cast(t testing.TB, events ...*v1.ReplaySessionResponse) (lines []string) {
	t.Helper()
	var out bytes.Buffer
	s := &v1.Session{Id: "s-7k3f9q2m", PersonName: "bob", HostName: "web-1", Level: "read", Kind: "shell", State: "ended", ExitStatus: 3}
	c := newCaster(&out, s, 100, 30)
	for _, e := range events {
		if err := c.take(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.close(s); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func TestARecordingIsExportedAsAsciicast(t *testing.T) {
	lines := cast(t,
		&v1.ReplaySessionResponse{OffsetMicros: 100_000, Kind: "output", Data: []byte("a\x1b[1mé"[:6])}, // é is cut in two
		&v1.ReplaySessionResponse{OffsetMicros: 150_000, Kind: "input", Data: []byte("hunter2")},
		&v1.ReplaySessionResponse{OffsetMicros: 350_000, Kind: "output", Data: []byte("\xa9\r\n")},
		&v1.ReplaySessionResponse{OffsetMicros: 350_000, Kind: "resize", Columns: 120, Rows: 40},
		&v1.ReplaySessionResponse{OffsetMicros: 400_000, Kind: "chapter", Text: "ls\n"},
		&v1.ReplaySessionResponse{OffsetMicros: 500_000, Kind: "gap", Text: "4 MiB of output"},
		&v1.ReplaySessionResponse{OffsetMicros: 500_000, Kind: "output", Data: []byte{0xff, 'z'}},
	)
	var head struct {
		Version int
		Term    struct{ Cols, Rows int }
	}
	if err := json.Unmarshal([]byte(lines[0]), &head); err != nil || head.Version != 3 || head.Term.Cols != 100 {
		t.Fatalf("%s: %v", lines[0], err)
	}
	all := strings.Join(lines, "\n")
	if strings.Contains(all, "hunter2") || !strings.Contains(all, "leaves out what was typed") {
		t.Errorf("what was typed is in it, or is not said to be left out:\n%s", all)
	}
	var got []string
	for _, l := range lines[1:] {
		if !strings.HasPrefix(l, "#") {
			got = append(got, l)
		}
	}
	want := []string{
		`[0.1,"o","a\u001b[1m"]`, `[0.25,"o","é\r\n"]`, `[0,"r","120x40"]`, `[0.05,"m","ls"]`,
		`[0.1,"m","gap: 4 MiB of output"]`, "[0,\"o\",\"\ufffdz\"]", `[0,"x","3"]`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A program may print anything: a line of the file stays a line.
func FuzzAsciicast(f *testing.F) {
	f.Add([]byte("\n# comment\n[0,\"x\"]"), "\n{")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		for _, l := range cast(t, &v1.ReplaySessionResponse{Kind: "output", Data: data}, &v1.ReplaySessionResponse{Kind: "gap", Text: text}) {
			var v any
			if !strings.HasPrefix(l, "# ") && json.Unmarshal([]byte(l), &v) != nil {
				t.Errorf("no line of JSON: %q", l)
			}
		}
	})
}
