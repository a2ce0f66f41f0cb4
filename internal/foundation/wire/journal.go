package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A journal is what a node recorded of one session that no server saw: the
// head, signed by the node's journal key, then pieces, signed by a key made for
// this session, each with the hash of what came before it.
//
//	u32 length ‖ head JSON ‖ signature      signed by the node
//	u32 length ‖ piece JSON ‖ signature     signed by head.Key; prev = SHA-256 of the block before
//	…                                       the last one says how the session ended
//
// A file that stops without an end was cut short by a crash: what is there is
// good, and that something is missing is known.
const (
	journalHeadPrefix  = "handrail-journal-head-v1\n"
	journalPiecePrefix = "handrail-journal-piece-v1\n"
	receiptPrefix      = "handrail-journal-receipt-v1\n"

	MaxJournal      = 64 << 20  // of one session; then the session ends
	MaxJournalBlock = 256 << 10 // of one block
	MaxJournalPart  = 128 << 10 // of one upload
)

// JournalHead begins a journal.
type JournalHead struct {
	V           int    `json:"v"`
	Session     string `json:"session"` // s-…
	Node        string `json:"node"`
	Number      int64  `json:"number"`         // of this node's journals, without gaps, from 1
	Before      []byte `json:"before"`         // SHA-256 of the head of the journal before; empty for the first
	Certificate []byte `json:"certificate"`    // the voucher, SSH wire format
	SessionID   []byte `json:"ssh_session_id"` // what the voucher's key signed
	Source      string `json:"source"`         // as the link says
	Kind        string `json:"kind"`
	Command     string `json:"command,omitempty"`
	PTY         bool   `json:"pty,omitempty"`
	Term        string `json:"term,omitempty"`
	Cols        uint16 `json:"cols,omitempty"`
	Rows        uint16 `json:"rows,omitempty"`
	Account     string `json:"account"`
	BootID      string `json:"boot_id"`
	Wall        int64  `json:"wall"`            // µs, this host's clock
	LastLease   int64  `json:"last_lease"`      // µs, the server's clock in the last lease; 0: none since the boot
	LostMS      int64  `json:"lost_ms"`         // for how long there was no lease
	Drill       string `json:"drill,omitempty"` // order that allowed it as a drill
	Offline     bool   `json:"offline,omitempty"`
	Key         []byte `json:"key"` // ed25519: signs the pieces
}

// JournalPiece is a stretch of a session.
type JournalPiece struct {
	N      int64          `json:"n"`
	Prev   []byte         `json:"prev"`
	Events []JournalEvent `json:"events,omitempty"`
	End    *JournalEnd    `json:"end,omitempty"`
}

// JournalEvent is one frame, either way.
type JournalEvent struct {
	At   int64     `json:"at"` // µs of boot time since the session began
	Type FrameType `json:"t"`
	Data []byte    `json:"d"`
}

// JournalEnd says how it ended.
type JournalEnd struct {
	At     int64  `json:"at"`
	Status int32  `json:"status"`
	Signal string `json:"signal,omitempty"`
	Why    string `json:"why,omitempty"`
}

// SignJournalHead returns a journal's first block, with its length.
func SignJournalHead(h JournalHead, node crypto.Signer) ([]byte, error) {
	return signBlock(h, journalHeadPrefix, node)
}

// SignJournalPiece returns a further block.
func SignJournalPiece(p JournalPiece, session crypto.Signer) ([]byte, error) {
	return signBlock(p, journalPiecePrefix, session)
}

func signBlock(v any, prefix string, key crypto.Signer) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode a journal")
	}
	sig, err := sign(key, prefix, body)
	if err != nil {
		return nil, err
	}
	block := packSigned(body, sig)
	if len(block) > MaxJournalBlock {
		return nil, fault.New(fault.Exhausted, "cannot encode a journal: a block of %d bytes", len(block))
	}
	return appendField(nil, block), nil
}

// HashBlock is what the next block names as the one before.
func HashBlock(block []byte) []byte {
	sum := sha256.Sum256(block)
	return sum[:]
}

// JournalReader reads and checks a journal, block by block.
type JournalReader struct {
	r    io.Reader
	key  ed25519.PublicKey
	prev []byte
	n    int64
	Head JournalHead
	// HeadHash is what the node's next journal names as the one before.
	HeadHash []byte
	Ended    bool
}

