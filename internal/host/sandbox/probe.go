package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Report says what this kernel and this account offer.
type Report struct {
	Mode     Mode     `json:"mode"`
	Floor    Floor    `json:"floor"`
	Missing  []string `json:"missing,omitempty"` // one sentence each, with what to do
	Kernel   string   `json:"kernel"`
	Landlock int      `json:"landlock"` // ABI, 0 = none
	Cgroup   string   `json:"cgroup"`   // "v2", "hybrid", "v1", "" = none
	Notifier bool     `json:"notifier"`
	Layers   []Layer  `json:"layers"`
}

// Probe finds out by building a sandbox and looking at it, since what a kernel
// lists and what a container lets through differ. It is made once, at the
// start of the warden; its answer is what the node reports. hide are handrail's
// own folders. Many may look at once: hosts in containers share the tree of
// cgroups, and have the same process numbers.
func Probe(ctx context.Context, hide []string) Report {
	r := Report{Mode: NoShells, Floor: Brokered, Kernel: kernelRelease(), Landlock: landlockABI()}
	cg, cgErr := NewCgroup("probe-"+strings.ToLower(rand.Text()), Limits{Pids: 64, MemoryBytes: 1 << 30, CPUPercent: 100})
	if cgErr == nil {
		r.Cgroup = cg.Layout()
		defer cg.Remove()
	}
	spec := Spec{Level: Read, Mode: RootMode, User: "probe", Hide: hide, Hints: true, PTY: true,
		LeastFloor: Reduced, Command: []string{"true"}}
	if os.Getuid() == 0 {
		spec.UID = freeUID()
		spec.GID = spec.UID
	} else {
		spec.Mode = UserNamespaceMode
	}
	ready, err := dryRun(ctx, spec, Options{Cgroup: cg})
	if err != nil && spec.Mode == RootMode {
		// Root of a container may not be allowed what root is; it may still be
		// allowed what everybody is.
		spec.Mode = UserNamespaceMode
		var second error
		if ready, second = dryRun(ctx, spec, Options{Cgroup: cg}); second == nil {
			err = nil
		}
	}
	if err != nil {
		f := fault.From(err)
		sentence := "Shells cannot be given here: " + f.Text + "."
		if f.Hint != "" {
			sentence += " What to do: " + f.Hint + "."
		}
		if r.Cgroup == "" {
			sentence += " " + cgroupAdvice(cgErr)
		}
		r.Missing = append(r.Missing, sentence)
		return r
	}
	r.Mode, r.Floor, r.Notifier, r.Layers = spec.Mode, ready.Floor, ready.Notifier, ready.Layers
	r.Missing = append(r.Missing, ready.Missing...)
	if r.Cgroup == "" {
		return r.withoutCgroup(cgErr)
	}
	r.Layers = append(r.Layers, Layer{Name: "cgroup", InForce: true, Detail: r.Cgroup})
	return r
}

// withoutCgroup is what a host gives that cannot make a cgroup: as root no
// session at all, since none of them could be killed as a whole.
func (r Report) withoutCgroup(err error) Report {
	if r.Mode != RootMode {
		r.Missing = append(r.Missing, cgroupAdvice(err))
		return r
	}
	r.Mode, r.Floor, r.Notifier, r.Layers = NoShells, Brokered, false, nil
	r.Missing = []string{"Shells cannot be given here: without a cgroup a session cannot be killed as a whole" + whyNoCgroup(err)}
	return r
}

func cgroupAdvice(err error) string {
	return "Sessions have no cgroup, so their share of processor and memory is not limited" + whyNoCgroup(err)
}

// whyNoCgroup ends a sentence with the reason and what to do.
func whyNoCgroup(err error) string {
	switch f := fault.From(err); {
	case errors.Is(err, errNoCgroups):
		return ": none is mounted. What to do: " + f.Hint + "."
	case err == nil:
		return "."
	default:
		return " (" + f.Text + "). What to do: " + f.Hint + "."
	}
}

// dryRun builds the sandbox and ends before anything runs in it.
func dryRun(ctx context.Context, spec Spec, o Options) (Ready, error) {
	c, err := start(ctx, order{Spec: spec, DryRun: true}, o)
	var f *fault.Error
	if errors.As(err, &f) && c == nil {
		return Ready{}, f
	}
	if err != nil {
		return Ready{}, err
	}
	if c.PTY != nil {
		c.PTY.Close()
	}
	_, err = c.Wait()
	return c.Ready, err
}

// freeUID is a number that no account has, low enough for a container's map.
func freeUID() uint32 {
	passwd, _ := os.ReadFile("/etc/passwd")
	uid := uint32(64_999)
	for ; uid > 60_000 && ownerOf(passwd, uid) != ""; uid-- {
	}
	return uid
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	b := u.Release[:]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
