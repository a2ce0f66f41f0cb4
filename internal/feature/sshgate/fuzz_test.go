package sshgate

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestTheUserPartSaysHostAndLevel(t *testing.T) {
	for user, want := range map[string][2]string{"web-1": {"web-1", "read"}, "web-1+write": {"web-1", "write"},
		"h-00000001+read": {"h-00000001", "read"}, "db.example.org": {"db.example.org", "read"}} {
		host, level, err := ParseUser(user)
		if err != nil || host != want[0] || level != want[1] {
			t.Errorf("%q is %q, %q, %v", user, host, level, err)
		}
	}
	for _, user := range []string{"", "+write", "web-1+", "web-1+root", "web-1+write+write", "a b", "-oProxyCommand=x", "../x", "web\n1", strings.Repeat("a", 300)} {
		if host, level, err := ParseUser(user); err == nil {
			t.Errorf("%q was taken as %q, %q", user, host, level)
		}
	}
}

func FuzzUser(f *testing.F) {
	f.Add("web-1+write")
	f.Add("h-0\x00+read")
	f.Fuzz(func(t *testing.T, user string) {
		host, level, err := ParseUser(user)
		if err != nil {
			return
		}
		if level != "read" && level != "write" || host == "" || strings.ContainsAny(host, "/+ \x00\n\x1b@$`\\") {
			t.Fatalf("%q gave %q, %q", user, host, level)
		}
	})
}

func FuzzPayloads(f *testing.F) {
	f.Add(ssh.Marshal(ptyRequest{Term: "xterm", Columns: 1 << 31, Rows: 24}))
	f.Add(ssh.Marshal(setEnv{"LANG", "C"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parse[ptyRequest](b); err == nil && (size(p.Columns) > 4096 || size(p.Rows) > 4096) {
			t.Fatal("a window without bound")
		}
		_, _ = parse[windowChange](b)
		_, _ = parse[setEnv](b)
		_, _ = parse[command](b)
		_, _ = parse[signal](b)
	})
}

func TestWordsOfOthersCannotMoveTheCursor(t *testing.T) {
	if got := clean("a\x1b[2Jb\x07c\u009bd\ne"); got != "a[2Jbcd\ne" {
		t.Fatalf("got %q", got)
	}
}