// OpenJournal reads and checks the head. nodeKey is the node's journal key.
func OpenJournal(r io.Reader, nodeKey ed25519.PublicKey) (*JournalReader, error) {
	j := &JournalReader{r: r}
	block, err := j.block()
	if err != nil {
		return nil, err
	}
	if err := openBlock(block, journalHeadPrefix, nodeKey, &j.Head); err != nil {
		return nil, err
	}
	h := j.Head
	if h.V != 1 || !ValidID('s', h.Session) || !ValidID('h', h.Node) || h.Number < 1 || len(h.Key) != ed25519.PublicKeySize ||
		h.Kind != SessionShell && h.Kind != SessionExec && h.Kind != SessionSFTP {
		return nil, fault.New(fault.Invalid, "cannot read journal: bad head")
	}
	j.key, j.HeadHash = h.Key, j.prev
	return j, nil
}

// Next returns the next piece; io.EOF at the end, io.ErrUnexpectedEOF where the
// file stops in the middle of a block.
func (j *JournalReader) Next() (JournalPiece, error) {
	var p JournalPiece
	before := j.prev
	block, err := j.block()
	if err != nil {
		return p, err
	}
	if err := openBlock(block, journalPiecePrefix, j.key, &p); err != nil {
		return p, err
	}
	j.n++
	if j.Ended || p.N != j.n || !bytes.Equal(p.Prev, before) {
		return p, fault.New(fault.Invalid, "cannot read journal %s: piece %d does not follow what is before it", j.Head.Session, p.N)
	}
	j.Ended = p.End != nil
	return p, nil
}

func (j *JournalReader) block() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(j.r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxJournalBlock {
		return nil, fault.New(fault.Invalid, "cannot read journal: a block of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(j.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	j.prev = HashBlock(b)
	return b, nil
}

func openBlock(b []byte, prefix string, key ed25519.PublicKey, v any) error {
	body, sig, err := unpackSigned(b, MaxJournalBlock)
	if err != nil {
		return err
	}
	if !verify(key, prefix, body, sig) {
		return fault.New(fault.Denied, "cannot accept journal: it is not signed by the key it names")
	}
	if err := strict(body, v); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read journal")
	}
	return nil
}

// JournalPart is a stretch of a journal's file on its way up (up.journal). With
// no data it asks how much the server has.
type JournalPart struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Offset  int64  `json:"offset"`
	Data    []byte `json:"data,omitempty"`
	Size    int64  `json:"size"` // of the file now
	Live    bool   `json:"live"` // the session still runs
}

// ParseJournalPart reads one.
func ParseJournalPart(b []byte) (JournalPart, error) {
	var p JournalPart
	if len(b) > 2*MaxJournalPart {
		return p, fault.New(fault.Invalid, "cannot read journal: %d bytes at once", len(b))
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fault.Wrap(fault.Invalid, err, "cannot read journal")
	}
	if p.V != 1 || !ValidID('s', p.Session) || p.Offset < 0 || p.Size < 0 || p.Size > MaxJournal || p.Offset+int64(len(p.Data)) > p.Size || len(p.Data) > MaxJournalPart {
		return p, fault.New(fault.Invalid, "cannot read journal: bad form")
	}
	return p, nil
}

// JournalAnswer says how much the server has; once it has recorded the whole
// in the ledger, the receipt lets the node forget the file.
type JournalAnswer struct {
	V       int    `json:"v"`
	Have    int64  `json:"have"`
	Receipt []byte `json:"receipt,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Receipt is the server's word that a journal is in the ledger.
type Receipt struct {
	V       int    `json:"v"`
	Node    string `json:"node"`
	Session string `json:"session"`
	Size    int64  `json:"size"`
}

// SignReceipt signs a receipt with the order key.
func SignReceipt(r Receipt, orderKey crypto.Signer) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot encode a receipt")
	}
	sig, err := sign(orderKey, receiptPrefix, body)
	if err != nil {
		return nil, err
	}
	return packSigned(body, sig), nil
}

// OpenReceipt checks a receipt.
func OpenReceipt(b []byte, orderKey ed25519.PublicKey) (Receipt, error) {
	var r Receipt
	body, sig, err := unpackSigned(b, MaxLine)
	if err != nil {
		return r, err
	}
	if !verify(orderKey, receiptPrefix, body, sig) {
		return r, fault.New(fault.Denied, "cannot accept receipt: the order key did not sign it")
	}
	if err := strict(body, &r); err != nil || r.V != 1 {
		return Receipt{}, fault.New(fault.Invalid, "cannot read receipt")
	}
	return r, nil
}
