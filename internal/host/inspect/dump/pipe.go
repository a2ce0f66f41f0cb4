package dump

import (
	"io"
	"sync/atomic"
	"time"
)

// pipe lets copying go ahead of writing, up to a bound, and never wait for it
// beyond a moment.
type pipe struct {
	full  chan []byte
	empty chan []byte
	done  chan error // how writing ended
	gone  atomic.Bool
	err   error
}

func newPipe(w io.Writer) *pipe {
	p := &pipe{full: make(chan []byte, ahead), empty: make(chan []byte, ahead), done: make(chan error, 1)}
	go func() {
		var failed error
		for b := range p.full {
			if failed == nil && !p.gone.Load() {
				if _, failed = w.Write(b); failed != nil {
					p.done <- failed // who copies hears of it at once
				}
			}
			if cap(b) == chunk {
				select {
				case p.empty <- b[:chunk]:
				default:
				}
			}
		}
		if failed == nil {
			p.done <- nil
		}
	}()
	return p
}

// buffer is one of n bytes, used before where there is one.
func (p *pipe) buffer(n int) []byte {
	select {
	case b := <-p.empty:
		return b[:n]
	default:
		return make([]byte, n, chunk)
	}
}

// put hands over a chunk, unless that takes until then.
func (p *pipe) put(b []byte, until time.Time) error {
	if time.Now().After(until) {
		return errLate
	}
	select {
	case p.err = <-p.done:
		return p.err
	default:
	}
	select {
	case p.full <- b:
		return nil
	default:
	}
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	select {
	case p.full <- b:
		return nil
	case p.err = <-p.done:
		return p.err
	case <-late.C:
		return errLate
	}
}

// finish waits until all is written; with whole false, what is left is dropped.
func (p *pipe) finish(whole bool) error {
	p.gone.Store(!whole)
	close(p.full)
	if p.err != nil {
		return p.err
	}
	return <-p.done
}
