package blob

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// TestSignaturesAreThoseThatAmazonPublished are the examples of "Authenticating
// Requests: Using the Authorization Header" of the API reference of S3.
func TestSignaturesAreThoseThatAmazonPublished(t *testing.T) {
	s := signer{access: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", region: "us-east-1"}
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	const host = "https://examplebucket.s3.amazonaws.com"
	for what, c := range map[string]struct {
		method, url, hash, want string
		header                  map[string]string
	}{
		"GET of a range": {"GET", host + "/test.txt", emptyHash, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
			map[string]string{"Range": "bytes=0-9"}},
		"PUT": {"PUT", host + "/test$file.text", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
			map[string]string{"Date": "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class": "REDUCED_REDUNDANCY"}},
		"a query without a value": {"GET", host + "/?lifecycle", emptyHash, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", nil},
		"a list":                  {"GET", host + "/?max-keys=2&prefix=J", emptyHash, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", nil},
	} {
		r, err := http.NewRequest(c.method, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range c.header {
			r.Header.Set(name, value)
		}
		s.sign(r, c.hash, at)
		_, got, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
		if got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}

// FuzzAnswers reads what a server that lies may say.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken><Contents><Key>p/ab/../x</Key><Size>3</Size><LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>`))
	f.Add([]byte(`<Error><Code>NoSuchBucket</Code><Message>x</Message></Error>`))
	f.Add([]byte("bytes 0-9/10"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, next, err := parseList(text, "p/")
		for _, i := range all {
			if !ValidName(i.Name) || i.Size < 0 {
				t.Fatalf("listed %+v", i)
			}
		}
		if err != nil && (all != nil || next != "") {
			t.Fatalf("an error and a list: %v", err)
		}
		if r := parseRefusal(text); strings.ContainsAny(r.Message, "\x1b\n\x00") || len(r.Message) > 200 {
			t.Fatalf("message %q", r.Message)
		}
		if from, to, ok := contentRange(string(text)); ok && (from < 0 || to < from) {
			t.Fatalf("range %d-%d", from, to)
		}
	})
}

func TestAClockThatIsWrongIsNamed(t *testing.T) {
	b := newBucket(where{bucket: "recordings", endpoint: mustURL(t, "https://s3.example.com")}, signer{access: "a"}, true, nil)
	resp := &http.Response{StatusCode: 403, Header: http.Header{"Date": {time.Now().Add(-20 * time.Minute).UTC().Format(http.TimeFormat)}}}
	err := b.refused(call{verb: "keep x"}, resp, []byte("<Error><Code>RequestTimeTooSkewed</Code></Error>"))
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "20m") || fault.From(err).Hint != "timedatectl" {
		t.Fatalf("%v (hint %q)", err, fault.From(err).Hint)
	}
}

func TestAPageWithoutAnEndIsAnError(t *testing.T) {
	text, err := xml.Marshal(listed{Truncated: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := parseList(text, ""); err == nil {
		t.Fatal("a list that goes on nowhere was taken for whole")
	}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
