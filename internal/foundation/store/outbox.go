package store

import (
	"encoding/binary"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// outgoing is one row of the outbox: the entries of the records that one
// transaction committed together, in the order in which they ran.
type outgoing struct {
	ids    []string
	drafts [][]draft // of each record
}

func (o *outgoing) add(id string, drafts []draft) {
	o.ids, o.drafts = append(o.ids, id), append(o.drafts, drafts)
}

func (o *outgoing) size() (n int) {
	for _, d := range o.drafts {
		n += len(d)
	}
	return n
}

// outboxMark opens a row of several records; rows of the first release begin
// with the length of a leaf, which is never this long.
const outboxMark = 0xffffffff

// pack is how entries wait in the outbox: each record's id and count, then leaf
// and sealed payload, each with its length. No payload lies there in clear.
func (o *outgoing) pack() []byte {
	n := 4
	for i, drafts := range o.drafts {
		n += 8 + len(o.ids[i])
		for _, d := range drafts {
			n += 8 + len(d.leaf) + len(d.body)
		}
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, n), outboxMark)
	for i, drafts := range o.drafts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(o.ids[i])))
		b = append(b, o.ids[i]...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(drafts)))
		for _, d := range drafts {
			for _, part := range [][]byte{d.leaf, d.body} {
				b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
				b = append(b, part...)
			}
		}
	}
	return b
}

var errCutShort = fault.New(fault.Invalid, "cannot read pending entries: they are cut short")

// outboxReader takes a row of the outbox apart.
type outboxReader struct{ b []byte }

func (r *outboxReader) number() (uint32, bool) {
	if len(r.b) < 4 {
		return 0, false
	}
	n := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return n, true
}

func (r *outboxReader) part() ([]byte, bool) {
	n, ok := r.number()
	if !ok || uint64(len(r.b)) < uint64(n) {
		return nil, false
	}
	part := r.b[:n]
	r.b = r.b[n:]
	return part, true
}

func (r *outboxReader) draft() (draft, error) {
	leaf, ok1 := r.part()
	body, ok2 := r.part()
	if !ok1 || !ok2 {
		return draft{}, errCutShort
	}
	l, err := ledger.ParseLeaf(leaf)
	if err != nil {
		return draft{}, err
	}
	return draft{leaf: leaf, parsed: l, body: body, hash: ledger.HashOf(leaf)}, nil
}

// unpackOutgoing reads a row. record is the id of a row of the first release,
// which holds the entries of one record.
func unpackOutgoing(record string, b []byte) (*outgoing, error) {
	r := outboxReader{b}
	o := &outgoing{}
	if len(b) == 0 {
		return nil, errCutShort
	}
	if mark, ok := r.number(); !ok || mark != outboxMark {
		r.b = b
		var drafts []draft
		for len(r.b) > 0 {
			d, err := r.draft()
			if err != nil {
				return nil, err
			}
			drafts = append(drafts, d)
		}
		o.add(record, drafts)
		return o, nil
	}
	for len(r.b) > 0 {
		id, ok1 := r.part()
		n, ok2 := r.number()
		if !ok1 || !ok2 || len(id) == 0 || n == 0 || n > maxEntries {
			return nil, errCutShort
		}
		drafts := make([]draft, 0, n)
		for range n {
			d, err := r.draft()
			if err != nil {
				return nil, err
			}
			drafts = append(drafts, d)
		}
		o.add(string(id), drafts)
	}
	return o, nil
}
