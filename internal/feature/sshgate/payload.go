package sshgate

import (
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/ssh"
)

// The payloads of channel requests (RFC 4254, 6).

type ptyRequest struct {
	Term          string
	Columns, Rows uint32
	Width, Height uint32
	Modes         string
}

type windowChange struct{ Columns, Rows, Width, Height uint32 }

type setEnv struct{ Name, Value string }

type command struct{ Line string }

type signal struct{ Name string }

type exitStatus struct{ Status uint32 }

type exitSignal struct {
	Signal   string
	Core     bool
	Text     string
	Language string
}

// disconnectMessage is SSH_MSG_DISCONNECT (RFC 4253, 11.1).
type disconnectMessage struct {
	Reason   uint32 `sshtype:"1"`
	Text     string
	Language string
}

const tooManyConnections = 12

// disconnect is that message as a packet of a connection without keys yet
// (RFC 4253, 6).
func disconnect(reason uint32, text string) []byte {
	payload := ssh.Marshal(disconnectMessage{Reason: reason, Text: text})
	const head, block = 5, 8 // u32 length, u8 padding length
	padding := 2*block - (head+len(payload))%block
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	b = append(append(b, byte(padding)), payload...)
	return append(b, make([]byte, padding)...)
}

var errPayload = errors.New("malformed request")

// parse reads a payload strictly; ssh.Unmarshal does not panic on any input.
func parse[T any](b []byte) (T, error) {
	var v T
	if len(b) > 256<<10 {
		return v, errPayload
	}
	if err := ssh.Unmarshal(b, &v); err != nil {
		return v, errPayload
	}
	return v, nil
}

// size bounds what a client says about its window.
func size(n uint32) uint16 { return uint16(min(n, 4096)) }
