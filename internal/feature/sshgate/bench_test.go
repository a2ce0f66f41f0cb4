package sshgate_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// The other end of every benchmark is a process on a stand-in node: what is
// measured is gateway, session, recorder, doorway and ledger, without sandbox.

func BenchmarkSetUp(b *testing.B) {
	w := newWorld(b)
	ada := w.person("ada", "developer")
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		conn := ada.dial("web-1")
		s := must(conn.NewSession())
		if err := s.Run("exit 0"); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		conn.Close()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}

func BenchmarkKeystrokeEcho(b *testing.B) {
	w := newWorld(b)
	s := must(w.person("ada", "developer").dial("web-1").NewSession())
	fatal(b, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	in, out := must(s.StdinPipe()), must(s.StdoutPipe())
	fatal(b, s.Start("stty raw -echo; echo ready; cat"))
	buf, seen := make([]byte, 256), []byte(nil)
	for !bytes.Contains(seen, []byte("ready")) {
		n := must(out.Read(buf))
		seen = append(seen, buf[:n]...)
	}
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		_, _ = in.Write([]byte("x"))
		must(out.Read(buf))
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "µs-p99")
}

func BenchmarkBulkDown(b *testing.B) {
	w := newWorld(b)
	conn := w.person("ada", "developer").dial("web-1")
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		s := must(conn.NewSession())
		s.Stdout = io.Discard
		fatal(b, s.Run(fmt.Sprintf("head -c %d /dev/zero", size)))
	}
}

func BenchmarkBulkUp(b *testing.B) {
	w := newWorld(b)
	conn := w.person("ada", "developer").dial("web-1")
	const size = 256 << 20
	block := make([]byte, 256<<10)
	b.SetBytes(size)
	for b.Loop() {
		s := must(conn.NewSession())
		in := must(s.StdinPipe())
		fatal(b, s.Start("cat >/dev/null"))
		for range size / len(block) {
			_, _ = in.Write(block)
		}
		in.Close()
		fatal(b, s.Wait())
	}
}

// BenchmarkIdleMemory counts both ends, since they share this process: the
// figure is an upper bound of what the gateway holds for one idle session.
func BenchmarkIdleMemory(b *testing.B) {
	const sessions = 40 // one connection each
	for b.Loop() {
		w := newWorld(b)
		ada := w.person("ada", "developer")
		before := used()
		for range sessions {
			s := must(ada.dial("web-1").NewSession())
			fatal(b, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
			fatal(b, s.Start("sleep 600"))
		}
		eventually(b, "all are live", func() bool { return w.sessions.CountLive() == sessions })
		b.ReportMetric(float64(used()-before)/sessions/1024, "KiB/session")
	}
}

func used() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
