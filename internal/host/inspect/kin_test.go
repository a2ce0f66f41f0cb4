package inspect

import (
	"strconv"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The server's program is another file than the node's where the node's travels
// in it.
func TestNobodyLooksIntoHandrailsOtherProgram(t *testing.T) {
	pid := run(t, sh("echo ready; while :; do sleep 600; done"))
	its, err := FileAt(procPath(pid, "exe"))
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{wire.InspectEnv, wire.InspectStacks, wire.InspectFiles} {
		s := wire.InspectSpec{What: what, Target: strconv.Itoa(pid)}
		if _, end, raw := lookAt(t, s, File{1, 1}, its); end.Kind != fault.Denied.String() || !strings.Contains(end.Error, "handrail's own") {
			t.Errorf("%s of a kin: %s", what, raw)
		}
		if _, end, raw := lookAt(t, s, File{its.Dev, its.Ino + 1}); strings.Contains(end.Error, "handrail's own") {
			t.Errorf("%s of somebody else's: %s", what, raw)
		}
	}
}

func TestAFileIsReadAsItWasWritten(t *testing.T) {
	f := File{1<<64 - 1, 7}
	if got, err := ParseFile(f.String()); err != nil || got != f {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "1", "1:", ":1", "1:2 ", "1:2:3", "-1:2", "0x1:2", "01:2"} {
		if got, err := ParseFile(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}
