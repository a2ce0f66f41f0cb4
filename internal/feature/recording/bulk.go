package recording

import (
	"crypto/sha256"
	"encoding/json"
	"hash"
)

// bulk is one stream without a terminal: a file copied, a dump taken. Its head
// is kept as events; beyond that its length, its hash and its last bytes.
type bulk struct {
	length int64
	kept   int64
	sum    hash.Hash
	tail   []byte // a ring, allocated only when the bound is passed
	at     int
	full   bool
}

func newBulk() *bulk { return &bulk{} }

// take accounts for data and returns the part to be kept as an event.
func (b *bulk) take(data []byte, bounds Bounds) []byte {
	if b.sum == nil {
		b.sum = sha256.New()
	}
	b.sum.Write(data)
	b.length += int64(len(data))
	head := data[:min(int64(len(data)), bounds.BulkHead-b.kept)]
	b.kept += int64(len(head))
	if rest := data[len(head):]; len(rest) > 0 {
		b.keepTail(rest, bounds.BulkTail)
	}
	return head
}

func (b *bulk) keepTail(data []byte, size int) {
	if b.tail == nil {
		b.tail = make([]byte, size)
	}
	if len(data) >= size {
		copy(b.tail, data[len(data)-size:])
		b.at, b.full = 0, true
		return
	}
	n := copy(b.tail[b.at:], data)
	if n < len(data) {
		copy(b.tail, data[n:])
		b.full = true
	}
	if b.at += len(data); b.at >= size {
		b.at -= size
		b.full = true
	}
}

// lastBytes is the tail in order.
func (b *bulk) lastBytes() []byte {
	if !b.full {
		return b.tail[:b.at]
	}
	return append(append([]byte(nil), b.tail[b.at:]...), b.tail[:b.at]...)
}

// skipped is how many bytes are neither in head nor in tail.
func (b *bulk) skipped() int64 {
	tail := int64(b.at)
	if b.full {
		tail = int64(len(b.tail))
	}
	if b.length == b.kept {
		return 0
	}
	return max(b.length-b.kept-tail, 0)
}

// Bulk is the data of a Gap event that stands for the middle of a long stream.
type Bulk struct {
	Stream  string `json:"stream"`
	Length  int64  `json:"length"`
	Skipped int64  `json:"skipped"`
	SHA256  []byte `json:"sha256"`
}

func (b *bulk) summary(k Kind) []byte {
	out, _ := json.Marshal(Bulk{Stream: k.String(), Length: b.length, Skipped: b.skipped(), SHA256: b.sum.Sum(nil)})
	return out
}

// overflowed says whether the stream went beyond its head.
func (b *bulk) overflowed() bool { return b.length > b.kept }

// ParseBulk reads the data of a Gap event.
func ParseBulk(b []byte) (Bulk, error) {
	var v Bulk
	err := json.Unmarshal(b, &v)
	return v, err
}
