package inspect

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/wire"
)

// sealKey is a key that something is sealed to.
func sealKey(t *testing.T) (public, private []byte) {
	t.Helper()
	public, private, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// whole reads an answer: what was sealed, and its records.
func (q *asked) whole(t *testing.T) (box []byte, records []wire.InspectRecord, end wire.InspectEnd) {
	t.Helper()
	r := wire.NewReader(q.session)
	for {
		kind, b, err := r.Next()
		if err != nil {
			t.Fatalf("the answer has no end: %v", err)
		}
		if kind == wire.FrameSealed {
			box = append(box, b...)
			continue
		}
		q.raw = append(append(q.raw, b...), '\n')
		record, err := wire.ParseInspectRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
		if record.End != nil {
			return box, records, *record.End
		}
	}
}

func secretive(t *testing.T) (pid int, id wire.ProcessID) {
	t.Helper()
	c := sh("echo ready; read x")
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "DB_PASSWORD=hunter2-secret", "DB_PASSWORD_OLD=older"}
	pipe, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	pid = run(t, c)
	q, err := readProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return pid, wire.ProcessID{PID: int64(pid), Started: int64(q.Start)}
}

func TestAVariableIsUnmaskedForItsReaderAlone(t *testing.T) {
	pid, id := secretive(t)
	public, private := sealKey(t)
	spec := wire.InspectSpec{What: wire.InspectEnv, Target: strconv.Itoa(pid), Unmask: &wire.UnmaskSpec{Process: id, Name: "DB_PASSWORD", Key: public}}
	q := begin(t, spec)
	_, records, end := q.whole(t)
	if strings.Contains(string(q.raw), "hunter2") || strings.Contains(string(q.raw), "DB_PASSWORD_OLD") || end.Error != "" {
		t.Fatalf("%s", q.raw)
	}
	var box []byte
	for _, r := range records {
		box = append(box, r.Sealed...)
	}
	spec.ID = "n-00000000"
	r, err := seal.NewReader(bytes.NewReader(box), private, spec.SealInfo())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "hunter2-secret" {
		t.Errorf("%q, %v", got, err)
	}
	t.Run("a later process of the number is not looked at", func(t *testing.T) {
		spec.Unmask.Process.Started++
		if _, _, end := begin(t, spec).whole(t); end.Kind != fault.NotFound.String() {
			t.Errorf("%+v", end)
		}
	})
	t.Run("a name that is not there is said so", func(t *testing.T) {
		spec.Unmask.Process, spec.Unmask.Name = id, "NOT_THERE"
		if _, _, end := begin(t, spec).whole(t); end.Kind != fault.NotFound.String() {
			t.Errorf("%+v", end)
		}
	})
}

func TestACoreDumpLeavesSealedAndIsWhatItWasSaidToBe(t *testing.T) {
	pid, id := secretive(t)
	all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectCore, Target: strconv.Itoa(pid), Core: &wire.CoreSpec{}})
	var said *wire.InspectDump
	for _, r := range all {
		if r.Core != nil {
			said = r.Core
		}
		if r.Target != nil && r.Target.Ticks != id.Started {
			t.Errorf("it is not said which process it is: %+v", r.Target)
		}
	}
	if said == nil || said.Bytes <= 0 || end.PauseNS != 0 || end.Error != "" {
		t.Fatalf("%s", raw)
	}
	public, private := sealKey(t)
	spec := wire.InspectSpec{What: wire.InspectCore, Target: strconv.Itoa(pid), PauseMS: 30_000, Core: &wire.CoreSpec{Process: id, Most: 4 * said.Bytes, Key: public}}
	q := begin(t, spec)
	box, records, end := q.whole(t)
	if end.Error != "" || end.PauseNS <= 0 || bytes.Contains(box, []byte("hunter2")) || strings.Contains(string(q.raw), "hunter2") {
		t.Fatalf("%s", q.raw)
	}
	spec.ID = "n-00000000"
	open, err := seal.NewReader(bytes.NewReader(box), private, spec.SealInfo())
	if err != nil {
		t.Fatal(err)
	}
	unpack, err := zstd.NewReader(open)
	if err != nil {
		t.Fatal(err)
	}
	core, err := io.ReadAll(unpack)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elf.NewFile(bytes.NewReader(core)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(core, []byte("hunter2-secret")) {
		t.Error("the memory is not in the dump")
	}
	last := records[len(records)-2].Core
	if last == nil || last.Bytes != int64(len(core)) || last.Sealed != int64(len(box)) {
		t.Errorf("%d bytes in %d sealed ones, said %+v", len(core), len(box), last)
	}
	if readelf, err := exec.LookPath("readelf"); err == nil {
		path := filepath.Join(t.TempDir(), "core")
		if err := os.WriteFile(path, core, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(readelf, "-W", "-l", "-n", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "NT_PRSTATUS") || strings.Contains(string(out), "Warning") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

func TestADumpBeyondWhatWasAgreedSendsNothing(t *testing.T) {
	pid, id := secretive(t)
	public, _ := sealKey(t)
	box, _, end := begin(t, wire.InspectSpec{What: wire.InspectCore, Target: strconv.Itoa(pid), PauseMS: 30_000,
		Core: &wire.CoreSpec{Process: id, Most: 4096, Key: public}}).whole(t)
	if end.Kind != fault.Exhausted.String() || len(box) > 0 {
		t.Errorf("%+v, %d bytes", end, len(box))
	}
}

func TestHandrailItselfIsNotDumped(t *testing.T) {
	q, err := readProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	public, _ := sealKey(t)
	box, _, end := begin(t, wire.InspectSpec{What: wire.InspectCore, Target: strconv.Itoa(q.PID), PauseMS: 30_000,
		Core: &wire.CoreSpec{Process: wire.ProcessID{PID: int64(q.PID), Started: int64(q.Start)}, Most: 1 << 30, Key: public}}).whole(t)
	if end.Kind != fault.Denied.String() || len(box) > 0 {
		t.Errorf("%+v, %d bytes", end, len(box))
	}
}
