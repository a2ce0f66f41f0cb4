package app

import (
	"slices"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestEveryServerThatIsStartedHearsWhatTheMachineGives(t *testing.T) {
	say, hear, err := machineWord()
	if err != nil {
		t.Fatal(err)
	}
	defer hear.Close()
	first := make(chan machine, 1)
	go func() { // it may wait for the word
		m, err := hearMachine(hear)
		if err != nil {
			t.Error(err)
		}
		first <- m
	}()
	if err := (machine{Mode: "root", Missing: []string{"one sentence"}}).say(say); err != nil {
		t.Fatal(err)
	}
	again, err := hearMachine(hear)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []machine{<-first, again} {
		if m.Mode != "root" || !slices.Equal(m.Missing, []string{"one sentence"}) {
			t.Errorf("heard %+v", m)
		}
	}
}

func TestAServerWhoseSupervisorIsGoneDoesNotWaitForItsWord(t *testing.T) {
	say, hear, err := machineWord()
	if err != nil {
		t.Fatal(err)
	}
	defer hear.Close()
	say.Close()
	if _, err := hearMachine(hear); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("got %v", err)
	}
}
