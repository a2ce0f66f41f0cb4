package witness

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
)

// fileLogs names the logs that a witness of its own cosigns: a verifier key a
// line, whose name is the log's origin. It is read anew at each submission.
const (
	fileLogs = "logs"
	maxLogs  = 64 << 10
)

// Logs are the logs that the folder of a witness names.
func Logs(dir string) ([]note.Verifier, error) {
	f, err := os.Open(filepath.Join(dir, fileLogs))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the logs of the witness")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxLogs+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read %s", f.Name())
	}
	if len(text) > maxLogs {
		return nil, fault.New(fault.Invalid, "cannot read %s: it is larger than %d bytes", f.Name(), maxLogs)
	}
	var all []note.Verifier
	for _, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read %s: %.100q is no key of a log", f.Name(), line)
		}
		all = append(all, v)
	}
	return all, nil
}

// LogsOf picks the logs of one origin from the folder. A file that cannot be
// read trusts nobody.
func LogsOf(dir string) func(origin string) []note.Verifier {
	return func(origin string) []note.Verifier {
		all, err := Logs(dir)
		if err != nil {
			return nil
		}
		return slices.DeleteFunc(all, func(v note.Verifier) bool { return v.Name() != origin })
	}
}

// Trust adds a log to the folder of a witness. Twice is no error; another key
// for an origin that is known is: that is a person's decision, made in the file.
func Trust(dir, vkey string) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot witness %.100q: it is no key of a log", vkey).
			WithHint("on the other installation: handrail ledger witness list")
	}
	all, err := Logs(dir)
	if err != nil {
		return err
	}
	for _, k := range all {
		if k.Name() == v.Name() && k.KeyHash() == v.KeyHash() {
			return nil
		}
		if k.Name() == v.Name() {
			return fault.New(fault.Conflict, "cannot witness %s: another key of it is trusted", v.Name()).
				WithHint("if its log key was replaced, edit %s", filepath.Join(dir, fileLogs))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot open the folder of the witness")
	}
	text, err := os.ReadFile(filepath.Join(dir, fileLogs))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot read the logs of the witness")
	}
	return replace(filepath.Join(dir, fileLogs), append(text, vkey+"\n"...), 0o600)
}
