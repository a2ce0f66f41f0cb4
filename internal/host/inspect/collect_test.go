package inspect

import (
	"strconv"
	"testing"

	"handrail.dev/handrail/internal/foundation/wire"
)

// What the runtime collects while a process is sought must not be what the look
// is born with: its order, and this program itself.
func TestALookIsWholeHoweverOftenMemoryIsCollected(t *testing.T) {
	t.Setenv("GOGC", "1")
	pid := run(t, sh("echo ready; exec sleep 10000"))
	run(t, sh("echo ready; exec sleep 10000")) // so that the name is of several
	for range 8 {
		if all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectEnv, Target: strconv.Itoa(pid)}); end.Error != "" || targetOf(all) != int64(pid) {
			t.Fatalf("by its number: %s", raw)
		}
		if _, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectFiles, Target: "sleep"}); end.Kind != "conflict" {
			t.Fatalf("by a name of several: %s", raw)
		}
	}
}
