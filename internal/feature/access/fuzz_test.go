package access

import "testing"

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"grant":"g-af53ccfq","person":"p-s3mwj0yf","targets":[{"id":"h-mmwh41hd"}],"for_ms":300000}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRequest(raw)
		if err != nil {
			return
		}
		if d := r.describe(); d.Summary == "" {
			t.Fatal("nobody can see what is asked for")
		}
	})
}
