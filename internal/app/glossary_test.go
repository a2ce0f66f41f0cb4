package app

import (
	"os"
	"slices"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/surface/rpc"
)

func TestEveryLedgerActionIsInTheGlossary(t *testing.T) {
	text, err := os.ReadFile("../../docs/glossary.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "## Ledger actions")
	actions := Actions()
	slices.Sort(actions)
	for i, a := range actions {
		if i > 0 && actions[i-1] == a {
			t.Errorf("two features record %s", a)
		}
		if !rpc.Told(a) {
			t.Errorf("no sentence tells what %s is: internal/surface/rpc/sentences.go", a)
		}
		noun, verb, ok := strings.Cut(string(a), ".")
		if !ok || noun == "" || verb == "" {
			t.Errorf("%s is not noun.verb", a)
		}
		if !strings.Contains(list, "`"+string(a)+"`") {
			t.Errorf("docs/glossary.md does not say what `%s` means", a)
		}
	}
}
