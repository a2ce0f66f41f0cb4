package inspect

import (
	"bytes"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/inspect/dump"
)

// What a second person agreed to leaves sealed: neither the link nor whoever
// keeps it can read it.

// agreed is the very process that people agreed about.
func (p *plan) agreed() wire.ProcessID {
	switch {
	case p.Spec.Core != nil:
		return p.Spec.Core.Process
	case p.Spec.Unmask != nil:
		return p.Spec.Unmask.Process
	}
	return wire.ProcessID{}
}

// holdAgreed takes hold of that process, and of no later one.
func (p *plan) holdAgreed(id wire.ProcessID) (int, error) {
	gone := fault.New(fault.NotFound, "cannot look at process %d: the one that was agreed about has ended", id.PID).WithHint("ask again")
	q, err := readProcess(int(id.PID))
	if err != nil || q.Start != uint64(id.Started) {
		return -1, gone
	}
	p.Of = []process{q}
	return p.hold(q)
}

const sizeWithin = 20 * time.Second // to say how large a dump would be

// core dumps the process for whom it was agreed; without a key it only says
// what the dump would be.
func (p *plan) core(a *answer) error {
	if p.Process.Kernel {
		return fault.New(fault.Invalid, "cannot dump %s: it is a part of the kernel", p.Process.Name)
	}
	s := p.Spec.Core
	if s.Key == nil {
		a.end.Method = "what the kernel says of its memory; nothing of it was read"
		d, err := dump.Size(p.Process.PID, time.Now().Add(sizeWithin))
		if err != nil {
			return err
		}
		a.put(wire.InspectRecord{Core: &wire.InspectDump{Bytes: d.Bytes, Segments: int64(d.Segments), Threads: int64(d.Threads)}})
		return p.still()
	}
	a.end.Method = "all threads held by ptrace, while the memory that is there was copied; packed and sealed on the host"
	out := &sealedFrames{a: a}
	box, err := seal.NewWriter(out, s.Key, p.Spec.SealInfo())
	if err != nil {
		return err
	}
	pack, err := zstd.NewWriter(box, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot pack the dump")
	}
	d, err := dump.Write(pack, dump.Request{PID: p.Process.PID, Limit: time.Duration(p.Spec.PauseMS) * time.Millisecond, Most: s.Most, Still: p.still})
	a.end.PauseNS = d.Pause.Nanoseconds()
	if err != nil {
		return err
	}
	if err := pack.Close(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot send the dump")
	}
	if err := box.Close(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot send the dump")
	}
	if d.Missed > 0 {
		a.note("Some threads did not stop in time: they went on while the memory was copied, and have no registers in the dump.")
	}
	if d.Unread > 0 {
		a.note("Some pages could not be read, and are zero in the dump.")
	}
	a.put(wire.InspectRecord{Core: &wire.InspectDump{Bytes: d.Bytes, Segments: int64(d.Segments), Threads: int64(d.Threads), Unread: d.Unread, Sealed: out.n}})
	return nil
}

// sealedFrames sends what is sealed.
type sealedFrames struct {
	a *answer
	n int64
}

func (f *sealedFrames) Write(b []byte) (int, error) {
	f.n += int64(len(b))
	return len(b), f.a.w.Write(wire.FrameSealed, b)
}

// maxUnmasked bounds a value: what is longer is no secret of a variable.
const maxUnmasked = 16 << 10

// unmask sends one value, sealed to whom it was agreed for, and nothing else.
func (p *plan) unmask(a *answer, environ string) error {
	name := p.Spec.Unmask.Name
	for w := range strings.SplitSeq(environ, "\x00") {
		value, ok := strings.CutPrefix(w, name+"=")
		if !ok {
			continue
		}
		if len(value) > maxUnmasked {
			return fault.New(fault.Exhausted, "cannot unmask %s: its value has %d bytes, at most %d", name, len(value), maxUnmasked)
		}
		var out bytes.Buffer
		box, err := seal.NewWriter(&out, p.Spec.Unmask.Key, p.Spec.SealInfo())
		if err == nil {
			if _, err = box.Write([]byte(value)); err == nil {
				err = box.Close()
			}
		}
		if err != nil {
			return err
		}
		a.put(wire.InspectRecord{Sealed: out.Bytes()})
		return nil
	}
	return fault.New(fault.NotFound, "cannot unmask %s: process %d was started without it", name, p.Process.PID)
}
