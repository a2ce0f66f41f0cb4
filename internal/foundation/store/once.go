package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// Once is an id for Record that nothing else will ever have: 128 random bits,
// where an id for people has 40 and would meet its like after a million acts.
// The time stands before them so that ids made together lie together: among
// random ones each Record would touch a page of the index of its own.
func Once() string { return onceAt(time.Now()) }

func onceAt(t time.Time) string {
	return "once-" + hex.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(t.UnixMicro()))) + "-" + rand.Text()
}
