package app

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// backupSoon is how old the newest backup may be, and how long a new
// installation may have none.
const backupSoon = 7 * 24 * time.Hour

// backupNote is what `handrail backup` leaves in the data folder.
type backupNote struct {
	At      time.Time `json:"at"`
	Entries int64     `json:"entries"`
}

func (p place) backedUp() string { return p.at("backed-up") }

// noteBackup writes down that there is one. It is the doctor's to miss it.
func noteBackup(p place, n backupNote) error {
	text, err := json.Marshal(n)
	if err == nil {
		next := p.backedUp() + ".next"
		if err = os.WriteFile(next, append(text, '\n'), 0o600); err == nil {
			err = os.Rename(next, p.backedUp())
		}
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write down that there is a backup")
	}
	return nil
}

func (c *checkup) backupOld() []finding {
	const fix = "handrail backup /elsewhere/handrail-$(date +%F)"
	var n backupNote
	text, err := os.ReadFile(place(c.data).backedUp())
	if err == nil && json.Unmarshal(text, &n) == nil {
		if age := c.now.Sub(n.At); age > backupSoon {
			return one(finding{ID: "backup-old", Group: "data", What: fmt.Sprintf("the newest backup is %d days old", int(age.Hours()/24)), Fix: fix})
		}
		return nil
	}
	made, err := os.Stat(place(c.data).keysMade())
	if err != nil || c.now.Sub(made.ModTime()) < backupSoon {
		return nil
	}
	return one(finding{ID: "backup-old", Group: "data", What: "there is no backup: with this disk everything would be lost, the keys and the ledger too", Fix: fix})
}

// securityLabel is what a security module of the kernel keeps this process to.
func securityLabel() (label string, enforce bool) {
	text, _ := os.ReadFile("/proc/self/attr/current")
	label = strings.TrimRight(string(text), "\x00\n ")
	mode, err := os.ReadFile("/sys/fs/selinux/enforce")
	return label, err == nil && strings.TrimSpace(string(mode)) == "1"
}

// confinedElsewhere names what keeps handrail from doing things besides
// handrail's own sandbox: sessions inherit it.
func (c *checkup) confinedElsewhere() []finding {
	label, mode, _ := strings.Cut(c.label, " ")
	switch {
	case c.enforce && !strings.Contains(label, "unconfined"):
		return one(finding{ID: "confined-elsewhere", Group: "machine",
			What: fmt.Sprintf("SELinux enforces here and keeps handrail to %s: what it refuses looks like a fault of handrail's", label),
			Fix:  "ausearch -m avc -ts recent -c handrail   # what it refused"})
	case mode == "(enforce)":
		return one(finding{ID: "confined-elsewhere", Group: "machine",
			What: fmt.Sprintf("AppArmor keeps handrail to the profile %s: what it refuses looks like a fault of handrail's", filepath.Base(label)),
			Fix:  "journalctl -k -g apparmor=.DENIED   # what it refused"})
	}
	return nil
}
