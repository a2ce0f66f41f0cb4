package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"golang.org/x/crypto/ssh"
)

// typist is a pty that echoes, without the terminal driver's help.
type typist struct {
	client *ssh.Client
	in     io.WriteCloser
	out    *bufio.Reader
}

// typing is a session that says back what it hears.
const typing = "stty raw -echo; echo typist-is-ready; exec cat"

func newTypist(w way, command string) (*typist, error) {
	client, err := w.dial()
	if err != nil {
		return nil, err
	}
	t := &typist{client: client}
	if err := t.begin(command); err != nil {
		client.Close()
		return nil, err
	}
	return t, nil
}

func (t *typist) begin(command string) error {
	s, err := t.client.NewSession()
	if err != nil {
		return err
	}
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		return err
	}
	if t.in, err = s.StdinPipe(); err != nil {
		return err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return err
	}
	t.out = bufio.NewReader(out)
	if err := s.Start(command); err != nil {
		return err
	}
	return until(t.out, "typist-is-ready")
}

// until reads lines up to the one that ends with mark.
func until(r *bufio.Reader, mark string) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("before «%s»: %w", mark, err)
		}
		for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
			line = line[:len(line)-1]
		}
		if len(line) >= len(mark) && line[len(line)-len(mark):] == mark {
			return nil
		}
	}
}

// key types one key and waits for its echo. No key is a character that a
// banner could hold.
func (t *typist) key() (time.Duration, error) {
	const key = 0x01
	began := time.Now()
	if _, err := t.in.Write([]byte{key}); err != nil {
		return 0, err
	}
	for {
		c, err := t.out.ReadByte()
		if err != nil {
			return 0, err
		}
		if c == key {
			return time.Since(began), nil
		}
	}
}

// keystroke measures the echo of one key, half a millisecond apart. The ways
// take turns of 50 keys, so that all see the same machine.
func (b *bench) keystroke(ctx context.Context) error {
	var typists [3]*typist
	for column, w := range b.ways() {
		t, err := newTypist(w, typing)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		defer t.client.Close()
		typists[column] = t
	}
	const batch = 50
	var samples [3][]float64
	for done := 0; done < b.keystrokes*b.turns; done += batch {
		for column, t := range typists {
			for n := range batch {
				d, err := t.key()
				if err = errors.Join(err, ctx.Err()); err != nil {
					return fmt.Errorf("%s, key %d: %w", b.ways()[column].name, done+n, err)
				}
				samples[column] = append(samples[column], micros(d))
				time.Sleep(500 * time.Microsecond)
			}
		}
	}
	b.t.add(quantiles("keystroke echo p50", µs, samples, 0.5, 120))
	b.t.add(quantiles("keystroke echo p99", µs, samples, 0.99, 0))
	return nil
}

// throughput moves bytes both ways with both clients and their default cipher.
func (b *bench) throughput(ctx context.Context) error {
	for _, m := range []struct {
		what string
		run  func(way, int64) (time.Duration, error)
	}{
		{"bulk down, Go client", goDown},
		{"bulk up, Go client", goUp},
		{"bulk down, ssh(1)", opensshDown},
		{"bulk up, ssh(1)", opensshUp},
	} {
		values, err := b.each(func(w way, _ int) (float64, error) {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			d, err := m.run(w, b.bulk)
			return float64(b.bulk) / (1 << 20) / d.Seconds(), err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", m.what, err)
		}
		b.t.add(row{what: m.what, unit: mibs, values: values, goal: 250})
	}
	return nil
}

const sink = "echo ready; cat >/dev/null; echo done"

func source(n int64) string { return fmt.Sprintf("echo ready; head -c %d /dev/zero", n) }

func goDown(w way, n int64) (time.Duration, error) {
	return goStream(w, source(n), func(_ io.WriteCloser, out *bufio.Reader) error { return drain(out, n) })
}

func goUp(w way, n int64) (time.Duration, error) {
	return goStream(w, sink, func(in io.WriteCloser, out *bufio.Reader) error { return pour(in, out, n) })
}

// goStream times what f does after the far end is ready.
func goStream(w way, remote string, f func(io.WriteCloser, *bufio.Reader) error) (time.Duration, error) {
	client, err := w.dial()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		return 0, err
	}
	in, err := s.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := s.Start(remote); err != nil {
		return 0, err
	}
	return timed(in, bufio.NewReaderSize(out, 64<<10), f)
}

func timed(in io.WriteCloser, out *bufio.Reader, f func(io.WriteCloser, *bufio.Reader) error) (time.Duration, error) {
	if err := until(out, "ready"); err != nil {
		return 0, err
	}
	began := time.Now()
	err := f(in, out)
	return time.Since(began), err
}

func opensshDown(w way, n int64) (time.Duration, error) {
	return opensshStream(w.command(source(n)), func(_ io.WriteCloser, out *bufio.Reader) error { return drain(out, n) })
}

func opensshUp(w way, n int64) (time.Duration, error) {
	return opensshStream(w.command(sink), func(in io.WriteCloser, out *bufio.Reader) error { return pour(in, out, n) })
}

func opensshStream(cmd *exec.Cmd, f func(io.WriteCloser, *bufio.Reader) error) (time.Duration, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	d, err := timed(in, bufio.NewReaderSize(out, 64<<10), f)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	in.Close()
	_ = cmd.Wait()
	return d, err
}

// drain reads exactly n bytes: fewer is a failed measurement, never a fast one.
func drain(out io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, out, n)
	return err
}

// pour writes n bytes, ends the input, and waits until the far end has read
// them all.
func pour(in io.WriteCloser, out *bufio.Reader, n int64) error {
	block := make([]byte, 256<<10)
	for left := n; left > 0; left -= int64(len(block)) {
		if _, err := in.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	if err := in.Close(); err != nil {
		return err
	}
	return until(out, "done")
}
