package recording

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/fault"
)

// The file of one session is a row of pieces, and nothing else. The ledger holds
// the SHA-256 of each piece as it lies on disk, so an auditor needs no key:
//
//	piece 0:  head block… seal
//	piece n:  block… seal
//
//	head   magic  u32 length  header (JSON)
//	block  u32 length  'b'  sealed event
//	seal   u32 length  's'  u64 piece number  why  SHA-256 of the piece before
//
// A block is in the file before its bytes are forwarded, so a crash loses no
// byte that somebody saw. The last piece is sealed 'c' (closed) or 'r'
// (recovered after a crash); after it nothing follows.
const magic = "handrail-recording-1\n"

const (
	typeBlock = 'b'
	typeSeal  = 's'

	maxHeader = 64 << 10
	maxBody   = 192 << 10
	maxEvent  = 64 << 10
	sealSize  = 8 + 1 + sha256.Size
)

// Why a piece was sealed.
const (
	sealFull      = 'f' // the bound of bytes or of time was reached
	sealClosed    = 'c' // the session ended
	sealRecovered = 'r' // sealed after a crash: the tail is as the disk had it
)

// Kind says what an event of a recording is.
type Kind byte

// The kinds of event.
const (
	Input   Kind = 'i' // typed by the session's owner
	Output  Kind = 'o' // standard output, or the terminal
	Error   Kind = 'e' // standard error
	Resize  Kind = 'r' // u16 columns, u16 rows
	Pause   Kind = 'p' // data: why
	Resume  Kind = 'c' // data: by whom
	Notice  Kind = 'n' // shown to the person
	Chapter Kind = 'm' // a command line seen: a label, never a proof
	Exit    Kind = 'x' // i32 status, then why
	Gap     Kind = 'g' // what is not in the recording, and why
	Join    Kind = 'j' // somebody watches, joins or leaves; By says who
	Typed   Kind = 'I' // typed by somebody who joined; By says who
)

var kindNames = map[Kind]string{
	Input: "input", Output: "output", Error: "error", Resize: "resize", Pause: "pause", Resume: "resume",
	Notice: "notice", Chapter: "chapter", Exit: "exit", Gap: "gap", Join: "join", Typed: "input",
}

// String is the kind's name in the API.
func (k Kind) String() string {
	if n, ok := kindNames[k]; ok {
		return n
	}
	return "unknown"
}

// Event is one thing that happened in a session.
type Event struct {
	Offset time.Duration // since the session started, to the microsecond
	Kind   Kind
	By     string // person id; only for Join and Typed
	Data   []byte
}

// Header is the first thing in a file. Its hash is in the ledger before the
// session starts.
type Header struct {
	V             int    `json:"v"`
	Session       string `json:"session"`
	Person        string `json:"person"`
	Host          string `json:"host"`
	Kind          string `json:"kind"`
	PTY           bool   `json:"pty"`
	Term          string `json:"term,omitempty"`
	Cols          uint16 `json:"cols,omitempty"`
	Rows          uint16 `json:"rows,omitempty"`
	Started       int64  `json:"started"` // µs
	KeyCommit     []byte `json:"key_commit"`
	KeyForSubject []byte `json:"key_for_subject,omitempty"` // before version 3
	KeyForReplay  []byte `json:"key_for_replay"`
}

func (h Header) encode() ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(body) > maxHeader {
		return nil, fault.New(fault.Invalid, "cannot write a recording's header: %d bytes", len(body))
	}
	out := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(out[len(magic):], uint32(len(body)))
	return append(out, body...), nil
}

// readHeader returns the header and its bytes as they lie on disk.
func readHeader(r io.Reader) (Header, []byte, error) {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return Header{}, nil, errTorn
	}
	if !bytes.Equal(head[:len(magic)], []byte(magic)) {
		return Header{}, nil, errors.New("not a recording")
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if n > maxHeader {
		return Header{}, nil, errors.New("header too long")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, nil, errTorn
	}
	var h Header
	if err := json.Unmarshal(body, &h); err != nil {
		return Header{}, nil, fmt.Errorf("header: %w", err)
	}
	return h, append(head, body...), nil
}

// errTorn means that the file stops in the middle of a record: a crash, or a cut.
var errTorn = errors.New("the file stops in the middle of a record")

// record is one block or seal of a file.
type record struct {
	typ  byte
	raw  []byte // as it lies on disk
	body []byte // the part of raw after length and type
}

