package app

import "testing"

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("listen = \"127.0.0.1:0\"\n[oidc]\nissuer = \"https://id.example\"\nclient-id = \"x\"\n"))
	f.Add([]byte("[directory]\nurl = \"ldaps://ldap.example\"\n[[workload]]\nissuer = \"https://ci.example\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if values, err := parseConfig(text); err == nil {
			for name := range values {
				if name == "" {
					t.Fatal("a setting without a name")
				}
			}
		}
	})
}
