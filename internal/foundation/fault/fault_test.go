package fault

import (
	"errors"
	"fmt"
	"testing"
)

func TestEveryKindHasALineInTheTable(t *testing.T) {
	names := map[string]bool{}
	for k := Internal; k <= Partial; k++ {
		r := k.row()
		if r.name == "" || r.connect == 0 || r.http == 0 || r.exit == 0 {
			t.Errorf("kind %d has an empty column: %+v", k, r)
		}
		if names[r.name] {
			t.Errorf("two kinds are named %q", r.name)
		}
		names[r.name] = true
		if ParseKind(r.name) != k {
			t.Errorf("ParseKind(%q) = %v", r.name, ParseKind(r.name))
		}
	}
}

func TestExitCodesFollowTheManual(t *testing.T) {
	for kind, want := range map[Kind]int{Internal: 1, Invalid: 2, Denied: 3, NeedsApproval: 4, Partial: 5} {
		if got := kind.ExitCode(); got != want {
			t.Errorf("%v exits with %d, want %d", kind, got, want)
		}
	}
}

func TestAKindSurvivesWrapping(t *testing.T) {
	inner := New(NotFound, "cannot find host %q", "web-9").WithHint("handrail hosts")
	outer := fmt.Errorf("opening: %w", inner)
	if KindOf(outer) != NotFound || From(outer).Hint != "handrail hosts" {
		t.Errorf("lost the kind or the hint: %v %q", KindOf(outer), From(outer).Hint)
	}
	if KindOf(errors.New("disk on fire")) != Internal {
		t.Error("a foreign error must be Internal")
	}
	if KindOf(Kind(200).errorForTest()) != Kind(200) || Kind(200).ExitCode() != 1 {
		t.Error("an unknown kind must act like Internal")
	}
}

func (k Kind) errorForTest() error { return New(k, "x") }
