package entrance

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What a child asks of the warden. The first block on the control socket is the
// Spec, from the warden; then the child asks and the warden answers, in turn.
const (
	OpSign  = "sign"  // Data: an exchange hash, to be signed by the host key
	OpOffer = "offer" // Certificate: would it be let in? Nothing is begun
	OpStart = "start" // all: its key is proven to be at the other end
)

// Spec is what a child is told at birth.
type Spec struct {
	HostKey []byte `json:"host_key"` // SSH wire format
	UID     uint32 `json:"uid"`      // to become; 0: stay who we are
	Root    string `json:"root"`     // empty folder to live in; "": none
}

// Ask is one request of a child.
type Ask struct {
	Op          string `json:"op"`
	Data        []byte `json:"data,omitempty"`
	User        string `json:"user,omitempty"`
	Certificate []byte `json:"certificate,omitempty"`
	SessionID   []byte `json:"session_id,omitempty"` // of the SSH connection
	Kind        string `json:"kind,omitempty"`
	Command     string `json:"command,omitempty"`
	PTY         bool   `json:"pty,omitempty"`
	Term        string `json:"term,omitempty"`
	Cols        uint16 `json:"cols,omitempty"`
	Rows        uint16 `json:"rows,omitempty"`
}

// Answer is the warden's. That of a start comes with the session's socket.
type Answer struct {
	OK   bool   `json:"ok"`
	Text string `json:"text,omitempty"` // for the person
	Data []byte `json:"data,omitempty"`
}

// MaxControl bounds a message between child and warden.
const MaxControl = 512 << 10

// ReadAsk reads a child's next request.
func ReadAsk(c *net.UnixConn) (Ask, error) {
	var a Ask
	b, err := wire.ReadBlock(c, MaxControl)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fault.Wrap(fault.Invalid, err, "cannot read what an entrance asks")
	}
	if len(a.Command) > wire.MaxLine || len(a.Term) > 64 || len(a.SessionID) > 128 || len(a.Data) > 128 {
		return a, fault.New(fault.Invalid, "cannot read what an entrance asks: too long")
	}
	return a, nil
}

// WriteAnswer answers it, with a file where there is one.
func WriteAnswer(c *net.UnixConn, a Answer, f *os.File) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// readAnswer reads the warden's answer and the file that came with it.
func readAnswer(c *net.UnixConn) (Answer, *os.File, error) {
	var a Answer
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil || n != len(head) {
		return a, nil, fault.New(fault.Unavailable, "the warden is gone")
	}
	f := fileFrom(oob[:oobn])
	size := binary.BigEndian.Uint32(head[:])
	b := make([]byte, min(size, MaxControl))
	if _, err = readFull(c, b); err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil && f != nil {
		f.Close()
		f = nil
	}
	return a, f, err
}

func readFull(c *net.UnixConn, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = c.Read(b[n:])
		n += m
	}
	return n, err
}

func fileFrom(oob []byte) *os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "session")
}
