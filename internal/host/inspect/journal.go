package inspect

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// logFolder is where logs lie on a host without a journal.
const logFolder = "/var/log"

// journal shows the newest records of a unit, a process or the host, from
// journald where the host has it; a target below /var/log is that file.
func (p *plan) journal(a *answer) error {
	if isPath(p.Spec.Target) {
		if clean := filepath.Clean(p.Spec.Target); !strings.HasPrefix(clean, logFolder+"/") {
			return fault.New(fault.Invalid, "cannot read the journal at %s: logs lie below %s", clean, logFolder).WithHint("handrail inspect HOST files %s", clean)
		}
		return p.path(a, p.Spec.Target)
	}
	tool, err := exec.LookPath("journalctl")
	if err != nil || !hasJournal() {
		a.note("This host keeps no journal of systemd. Its logs are files: handrail inspect HOST journal " + logFolder + "/NAME")
		p.Spec.Part = "list"
		return p.path(a, logFolder)
	}
	a.end.Method = "journalctl, as an account of its own with the groups of a read session"
	if p.Weak {
		a.end.Method = "journalctl, as this node's own account"
	}
	return p.query(a, tool)
}

func hasJournal() bool {
	for _, dir := range []string{"/var/log/journal", "/run/log/journal"} {
		if names, err := filepath.Glob(dir + "/*/*.journal"); err == nil && len(names) > 0 {
			return true
		}
		if _, err := os.ReadDir(dir); os.IsPermission(err) {
			return true
		}
	}
	return false
}

// arguments are made by us: each value is one word after its own flag, so that
// none becomes a flag.
func (p *plan) arguments() []string {
	args := []string{"--no-pager", "--quiet", "--output=json", "--lines=" + strconv.Itoa(p.wanted()),
		"--output-fields=__REALTIME_TIMESTAMP,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_PID,PRIORITY,MESSAGE"}
	switch {
	case p.Unit != "":
		args = append(args, "--unit="+p.Unit)
	case p.Process != nil && p.Process.Unit != "":
		args = append(args, "--unit="+p.Process.Unit)
	case p.Process != nil:
		args = append(args, "_PID="+strconv.Itoa(p.Process.PID))
	}
	if t, ok := journalTime(p.Spec.Since); ok {
		args = append(args, "--since="+t)
	}
	if t, ok := journalTime(p.Spec.Until); ok {
		args = append(args, "--until="+t)
	}
	if p.Spec.Priority != "" {
		args = append(args, "--priority="+p.Spec.Priority)
	}
	if p.Spec.Grep != "" {
		args = append(args, "--case-sensitive=no", "--grep="+literal(p.Spec.Grep))
	}
	return args
}

// journalTime is a moment as journalctl reads it; this process runs in UTC.
func journalTime(s string) (string, bool) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return "", false
	}
	return "@" + strconv.FormatInt(t.Unix(), 10), true
}

// literal is a text as a pattern that means itself.
func literal(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(`\.+*?()|[]{}^$#&-~`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

func (p *plan) query(a *answer, tool string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(tool, p.arguments()...)
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, write, &limited{b: &said, left: 4096}
	cmd.Env = os.Environ()
	if err := cmd.Start(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot ask the journal")
	}
	write.Close()
	n := p.records(a, read)
	read.Close() // one that goes on is told that nobody listens
	err = cmd.Wait()
	if n == 0 && err != nil && said.Len() > 0 {
		return fault.New(fault.Unavailable, "cannot ask the journal: %s", strings.TrimSpace(said.String()))
	}
	if n == int64(p.wanted()) {
		a.end.Cut = true
	}
	return nil
}

// limited keeps the beginning of what a program complains about.
type limited struct {
	b    *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	part := p[:min(len(p), l.left)]
	l.left -= len(part)
	l.b.Write(part)
	return len(p), nil
}

func (p *plan) records(a *answer, r io.Reader) (n int64) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		var m map[string]json.RawMessage
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			continue
		}
		l := wire.InspectLine{Unit: field(m, "_SYSTEMD_UNIT"), Text: field(m, "MESSAGE")}
		if l.Unit == "" {
			l.Unit = field(m, "SYSLOG_IDENTIFIER")
		}
		l.At, _ = strconv.ParseInt(field(m, "__REALTIME_TIMESTAMP"), 10, 64)
		l.PID, _ = strconv.ParseInt(field(m, "_PID"), 10, 64)
		if i, err := strconv.Atoi(field(m, "PRIORITY")); err == nil && i >= 0 && i < len(wire.JournalPriorities) {
			l.Priority = wire.JournalPriorities[i]
		}
		cut(&l.Text, maxLineText)
		n++
		if !a.put(wire.InspectRecord{Line: &l}) {
			break
		}
	}
	return n
}

// field is a value of the journal: a text, or bytes where it is not printable.
func field(m map[string]json.RawMessage, name string) string {
	var s string
	if json.Unmarshal(m[name], &s) == nil {
		return s
	}
	var b []int
	if json.Unmarshal(m[name], &b) == nil {
		raw := make([]byte, len(b))
		for i, c := range b {
			raw[i] = byte(c)
		}
		return string(raw)
	}
	return ""
}
