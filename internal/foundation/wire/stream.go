package wire

import (
	"encoding/binary"
	"encoding/json"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
)

// ALPN is the TLS protocol by which a server knows a node's connection. Its
// number is that of what is spoken inside.
const ALPN = "handrail-node/2"

// PastALPN is what nodes spoke that shared their connection in another way. A
// server knows it so that it can say why it does not take them.
const PastALPN = "handrail-node/1"

// Uses of a node's connection.
const (
	UseControl = "control"
	UseBulk    = "bulk"
)

// Modes of a node.
const (
	ModeRoot          = "root"
	ModeUserNamespace = "user-namespace"
	ModeNoShells      = "no-shells"
)

// First lines of a stream.
const (
	StreamNATS    = "nats"    // node → server: NATS client protocol follows
	StreamSession = "session" // server → node: an order envelope follows
)

// Hello is the first line of a node's connection, before streams share it.
type Hello struct {
	V       int      `json:"v"`
	Use     string   `json:"use"`
	Version string   `json:"version"`
	Mode    string   `json:"mode"`
	Missing []string `json:"missing"` // what this mode or kernel lacks, one sentence each
	Floor   string   `json:"floor"`
	Trial   bool     `json:"trial"`
	// Cosigned says that the host takes only orders whose tree outside
	// witnesses have cosigned. It demands more, so it need not be proven.
	Cosigned bool `json:"cosigned,omitempty"`
}

// HelloAnswer is the server's line in return.
type HelloAnswer struct {
	V        int    `json:"v,omitempty"`
	NATSUser string `json:"nats_user,omitempty"`
	NATSPass string `json:"nats_pass,omitempty"`
	Error    string `json:"error,omitempty"`
}

// SessionAnswer is the node's answer to a session order.
type SessionAnswer struct {
	OK           bool     `json:"ok"`
	Kind         string   `json:"kind,omitempty"` // fault kind
	Text         string   `json:"text,omitempty"`
	Hint         string   `json:"hint,omitempty"`
	Floor        string   `json:"floor,omitempty"`
	Missing      []string `json:"missing,omitempty"`
	BootID       string   `json:"boot_id,omitempty"`
	AuditSession int64    `json:"audit_session,omitempty"`
	Account      string   `json:"account,omitempty"`
	UID          int64    `json:"uid,omitempty"`
}

// Err is the fault that a refusal carries, nil when OK.
func (a SessionAnswer) Err() error {
	if a.OK {
		return nil
	}
	e := fault.New(fault.ParseKind(a.Kind), "%s", a.Text)
	e.Hint = a.Hint
	return e
}

// Refusal is the answer that carries err.
func Refusal(err error) SessionAnswer {
	f := fault.From(err)
	return SessionAnswer{Kind: f.Kind.String(), Text: f.Text, Hint: f.Hint}
}

// WriteLine writes v as one line of JSON.
func WriteLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ReadLine reads one line of JSON into v. It takes byte by byte and never one
// byte more than the line, because another protocol follows on the same
// connection. Unknown fields are allowed: a hello commands nothing.
func ReadLine(r io.Reader, v any) error {
	line, err := readLine(r, MaxLine)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read hello")
	}
	return nil
}

func readLine(r io.Reader, limit int) ([]byte, error) {
	var line []byte
	var one [1]byte
	for len(line) < limit {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return nil, err
		}
		if one[0] == '\n' {
			return line, nil
		}
		line = append(line, one[0])
	}
	return nil, fault.New(fault.Invalid, "cannot read line: longer than %d bytes", limit)
}

// WriteStreamKind writes the first line of a stream.
func WriteStreamKind(w io.Writer, kind string) error {
	_, err := io.WriteString(w, kind+"\n")
	return err
}

// ReadStreamKind reads the first line of a stream.
func ReadStreamKind(r io.Reader) (string, error) {
	b, err := readLine(r, 32)
	return string(b), err
}

// WriteSessionOrder writes "session\n" and the envelope: what opens a session stream.
func WriteSessionOrder(w io.Writer, envelope []byte) error {
	b := append(make([]byte, 0, len(StreamSession)+5+len(envelope)), StreamSession+"\n"...)
	_, err := w.Write(appendField(b, envelope))
	return err
}

// ReadEnvelope reads the envelope that follows "session\n".
func ReadEnvelope(r io.Reader) ([]byte, error) { return ReadBlock(r, MaxEnvelope) }

// WriteAnswer writes the node's answer.
func WriteAnswer(w io.Writer, a SessionAnswer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return WriteBlock(w, b)
}

// ReadAnswer reads the node's answer.
func ReadAnswer(r io.Reader) (SessionAnswer, error) {
	var a SessionAnswer
	b, err := ReadBlock(r, MaxAnswer)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fault.Wrap(fault.Invalid, err, "cannot read session answer")
	}
	return a, nil
}

// WriteBlock writes a u32 length and the bytes, in one Write.
func WriteBlock(w io.Writer, b []byte) error {
	_, err := w.Write(appendField(make([]byte, 0, 4+len(b)), b))
	return err
}

// ReadBlock reads a u32 length, at most limit, and as many bytes.
func ReadBlock(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(limit) {
		return nil, fault.New(fault.Invalid, "cannot read block: %d bytes are more than %d", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}