// readRecord reads one record into buf, which grows as needed.
func readRecord(r io.Reader, buf []byte) (record, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return record{}, buf, io.EOF
		}
		return record{}, buf, errTorn
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n > maxBody || head[4] != typeBlock && head[4] != typeSeal || head[4] == typeSeal && n != sealSize {
		return record{}, buf, fmt.Errorf("a record of type %q and %d bytes", head[4], n)
	}
	if cap(buf) < n+5 {
		buf = make([]byte, n+5)
	}
	raw := buf[:n+5]
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[5:]); err != nil {
		return record{}, buf, errTorn
	}
	return record{typ: head[4], raw: raw, body: raw[5:]}, buf, nil
}

// sealed is the content of a seal.
type sealed struct {
	piece uint64
	why   byte
	prev  [sha256.Size]byte
}

func (s sealed) encode() []byte {
	rec := make([]byte, 5, 5+sealSize)
	binary.BigEndian.PutUint32(rec, sealSize)
	rec[4] = typeSeal
	rec = binary.BigEndian.AppendUint64(rec, s.piece)
	rec = append(rec, s.why)
	return append(rec, s.prev[:]...)
}

func parseSeal(body []byte) (s sealed) {
	s.piece, s.why = binary.BigEndian.Uint64(body), body[8]
	copy(s.prev[:], body[9:])
	return s
}

// codec seals and opens blocks. Blocks of one session have one key, so the
// nonce (chunk, block) never repeats: a recorder never reopens a file.
type codec struct {
	aead    cipher.AEAD
	session string
}

func newCodec(key []byte, session string) (codec, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return codec{}, err
	}
	aead, err := cipher.NewGCM(b)
	return codec{aead: aead, session: session}, err
}

func (c codec) nonce(chunk uint64, block uint32) (n [12]byte) {
	binary.BigEndian.PutUint64(n[:], chunk)
	binary.BigEndian.PutUint32(n[8:], block)
	return n
}

// seal appends the sealed plain text to dst.
func (c codec) seal(dst, plain []byte, chunk uint64, block uint32, prev []byte) []byte {
	n := c.nonce(chunk, block)
	return c.aead.Seal(dst, n[:], plain, c.ad(chunk, prev))
}

// open opens a block in place.
func (c codec) open(body []byte, chunk uint64, block uint32, prev []byte) ([]byte, error) {
	n := c.nonce(chunk, block)
	return c.aead.Open(body[:0], n[:], body, c.ad(chunk, prev))
}

func (c codec) ad(chunk uint64, prev []byte) []byte {
	ad := make([]byte, 0, 96)
	ad = append(ad, c.session...)
	ad = append(ad, '\n')
	ad = binary.BigEndian.AppendUint64(ad, chunk)
	return append(ad, prev...)
}

// Plain text of a block: flag byte, then the event, compressed if flagged.
const (
	flagPlain = 0
	flagZstd  = 1
)

// appendEvent encodes one event: µs offset, kind, who, data.
func appendEvent(dst []byte, e Event) []byte {
	dst = binary.AppendUvarint(dst, uint64(max(e.Offset.Microseconds(), 0)))
	dst = append(dst, byte(e.Kind))
	if e.Kind == Join || e.Kind == Typed {
		dst = binary.AppendUvarint(dst, uint64(len(e.By)))
		dst = append(dst, e.By...)
	}
	return append(dst, e.Data...)
}

func parseEvent(b []byte) (Event, error) {
	us, n := binary.Uvarint(b)
	if n <= 0 || len(b) == n || us > 1<<53 {
		return Event{}, errors.New("malformed event")
	}
	e := Event{Offset: time.Duration(us) * time.Microsecond, Kind: Kind(b[n])}
	b = b[n+1:]
	if e.Kind == Join || e.Kind == Typed {
		l, n := binary.Uvarint(b)
		if n <= 0 || l > 256 || uint64(len(b)-n) < l {
			return Event{}, errors.New("malformed event")
		}
		e.By, b = string(b[n:n+int(l)]), b[n+int(l):]
	}
	e.Data = b
	return e, nil
}

func newDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderLowmem(true))
}

// hasher computes the hashes of a row of pieces.
type hasher struct{ hash.Hash }

func newHasher() hasher { return hasher{sha256.New()} }

// next returns the hash of the piece that ended and begins another.
func (h hasher) next() (sum [sha256.Size]byte) {
	h.Sum(sum[:0])
	h.Reset()
	return sum
}

// ResizeData is the data of a Resize event.
func ResizeData(cols, rows uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, cols), rows)
}

// ParseResize reads what ResizeData made.
func ParseResize(b []byte) (cols, rows uint16) {
	if len(b) < 4 {
		return 0, 0
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

// ExitData is the data of an Exit event.
func ExitData(status int32, why string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(status)), why...)
}

// ParseExit reads what ExitData made.
func ParseExit(b []byte) (status int32, why string) {
	if len(b) < 4 {
		return -1, ""
	}
	return int32(binary.BigEndian.Uint32(b)), string(b[4:])
}
