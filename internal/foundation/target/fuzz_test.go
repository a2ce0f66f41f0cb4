package target

import (
	"strings"
	"testing"
)

func FuzzParseSSH(f *testing.F) {
	for _, s := range []string{"ops@web-1", "ops@[::1]:22", "ops@192.0.2.1:2222", "-oProxyCommand=x@y", "a@b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		user, address, err := ParseSSH(text)
		if err == nil && (strings.HasPrefix(user, "-") || strings.ContainsAny(user+address, " \t\r\n\x00")) {
			t.Fatalf("%q is user %q at %q", text, user, address)
		}
	})
}
