package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/term"

	"handrail.dev/handrail/internal/foundation/fault"
)

// confirm asks at the terminal, and goes on only for the wanted answer. With
// nobody there to ask, the error names the command that needs no asking.
func (t *tool) confirm(ctx context.Context, question, want, unasked string) error {
	if !t.interactive() {
		return fault.New(fault.Invalid, "cannot ask: there is no terminal here").WithHint("%s", unasked)
	}
	answer, err := t.ask(ctx, question)
	if err != nil {
		return err
	}
	answer = strings.ToLower(answer)
	if answer == want || (want == "y" && answer == "yes") {
		return nil
	}
	t.say("Nothing was done.")
	return &exit{code: fault.Internal.ExitCode()}
}

// unless asks for a y, unless the person is sure or there is nobody to ask: a
// script that names the command means it.
func (t *tool) unless(ctx context.Context, sure bool, question string) error {
	if sure || !t.interactive() {
		return nil
	}
	return t.confirm(ctx, question, "y", "")
}

// ask asks for a line at the terminal.
func (t *tool) ask(ctx context.Context, question string) (string, error) {
	return t.answer(ctx, question, t.readLine)
}

// answer waits for a person's answer, or for their Ctrl-C: the signal is
// caught by whoever started us, so a read alone would go on waiting.
func (t *tool) answer(ctx context.Context, question string, read func() string) (string, error) {
	fmt.Fprint(t.Stderr, question)
	got := make(chan string, 1)
	go func() { got <- read() }()
	select {
	case line := <-got:
		return strings.TrimSpace(line), nil
	case <-ctx.Done():
		fmt.Fprintln(t.Stderr)
		return "", ctx.Err()
	}
}

// readLine reads a byte at a time, so that what follows the line is left for
// whoever asks next.
func (t *tool) readLine() string {
	var line []byte
	one := make([]byte, 1)
	for len(line) < maxAnswer {
		if n, err := t.Stdin.Read(one); err != nil || n == 0 {
			fmt.Fprintln(t.Stderr)
			break
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	return string(line)
}

// askSecret asks for what must not be shown. The terminal is silent before the
// question is on it: what is pasted early is not shown either.
func (t *tool) askSecret(ctx context.Context, fd int, question string) (string, error) {
	old, err := term.MakeRaw(fd)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot ask without showing the answer").WithHint("handrail login --token-file FILE")
	}
	defer fmt.Fprintln(t.Stderr)
	defer term.Restore(fd, old)
	left := false
	line, err := t.answer(ctx, question, func() string {
		var line string
		line, left = t.readSecret()
		return line
	})
	if err == nil && left {
		err = context.Canceled
	}
	return line, err
}

// readSecret reads a line from a raw terminal; left is Ctrl-C.
func (t *tool) readSecret() (line string, left bool) {
	var typed []byte
	one := make([]byte, 1)
	for len(typed) < maxAnswer {
		if n, err := t.Stdin.Read(one); err != nil || n == 0 {
			break
		}
		switch one[0] {
		case '\r', '\n', 0x04:
			return string(typed), false
		case 0x03:
			return "", true
		case 0x08, 0x7f:
			typed = typed[:max(len(typed)-1, 0)]
		case 0x15:
			typed = typed[:0]
		default:
			typed = append(typed, one[0])
		}
	}
	return string(typed), false
}

const maxAnswer = 4096

// requestID makes a call idempotent: sent twice, it is done once.
func requestID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program first
	return hex.EncodeToString(b[:])
}
