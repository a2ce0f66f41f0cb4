package mux

import (
	"encoding/binary"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A frame is a head and, for data and window, a body:
//
//	type u8 │ length of the body u24 │ stream u32 │ body
type frameType uint8

const (
	frameOpen   frameType = 1 // a new stream of the sender's
	frameData   frameType = 2 // bytes, within the window that was granted
	frameWindow frameType = 3 // u32: so many bytes more may be sent
	frameFin    frameType = 4 // no data follows
	frameClose  frameType = 5 // no data follows, and none is taken any more
	frameReset  frameType = 6 // as close, and what came before counts for nothing
	framePing   frameType = 7 // stream 0: is somebody there
	framePong   frameType = 8 // stream 0: yes
)

const (
	headSize = 8
	// maxData makes the longest frame four whole TLS records.
	maxData = 64<<10 - headSize
)

type head struct {
	kind   frameType
	length int
	stream uint32
}

func appendHead(b []byte, h head) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(h.kind)<<24|uint32(h.length))
	return binary.BigEndian.AppendUint32(b, h.stream)
}

// parseHead reads the first headSize bytes of b. Whatever an honest peer does
// not send is an error: both ends are of one protocol, which ALPN names.
func parseHead(b []byte) (head, error) {
	first := binary.BigEndian.Uint32(b)
	h := head{kind: frameType(first >> 24), length: int(first & (1<<24 - 1)), stream: binary.BigEndian.Uint32(b[4:])}
	ok := h.length == 0 && h.stream != 0
	switch h.kind {
	case frameOpen, frameFin, frameClose, frameReset:
	case frameData:
		ok = h.stream != 0 && h.length > 0 && h.length <= maxData
	case frameWindow:
		ok = h.stream != 0 && h.length == 4
	case framePing, framePong:
		ok = h.stream == 0 && h.length == 0
	default:
		ok = false
	}
	if !ok {
		return h, fault.New(fault.Invalid, "cannot read frame: type %d, %d bytes, stream %d", h.kind, h.length, h.stream)
	}
	return h, nil
}
