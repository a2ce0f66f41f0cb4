package role

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
)

func TestLinesAreTextOrJSONAsConfigured(t *testing.T) {
	t.Setenv(logFormatEnv, "")
	t.Setenv(logLevelEnv, "")
	var said bytes.Buffer
	Logger(&said, slog.LevelWarn).Info("nothing")
	Logger(&said, slog.LevelWarn).Warn("a part ended", "part", "x")
	if got := said.String(); strings.Contains(got, "nothing") || !strings.Contains(got, `level=WARN msg="a part ended" part=x`) {
		t.Errorf("usually %q", got)
	}
	if err := SetLogging("json", "info"); err != nil {
		t.Fatal(err)
	}
	said.Reset()
	Logger(&said, slog.LevelWarn).Info("a part began", "part", "y")
	var line struct{ Level, Msg, Part string }
	if err := json.Unmarshal(said.Bytes(), &line); err != nil || line.Msg != "a part began" || line.Part != "y" || line.Level != "INFO" {
		t.Errorf("as JSON %q: %v", &said, err)
	}
	if env := strings.Join(environment(""), " "); !strings.Contains(env, logFormatEnv+"=json") || !strings.Contains(env, logLevelEnv+"=info") {
		t.Errorf("a role gets %s", env)
	}
	for _, wrong := range [][2]string{{"xml", ""}, {"", "loud"}} {
		if err := SetLogging(wrong[0], wrong[1]); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestTheJournalHearsTheLevelOfALineAndNothingElse(t *testing.T) {
	for line, want := range map[string]string{
		`time=2026-11-21T10:00:00.000Z level=ERROR msg=x` + "\n":                                     "<3>",
		`time=2026-11-21T10:00:00.000Z level=WARN msg="level=ERROR "` + "\n":                         "<4>",
		`{"time":"2026-11-21T10:00:00.123456789+01:00","level":"INFO","msg":"x"}` + "\n":             "<6>",
		"panic: something" + strings.Repeat(" ", 60) + ` level=ERROR ` + "\n":                        "<5>",
		`time=2026-11-21T10:00:00.000Z level=DEBUG msg="` + strings.Repeat("a", 60) + ` level=WARN `: "<7>",
	} {
		var out bytes.Buffer
		if n, err := (journal{&out}).Write([]byte(line)); err != nil || n != len(line) || out.String() != want+line {
			t.Errorf("%q became %q (%d, %v), want %s in front", line, &out, n, err, want)
		}
	}
}

func TestTheLastThatWasSaidIsKeptAndBounded(t *testing.T) {
	p := Place{Dir: t.TempDir()}
	var shown bytes.Buffer
	for range 2 { // a supervisor, and the one after it
		to := p.Said(&shown)
		for n := range 10000 {
			fmt.Fprintf(to, "line %06d of what a role said, long enough to fill a file\n", n)
		}
	}
	got, err := LastSaid(p.Dir, 100<<10)
	if err != nil || len(got) > 100<<10 || len(got) < 99<<10 || !bytes.HasPrefix(got, []byte("line 0")) || !bytes.HasSuffix(shown.Bytes(), got) {
		t.Errorf("%d bytes are kept, %.30q …: %v", len(got), got, err)
	}
	for _, name := range []string{"last.log", "last.log.1"} {
		info, err := os.Stat(p.At(name))
		if err != nil || info.Size() > tailMost+200 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	gone := Place{Dir: p.At("nowhere")}
	if n, err := gone.Said(&shown).Write([]byte("x\n")); n != 2 || err != nil {
		t.Errorf("what cannot be kept is an error: %v", err)
	}
	if got, err := LastSaid(gone.Dir, 10); len(got) > 0 || err != nil {
		t.Errorf("nothing was said, and is %q, %v", got, err)
	}
}
