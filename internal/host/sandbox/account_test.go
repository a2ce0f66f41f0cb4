package sandbox

import (
	"strings"
	"testing"
)

// FuzzAccounts reads what stands in /etc/passwd.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\nops:x:1000:1000:Ops,,,:/home/ops:/bin/bash\n", "ops")
	f.Fuzz(func(t *testing.T, passwd, name string) {
		if a, ok := findAccount([]byte(passwd), name); ok && !strings.Contains("\n"+passwd, "\n"+name+":") {
			t.Fatalf("%q of %q is the account %+v", name, passwd, a)
		}
	})
}
