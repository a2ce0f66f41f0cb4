package lab

import (
	"os"
	"os/signal"
	"syscall"
)

// notify asks for the signals that end a host; pid 1 of a namespace gets none
// that it did not ask for.
func notify(c chan<- os.Signal) { signal.Notify(c, syscall.SIGTERM, syscall.SIGINT) }
