package store

import (
	"sync/atomic"
	"time"
)

// CommitBounds are the upper bounds of the buckets in which durable commits are
// counted, in seconds.
func CommitBounds() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}
}

// commits counts how long changes took until they were durable.
type commits struct {
	buckets [14]atomic.Uint64 // one for each bound, and what is beyond
	nanos   atomic.Int64
}

func (c *commits) note(took time.Duration) {
	bounds, at := CommitBounds(), 0
	for at < len(bounds) && took.Seconds() > bounds[at] {
		at++
	}
	c.buckets[at].Add(1)
	c.nanos.Add(int64(took))
}

// Commits is how many changes were durable within each bound and, last, beyond
// all of them, since the start; and how many seconds they took together.
func (s *Store) Commits() (counts []uint64, seconds float64) {
	for i := range s.commits.buckets {
		counts = append(counts, s.commits.buckets[i].Load())
	}
	return counts, time.Duration(s.commits.nanos.Load()).Seconds()
}
