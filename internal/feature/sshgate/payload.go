package sshgate

import (
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
