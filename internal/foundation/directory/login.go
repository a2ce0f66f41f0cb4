package directory

import (
	"sync"
	"time"
)

// tries bounds how often passwords are tried.
type tries struct {
	mu   sync.Mutex
	wait map[string]time.Time
}
