package mux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// both are two ends over TCP on loopback.
func both(t testing.TB) (client, server *Session) {
	x, y := pair(t)
	client, server = Client(x), Server(y)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// stream is one stream, seen from both ends, with nothing on its way.
func stream(t testing.TB, client, server *Session) (mine, theirs *Stream) {
	t.Helper()
	mine, err := client.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mine.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if theirs, err = server.Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return mine, theirs
}

// within fails the test rather than let it hang.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s takes a minute", what)
	}
}

// Any number of streams of both ends, written and read in pieces of any size:
// each end gets what the other sent, in order, and then the end.
func TestWhatIsSentArrives(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			client, server := both(t)
			random := rand.New(rand.NewPCG(seed, 1))
			var wg sync.WaitGroup
			for n := range 1 + random.IntN(12) {
				from := client
				if random.IntN(2) == 0 {
					from = server
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					st, err := from.Open()
					if err != nil {
						t.Error(err)
						return
					}
					ask(t, st, seed<<8|uint64(n))
				}()
			}
			for _, s := range []*Session{client, server} {
				go func() {
					for {
						st, err := s.Accept()
						if err != nil {
							return
						}
						go echo(st)
					}
				}()
			}
			within(t, "an exchange", wg.Wait)
			within(t, "forgetting", func() {
				for client.Streams() > 0 || server.Streams() > 0 {
					runtime.Gosched()
				}
			})
			if client.extra != 0 || server.extra != 0 {
				t.Errorf("%d and %d bytes of window are lost", client.extra, server.extra)
			}
		})
	}
}

// ask sends random bytes in random pieces and wants them back.
func ask(t *testing.T, st *Stream, seed uint64) {
	defer st.Close()
	random := rand.New(rand.NewPCG(seed, 2))
	want := make([]byte, random.IntN(1<<20))
	for i := range want {
		want[i] = byte(random.Uint32())
	}
	go func() {
		pieces := rand.New(rand.NewPCG(seed, 3))
		for left := want; len(left) > 0; {
			n := min(len(left), 1+pieces.IntN(1<<pieces.IntN(18)))
			if _, err := st.Write(left[:n]); err != nil {
				t.Error(err)
				return
			}
			left = left[n:]
		}
		if err := st.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	var got bytes.Buffer
	for b := make([]byte, 1<<18); ; {
		n, err := st.Read(b[:1+random.IntN(1<<random.IntN(18))])
		got.Write(b[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d of %d bytes came back, or others", got.Len(), len(want))
	}
}

func echo(st *Stream) {
	_, _ = io.Copy(st, st)
	st.Close()
}

func TestWhoReadsSlowlyDelaysNobodyElse(t *testing.T) {
	client, server := both(t)
	slow, unread := stream(t, client, server)
	stuck := make(chan error, 1)
	go func() {
		_, err := slow.Write(make([]byte, lastWindow))
		stuck <- err
	}()
	mine, theirs := stream(t, client, server)
	go echo(theirs)
	within(t, "a key beside a stream that nobody reads", func() {
		for range 200 {
			if _, err := mine.Write([]byte("k")); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(mine, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		}
	})
	select {
	case err := <-stuck:
		t.Fatalf("more was sent than may be held: %v", err)
	default:
	}
	if _, err := io.CopyN(io.Discard, unread, lastWindow); err != nil {
		t.Error(err)
	}
	within(t, "the slow stream, once read", func() {
		if err := <-stuck; err != nil {
			t.Error(err)
		}
	})
}

func TestAfterCloseThePeerReadsWhatWasWritten(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	if _, err := mine.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	mine.Close()
	if got, err := io.ReadAll(theirs); string(got) != "last words" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := theirs.Write([]byte("?")); err != io.ErrClosedPipe {
		t.Errorf("writing to who takes nothing: %v", err)
	}
	if _, err := mine.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
	if _, err := mine.Write([]byte("?")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after Close: %v", err)
	}
}

func TestAResetThrowsAwayWhatWasSent(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	_, _ = mine.Write([]byte("never mind"))
	_ = mine.Reset()
	within(t, "a reset", func() {
		for {
			if _, err := theirs.Read(make([]byte, 4)); err == ErrReset {
				return
			} else if err != nil {
				t.Errorf("after a reset: %v", err)
				return
			}
		}
	})
	if _, err := theirs.Write([]byte("?")); err != ErrReset {
		t.Errorf("writing after a reset: %v", err)
	}
}

func TestHalfAStreamGoesOn(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	_ = mine.CloseWrite()
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last byte: %v", err)
	}
	if _, err := mine.Write([]byte("?")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after CloseWrite: %v", err)
	}
	_, _ = theirs.Write([]byte("an answer"))
	theirs.Close()
	if got, err := io.ReadAll(mine); string(got) != "an answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCloseAndDeadlinesEndWhatWaits(t *testing.T) {
	for what, end := range map[string]struct {
		f    func(st *Stream)
		want error
	}{
		"close":      {func(st *Stream) { st.Close() }, net.ErrClosed},
		"deadline":   {func(st *Stream) { _ = st.SetDeadline(time.Now().Add(20 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		"past":       {func(st *Stream) { _ = st.SetDeadline(time.Now().Add(-time.Second)) }, os.ErrDeadlineExceeded},
		"connection": {func(st *Stream) { st.s.Close() }, ErrEnded},
	} {
		t.Run(what, func(t *testing.T) {
			client, server := both(t)
			mine, _ := stream(t, client, server)
			errs := make(chan error, 2)
			go func() {
				_, err := mine.Read(make([]byte, 1))
				errs <- err
			}()
			go func() {
				_, err := mine.Write(make([]byte, 2*firstWindow))
				errs <- err
			}()
			end.f(mine)
			within(t, what, func() {
				for range 2 {
					if err := <-errs; !errors.Is(err, end.want) {
						t.Errorf("%v, want %v", err, end.want)
					}
				}
			})
		})
	}
}

func TestADeadlineCanBeTakenBack(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	_ = theirs.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = theirs.SetReadDeadline(time.Now().Add(time.Hour))
	_ = theirs.SetReadDeadline(time.Time{})
	_, _ = mine.Write([]byte("k"))
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestTheEndOfTheConnectionIsNoEndOfAStream(t *testing.T) {
	client, server := both(t)
	mine, theirs := stream(t, client, server)
	client.Close()
	if _, err := theirs.Read(make([]byte, 1)); err != ErrEnded {
		t.Errorf("a stream that was cut off: %v", err)
	}
	if _, err := mine.Write([]byte("k")); err == nil {
		t.Error("one can write to a connection that ended")
	}
	if _, err := client.Open(); err == nil {
		t.Error("one can open a stream in a connection that ended")
	}
	if _, err := server.Accept(); err == nil {
		t.Error("a connection that ended brings streams")
	}
	<-server.Done()
}

func TestStreamsAreBoundedByTheirOpener(t *testing.T) {
	client, server := both(t)
	go func() {
		for {
			if _, err := server.Accept(); err != nil {
				return
			}
		}
	}()
	for range MaxStreams {
		st, err := client.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Open(); err == nil {
		t.Error("there is no bound")
	}
	if err := server.Err(); err != nil {
		t.Errorf("as many as are allowed ended the connection: %v", err)
	}
}
