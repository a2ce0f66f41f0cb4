package role

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
)

// What the roles log are constant messages with fields, as text or as JSON, by
// two variables that a role gets of whoever starts it. The supervisor hands on
// what they say to its own stderr, and keeps the last of it in the data folder.
const (
	logFormatEnv = "HANDRAIL_LOG_FORMAT"
	logLevelEnv  = "HANDRAIL_LOG_LEVEL"
)

var (
	logFormats = []string{"text", "json"}
	logLevels  = []string{"debug", "info", "warn", "error"}
)

// SetLogging decides how this process and the roles that it starts log; empty is
// as before.
func SetLogging(format, level string) error {
	for _, s := range []struct {
		name, env, value string
		known            []string
	}{{"log-format", logFormatEnv, format, logFormats}, {"log-level", logLevelEnv, level, logLevels}} {
		if s.value == "" {
			continue
		}
		if !slices.Contains(s.known, s.value) {
			return fault.New(fault.Invalid, "cannot log with %s %q: it is %s", s.name, s.value, strings.Join(s.known, ", ")).WithHint("handrail config explain")
		}
		if err := os.Setenv(s.env, s.value); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot set %s", s.env)
		}
	}
	return nil
}

// Logger logs to w as SetLogging said, here or in whoever started this process.
func Logger(w io.Writer, usual slog.Level) *slog.Logger {
	level := usual
	if text := os.Getenv(logLevelEnv); slices.Contains(logLevels, text) {
		_ = level.UnmarshalText([]byte(text)) // one of the known
	}
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv(logFormatEnv) == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// Stderr is this process's, and where the journal of systemd reads it, each line
// has its level in front (sd-daemon(3)).
func Stderr() io.Writer {
	var s syscall.Stat_t
	if syscall.Fstat(2, &s) == nil && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", s.Dev, s.Ino) {
		return journal{os.Stderr}
	}
	return os.Stderr
}

// journal is given whole lines.
type journal struct{ w io.Writer }

func (j journal) Write(line []byte) (int, error) {
	if _, err := j.w.Write(append([]byte(priority(line)), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// priority is the mark of a line's level. The level stands right behind the
// time; what stands further on is a field's, and says nothing.
func priority(line []byte) string {
	const far = 64
	head := line[:min(len(line), far)]
	for _, l := range []struct{ level, mark string }{{"ERROR", "<3>"}, {"WARN", "<4>"}, {"INFO", "<6>"}, {"DEBUG", "<7>"}} {
		if bytes.Contains(head, []byte(" level="+l.level+" ")) || bytes.Contains(head, []byte(`,"level":"`+l.level+`",`)) {
			return l.mark
		}
	}
	return "<5>"
}

// tailMost bounds each of the two files that hold the last of what was said.
const tailMost = 256 << 10

// tail keeps the last lines that the roles said in DIR/last.log and, older,
// DIR/last.log.1: for `handrail support bundle`, after whoever said them is
// gone. It never holds anybody up: what cannot be written is not kept.
type tail struct {
	mu   sync.Mutex
	path string
	f    *os.File
	size int64
}

func tailPath(dir string) string { return filepath.Join(dir, "last.log") }

// Said is where the supervisor of a place writes what its roles said.
func (p Place) Said(errs io.Writer) io.Writer {
	return io.MultiWriter(&tail{path: tailPath(p.Dir)}, errs)
}

func (t *tail) Write(line []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil {
		f, err := os.OpenFile(t.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return len(line), nil
		}
		t.f = f
		if info, err := f.Stat(); err == nil {
			t.size = info.Size()
		}
	}
	n, _ := t.f.Write(line)
	if t.size += int64(n); t.size >= tailMost {
		t.f.Close()
		_ = os.Rename(t.path, t.path+".1")
		t.f, t.size = nil, 0
	}
	return len(line), nil
}

// LastSaid is the last of what the roles of a data folder said, in whole lines.
func LastSaid(dir string, most int) ([]byte, error) {
	var all []byte
	for _, path := range []string{tailPath(dir) + ".1", tailPath(dir)} {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read what was said")
		}
		part, err := io.ReadAll(io.LimitReader(f, 2*tailMost))
		f.Close()
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot read what was said")
		}
		all = append(all, part...)
	}
	if len(all) > most {
		all = all[len(all)-most:]
		all = all[bytes.IndexByte(all, '\n')+1:]
	}
	return all, nil
}
