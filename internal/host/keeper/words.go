package keeper

import (
	"fmt"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	red    = "\x1b[1;97;41m"
	yellow = "\x1b[1;30;43m"
	green  = "\x1b[1;30;42m"
	plain  = "\x1b[0m"
)

// colourOf makes production unmistakable.
func colourOf(environment string) string {
	switch environment {
	case "production":
		return red
	case "staging":
		return yellow
	}
	return green
}

func environmentOf(s wire.SessionSpec) string {
	if s.Environment == "" {
		return "no environment"
	}
	if s.Environment == "production" {
		return "PRODUCTION"
	}
	return s.Environment
}

func levelText(s wire.SessionSpec) string {
	switch {
	case s.Level == wire.LevelRead:
		return "read-only"
	case s.Root:
		return "write as root"
	case s.Sudo:
		return "write as " + s.Account + ", sudo"
	}
	return "write as " + s.Account
}

func leftText(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d >= 100*time.Minute:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d/time.Minute%60)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", (d+30*time.Second)/time.Minute)
	}
	return fmt.Sprintf("%d s", (d+500*time.Millisecond)/time.Second)
}

// bannerOf is what a terminal session starts with: the server's own lines, the
// first of them in the environment's colour; without any, what the order says.
func bannerOf(spec Spec, left time.Duration) string {
	s := spec.Session
	lines := s.Banner
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("%s · %s · %s · %s left · recorded as %s", s.HostName, environmentOf(s), levelText(s), leftText(left), s.ID)}
		if s.BreakGlass {
			lines = append(lines, "BREAK-GLASS in force: everybody is told, and a review is owed")
		}
	}
	var b strings.Builder
	for i, line := range lines {
		switch {
		case i == 0:
			fmt.Fprintf(&b, "%s %s %s\r\n", colourOf(s.Environment), printable(line), plain)
		case s.BreakGlass && strings.HasPrefix(line, "BREAK-GLASS"):
			fmt.Fprintf(&b, "%s %s %s\r\n", red, printable(line), plain)
		default:
			fmt.Fprintf(&b, "%s\r\n", printable(line))
		}
	}
	return b.String()
}

// timeLeft is counted by the shell itself, where it knows the time (bash 5):
// whole hours from two on, else minutes. The letter is cut out of a variable
// that the session starts with, since arithmetic has none.
const timeLeft = `${EPOCHSECONDS:+$(((HANDRAIL_ENDS-EPOCHSECONDS)<7200?(HANDRAIL_ENDS-EPOCHSECONDS)/60:(HANDRAIL_ENDS-EPOCHSECONDS+1800)/3600))${HANDRAIL_UNITS:(HANDRAIL_ENDS-EPOCHSECONDS)>=7200:1} }`

// PromptOf is the shell prompt: environment (or the policy's own word for it),
// level, time left.
func PromptOf(s wire.SessionSpec) string {
	label := word(strings.TrimSpace(s.Prompt))
	if label == "" {
		label = word(environmentOf(s))
	}
	level := "read"
	end := "$ "
	if s.Level == wire.LevelWrite {
		level = "WRITE"
		if s.Root {
			end = "# "
		}
	}
	return fmt.Sprintf(`\[%s\] %s \[%s\] %s %s%s@%s:\w%s`,
		colourOf(s.Environment), label, plain, level, timeLeft, word(s.PersonName), word(s.HostName), end)
}

// word keeps what cannot mean anything to a shell or a terminal.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}, s)
}

// printable drops control characters, escape sequences' first bytes among them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// connecting are the system calls whose refusal is not about files.
var connecting = map[string]bool{"socket": true, "connect": true, "sendto": true, "sendmsg": true, "sendmmsg": true, "socketpair": true, "bind": true}

var (
	signalling = map[string]bool{"kill": true, "tgkill": true, "tkill": true, "pidfd_send_signal": true}
	looking    = map[string]bool{"ptrace": true, "process_vm_readv": true, "process_vm_writev": true}
)

// refusalText is the one line that the first refusal prints: why, and the next
// command.
func refusalText(spec Spec, r sandbox.Refusal) string {
	s := spec.Session
	host := word(s.HostName)
	what := "that"
	if r.Path != "" {
		what = printable(r.Path)
	}
	verb := "change " + what
	switch {
	case connecting[r.Syscall]:
		verb = "connect anywhere"
	case signalling[r.Syscall]:
		verb = "signal other processes"
	case looking[r.Syscall]:
		verb = "look into other processes"
	}
	next := fmt.Sprintf("handrail elevate %s --reason \"…\"", host)
	switch { // what the node looks up itself needs no write access
	case signalling[r.Syscall] || looking[r.Syscall]:
		next = fmt.Sprintf("handrail inspect %s stacks PID (for a stack dump), or %s", host, next)
	case connecting[r.Syscall]:
		next = fmt.Sprintf("handrail inspect %s ports (to see who listens), or %s", host, next)
	}
	return fmt.Sprintf("this session is read-only: it cannot %s. Next: %s", verb, next)
}

// boundTexts say which limits a session met for the first time.
func boundTexts(was, now sandbox.Bound, l wire.Limits) (texts []string) {
	if was.Memory == 0 && now.Memory > 0 {
		texts = append(texts, fmt.Sprintf("this session may use %s of memory: the kernel ended a program of it that wanted more", sizeText(l.MemoryBytes)))
	}
	if was.Pids == 0 && now.Pids > 0 {
		texts = append(texts, fmt.Sprintf("this session may have %d processes at a time: one more was not started", l.PIDs))
	}
	return texts
}

func sizeText(bytes int64) string {
	if bytes >= 10<<30 {
		return fmt.Sprintf("%d GiB", bytes>>30)
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}
