package role

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// resident is how much of the program's file is mapped here, in kB.
func resident(t *testing.T) (kb int) {
	t.Helper()
	self, err := os.Readlink(Program)
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	own := false
	for _, line := range strings.Split(string(smaps), "\n") {
		words := strings.Fields(line)
		switch {
		case len(words) > 1 && strings.Contains(words[0], "-"):
			_, _, own = programPages(line, self)
		case own && len(words) > 1 && words[0] == "Rss:":
			n, err := strconv.Atoi(words[1])
			if err != nil {
				t.Fatal(err)
			}
			kb += n
		}
	}
	return kb
}

func TestWhatOnlyTheStartNeededIsGivenBack(t *testing.T) {
	before := resident(t)
	settle()
	if after := resident(t); before == 0 || after >= before {
		t.Errorf("%d kB of the program were mapped, %d kB are", before, after)
	}
}

func TestOnlyTheProgramsOwnUnwritablePagesAreGivenBack(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-01a03000 r-xp 00000000 fe:00 12                         /usr/bin/handrail": true,
		"01a03000-03369000 r--p 01603000 fe:00 12                         /usr/bin/handrail": true,
		"03369000-03433000 rw-p 02f69000 fe:00 12                         /usr/bin/handrail": false,
		"03369000-03433000 r--s 02f69000 fe:00 12                         /usr/bin/handrail": false,
		"7f0000000000-7f0000001000 r-xp 00000000 fe:00 13                 /usr/lib/libc.so":  false,
		"7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                  [vdso]":            false,
		"c000000000-c000400000 rw-p 00000000 00:00 0":                                        false,
		"": false,
	} {
		if _, _, got := programPages(line, "/usr/bin/handrail"); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}
