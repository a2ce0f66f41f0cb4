package app

import (
	"errors"
	"os"
	"path/filepath"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/role"
)

// place is the data folder as the server and its supervisor use it; role.Place
// says what lies where. Beside it:
//
//	DIR/keys-made        the ring is made: root does nothing more in server/
type place string

func (p place) at(part ...string) string { return role.Place{Dir: string(p)}.At(part...) }
func (p place) server() string           { return p.at("server") }
func (p place) keys() string             { return p.at("server", "keys") }
func (p place) keysMade() string         { return p.at("keys-made") }
func (p place) rootKey() string          { return p.at("root") }
func (p place) control() string          { return p.at("run", "server", "control.sock") }

// noteKeysMade writes down, for good, that the ring is made.
func (p place) noteKeysMade() error {
	f, err := os.OpenFile(p.keysMade(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(string(p)); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write to the data folder")
	}
	return nil
}

// dataFolder is the folder that was named, by flag or setting, or the default.
func dataFolder(dir string) (string, error) {
	if dir == "" {
		given, err := settings()
		if err != nil {
			return "", err
		}
		if dir = given["data"].Value; dir == "" {
			return role.DefaultDir()
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot use data folder %q", dir)
	}
	return abs, nil
}
