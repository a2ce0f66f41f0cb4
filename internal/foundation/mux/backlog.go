package mux

// backlog is what came and was not read yet, in pieces, so that neither a full
// one nor one that empties slowly is ever copied.
type backlog struct {
	pieces [][]byte
	start  int // read of the first
}

// fewBytes is what a piece holds while little is behind.
const fewBytes = 512

func (q *backlog) empty() bool { return len(q.pieces) == 0 }

func (q *backlog) add(b []byte) {
	for len(b) > 0 {
		if n := len(q.pieces); n > 0 {
			last := q.pieces[n-1]
			k := min(cap(last)-len(last), len(b))
			q.pieces[n-1] = append(last, b[:k]...)
			if b = b[k:]; len(b) == 0 {
				return
			}
		}
		if len(q.pieces) == 0 && len(b) <= fewBytes {
			q.pieces = append(q.pieces, make([]byte, 0, fewBytes))
			continue
		}
		q.pieces = append(q.pieces, reading.Get().(*[busy]byte)[:0])
	}
}

func (q *backlog) take(p []byte) (n int) {
	for n < len(p) && len(q.pieces) > 0 {
		k := copy(p[n:], q.pieces[0][q.start:])
		n += k
		if q.start += k; q.start == len(q.pieces[0]) {
			q.drop()
		}
	}
	return n
}

// drop gives the first piece back.
func (q *backlog) drop() {
	if b := q.pieces[0]; cap(b) == busy {
		reading.Put((*[busy]byte)(b[:busy]))
	}
	q.pieces[0] = nil
	q.start = 0
	if q.pieces = q.pieces[1:]; len(q.pieces) == 0 {
		q.pieces = nil
	}
}

func (q *backlog) clear() {
	for len(q.pieces) > 0 {
		q.drop()
	}
}
