package session

import (
	"slices"
	"testing"
)

func TestCommandsAreFoundBetweenMarksHoweverTheyAreCut(t *testing.T) {
	out := "\x1b]133;A\a$ \x1b]133;B\algs\b\b\b\x1b[Kls -l\r\n\x1b]133;C\x1b\\total 0\r\n\x1b]133;D;0\a\x1b]133;A\a$ \x1b]133;B\a\r\n\x1b]133;C\a\x1b]133;B\adf -h\r\n\x1b]133;C\a"
	want := []string{"ls -l", "df -h"}
	for cut := range len(out) {
		var s labels
		got := append(s.scan([]byte(out[:cut])), s.scan([]byte(out[cut:]))...)
		if !slices.Equal(got, want) {
			t.Fatalf("cut at %d: %q", cut, got)
		}
	}
	var s labels
	var got []string
	for i := range len(out) {
		got = append(got, s.scan([]byte(out[i:i+1]))...)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("byte by byte: %q", got)
	}
}

func TestCommandsAreFoundAtOurOwnPrompt(t *testing.T) {
	prompt := "\x1b[41m PRODUCTION \x1b[0m read 29m ada@web-1:~/logs$ "
	for name, c := range map[string]struct{ out, want string }{
		"typed":           {"tail -f syslog\r\n", "tail -f syslog"},
		"taken back":      {"catt\b\x1b[K x\r\n", "cat x"},
		"from history":    {"make\b\b\b\b\x1b[Kgit log\r\n", "git log"},
		"inserted before": {"date\x1b[4D\x1b[1@u\b\x1b[Cp\r\n", "upate"},
		"typed over":      {"abc\b\b\bxyz\r\n", "xyz"},
	} {
		s := labels{prompt: []byte("ada@web-1:")}
		got := s.scan([]byte("motd\r\n" + prompt + c.out))
		if len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	s := labels{prompt: []byte("ada@web-1:")}
	if got := s.scan([]byte("ada@web-1: no prompt\r\n" + prompt + "\r\n")); len(got) != 0 {
		t.Errorf("found %q where there is no command", got)
	}
}

func FuzzLabels(f *testing.F) {
	f.Add([]byte("\x1b]133;B\als\x1b]133;C\a"), 3)
	f.Add([]byte("ada@web-1:~$ ls\x1b[999999999999C\x1b[5P\r\n"), 7)
	f.Fuzz(func(t *testing.T, out []byte, cut int) {
		s := labels{prompt: []byte("ada@web-1:")}
		cut = min(max(cut, 0), len(out))
		for _, part := range [][]byte{out[:cut], out[cut:]} {
			for _, text := range s.scan(part) {
				if len([]rune(text)) > maxLabel+1 || text == "" {
					t.Fatalf("a label of %d runes", len([]rune(text)))
				}
			}
		}
		if len(s.held) > maxHeld+len(oscMark) || len(s.typed) > 4*maxLabel || len(s.line) > maxLine {
			t.Fatal("it holds too much")
		}
	})
}
