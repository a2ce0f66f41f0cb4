package spine_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// misconfigured are the ids of what the doctor finds, but for what this
// machine's kernel gives.
func (i *installation) misconfigured(p person) (ids []string) {
	i.t.Helper()
	var report struct {
		Findings []struct{ ID, Group, Fix string }
	}
	r := p.run("doctor", "--data", i.data, "-o", "json")
	unjson(i.t, r.out, &report)
	for _, f := range report.Findings {
		if f.Group != "machine" {
			ids = append(ids, f.ID)
		}
		if f.Fix == "" {
			i.t.Errorf("%s names no next command", f.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestTheDoctorAsksTheServerToo(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ada.hostname()
	if got, want := i.misconfigured(ada), []string{"bootstrap-on", "one-approver", "root-key-here"}; !slices.Equal(got, want) {
		t.Errorf("a new installation: %v, want %v", got, want)
	}
	ada.add("ben", "operator")
	ada.ok("bootstrap", "end", "--yes")
	must(t, os.Rename(filepath.Join(i.data, "root"), filepath.Join(t.TempDir(), "root")))
	if got := i.misconfigured(ada); len(got) > 0 {
		t.Errorf("a sound installation: %v", got)
	}
}
