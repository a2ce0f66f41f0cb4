package rpc

import "sync/atomic"

// ackCount collects what a person's end says it has consumed.
type ackCount struct{ n atomic.Int64 }

// add counts; what is absurd counts as nothing.
func (a *ackCount) add(n int64) {
	if n > 0 && n <= window {
		a.n.Add(n)
	}
}

func (a *ackCount) take() int64 { return a.n.Swap(0) }
