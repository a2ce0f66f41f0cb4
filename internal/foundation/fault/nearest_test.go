package fault

import (
	"strings"
	"testing"
)

func TestAMisspeltWordFindsTheOneThatWasMeant(t *testing.T) {
	known := []string{"hosts", "elevate", "sessions", "listen"}
	for word, want := range map[string]string{
		"host": "hosts", "elvate": "elevate", "SESSIONS": "sessions", "elev": "elevate", "listn": "listen",
		"x": "", "reboot": "", "": "", strings.Repeat("hosts", 20): "",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
