package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

func TestTheBannerSaysWhereHowAndHowLong(t *testing.T) {
	spec := Spec{Session: wire.SessionSpec{ID: "s-1", HostName: "web-1", Environment: "production", Level: wire.LevelRead}}
	b := bannerOf(spec, 29*time.Minute)
	for _, want := range []string{"web-1", "PRODUCTION", "read-only", "29 min left", "recorded", "\x1b[1;97;41m"} {
		if !strings.Contains(b, want) {
			t.Errorf("the banner does not say %q: %q", want, b)
		}
	}
	spec.Session.Environment = "dev"
	if strings.Contains(bannerOf(spec, time.Hour), "\x1b[1;97;41m") {
		t.Error("a dev host looks like production")
	}
	spec.Session.Banner = []string{"first", "evil \x1b[2J line"}
	if b := bannerOf(spec, time.Hour); strings.Contains(b, "\x1b[2J") {
		t.Errorf("a banner line may steer the terminal: %q", b)
	}
}

func TestNothingInAPromptIsRunByTheShell(t *testing.T) {
	p := PromptOf(wire.SessionSpec{Prompt: "$(reboot)`reboot`", HostName: "web;$(x)", PersonName: "a`b`", Level: wire.LevelRead})
	p = strings.ReplaceAll(p, timeLeft, "")
	if strings.Contains(p, "$(") || strings.Contains(p, "`") {
		t.Fatalf("the prompt is %q", p)
	}
}

func TestThePromptCountsHoursThenMinutes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("skipped: no bash")
	}
	for left, want := range map[int]string{12*3600 - 5: "12h ", 7200 + 60: "2h ", 7200 - 60: "119m ", 90: "1m ", 5: "0m "} {
		cmd := exec.Command(bash, "-c", fmt.Sprintf(`HANDRAIL_ENDS=$((EPOCHSECONDS+%d)) HANDRAIL_UNITS=mh; printf %%s "%s"`, left, timeLeft))
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%d s: %q, want %q (%v)", left, out, want, err)
		}
	}
}

func TestTheFirstRefusalSaysWhyAndWhatNext(t *testing.T) {
	spec := Spec{Session: wire.SessionSpec{HostName: "web-1"}}
	for _, c := range []struct {
		r    sandbox.Refusal
		want string
	}{
		{sandbox.Refusal{Syscall: "openat", Path: "/etc/passwd"}, "cannot change /etc/passwd. Next: handrail elevate web-1"},
		{sandbox.Refusal{Syscall: "socket"}, "cannot connect anywhere. Next: handrail inspect web-1 ports (to see who listens), or handrail elevate web-1"},
		{sandbox.Refusal{Syscall: "kill"}, "signal other processes"},
		{sandbox.Refusal{Syscall: "ptrace"}, "look into other processes. Next: handrail inspect web-1 stacks PID (for a stack dump), or handrail elevate web-1"},
	} {
		if got := refusalText(spec, c.r); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", c.r.Syscall, got)
		}
	}
}

func TestASpoolIsBoundedAndKeepsTheNewest(t *testing.T) {
	path := t.TempDir() + "/s"
	s := newSpool(path, false)
	block := make([]byte, 60_000)
	for i := range 100 {
		block[0] = byte(i)
		s.write(wire.FrameStdout, block)
	}
	n, tail := s.sum()
	s.close()
	if n != 6_000_000 || len(tail) != 64 {
		t.Fatal(n, tail)
	}
	total := int64(0)
	for _, p := range []string{path, path + ".old"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		total += fi.Size()
	}
	if total > 2*spoolHalf || total < spoolHalf {
		t.Fatalf("%d bytes are kept", total)
	}
}
