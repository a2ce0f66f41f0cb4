package mux

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// A sink takes some, all or nothing of what comes; with what is read it is all
// that was sent, in order, and more is sent only as it is taken.
func TestASinkAndItsReaderGetAllInOrder(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	random := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 3*lastWindow)
	for i := range want {
		want[i] = byte(random.Uint32())
	}
	var got bytes.Buffer // written by the sink only while the reader waits
	sunk := 0
	theirs.Sink(func(b []byte) int {
		n := random.IntN(len(b) + 1)
		if random.IntN(2) == 0 {
			n = len(b)
		}
		sunk += n
		got.Write(b[:n])
		return n
	})
	go func() {
		defer mine.Close()
		pieces := rand.New(rand.NewPCG(3, 4))
		for left := want; len(left) > 0; {
			n := min(len(left), 1+pieces.IntN(1<<pieces.IntN(18)))
			if _, err := mine.Write(left[:n]); err != nil {
				t.Error(err)
				return
			}
			left = left[n:]
		}
	}()
	within(t, "a stream with a sink", func() {
		for b := make([]byte, 8<<10); ; {
			n, err := theirs.Read(b)
			got.Write(b[:n])
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d of %d bytes, or others", got.Len(), len(want))
	}
	if sunk == 0 {
		t.Error("the sink was never asked")
	}
}

// All that comes goes to the sink, and its reader wakes only to grant more.
func TestWhatASinkTakesIsGrantedAgain(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	const all = 4 * lastWindow
	taken, done := 0, make(chan struct{})
	theirs.Sink(func(b []byte) int {
		if taken += len(b); taken == all {
			close(done)
		}
		return len(b)
	})
	go func() {
		var b [1]byte
		for { // what comes before it waits for the first time
			n, err := theirs.Read(b[:])
			if err != nil {
				return
			}
			theirs.mu.Lock()
			if taken += n; taken == all {
				close(done)
			}
			theirs.mu.Unlock()
		}
	}()
	within(t, "granting", func() {
		if _, err := mine.Write(make([]byte, all)); err != nil {
			t.Error(err)
		}
		<-done
	})
}
