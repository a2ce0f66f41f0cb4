package stack

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The first thread of a program never ends: what was held from it would stay
// traced, and what died would stay a zombie, for as long as the program runs.
func TestNothingIsHeldFromTheFirstThread(t *testing.T) {
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for range 32 {
				onThreadThatEnds(func() {
					if unix.Gettid() == unix.Getpid() {
						t.Error("held from the first thread")
					}
				})
			}
		})
	}
	all.Wait()
}
