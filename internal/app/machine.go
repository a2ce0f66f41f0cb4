package app

import (
	"encoding/json"
	"os"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// machine is what this machine gives to sessions. The supervisor tries it while
// keys are made and the server opens its database, and the server waits for the
// word before it serves.
type machine struct {
	Mode    string   `json:"mode"`    // of its sandbox
	Missing []string `json:"missing"` // what that mode lacks
}

// maxMachine bounds the word: some sentences.
const maxMachine = 64 << 10

// machineWord is a socket on which the supervisor says it once: every server that
// gets the other end hears it, the first and those that are started again.
func machineWord() (say, hear *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a socket for the server")
	}
	return os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine"), nil
}

// say is the word, and the last one: a server that found none would wait for ever.
func (m machine) say(to *os.File) error {
	defer to.Close()
	b, err := json.Marshal(m)
	if err == nil {
		_, err = to.Write(b)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot tell the server what this machine gives")
	}
	return nil
}

// hearMachine waits for the word, and leaves it there for the next server.
func hearMachine(from *os.File) (m machine, err error) {
	b := make([]byte, maxMachine)
	for {
		n, _, err := unix.Recvfrom(int(from.Fd()), b, unix.MSG_PEEK)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return m, fault.Wrap(fault.Internal, err, "cannot hear what this machine gives")
		}
		if n == 0 {
			return m, fault.New(fault.Unavailable, "cannot start: the supervisor ended before it said what this machine gives")
		}
		if err := json.Unmarshal(b[:n], &m); err != nil {
			return m, fault.Wrap(fault.Internal, err, "cannot read what this machine gives")
		}
		return m, nil
	}
}
