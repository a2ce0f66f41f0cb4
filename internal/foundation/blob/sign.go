package blob

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// signer signs requests as S3 wants it: AWS Signature Version 4, with the hash
// of the whole body in the signature.
type signer struct {
	access, secret, token string
	region                string
}

const (
	algorithm = "AWS4-HMAC-SHA256"
	service   = "s3"
	longTime  = "20060102T150405Z"
	shortTime = "20060102"
)

// sign adds the time, the body's hash and the signature. Every header that is
// set is signed.
func (s signer) sign(r *http.Request, bodyHash string, now time.Time) {
	now = now.UTC()
	r.Header.Set("X-Amz-Date", now.Format(longTime))
	r.Header.Set("X-Amz-Content-Sha256", bodyHash)
	if s.token != "" {
		r.Header.Set("X-Amz-Security-Token", s.token)
	}
	headers, names := canonicalHeaders(r)
	request := strings.Join([]string{r.Method, canonicalPath(r.URL.Path), canonicalQuery(r.URL.Query()), headers, names, bodyHash}, "\n")
	scope := strings.Join([]string{now.Format(shortTime), s.region, service, "aws4_request"}, "/")
	sum := sha256.Sum256([]byte(request))
	text := strings.Join([]string{algorithm, now.Format(longTime), scope, hex.EncodeToString(sum[:])}, "\n")
	key := []byte("AWS4" + s.secret)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	r.Header.Set("Authorization", algorithm+" Credential="+s.access+"/"+scope+",SignedHeaders="+names+",Signature="+hex.EncodeToString(mac(key, text)))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func canonicalHeaders(r *http.Request) (text, names string) {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	all := map[string]string{"host": host}
	keys := []string{"host"}
	for name, values := range r.Header {
		name = strings.ToLower(name)
		all[name] = strings.Join(values, ",")
		keys = append(keys, name)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k + ":" + strings.TrimSpace(all[k]) + "\n")
	}
	return b.String(), strings.Join(keys, ";")
}

func canonicalPath(path string) string {
	if path == "" {
		return "/"
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = percent(p)
	}
	return strings.Join(parts, "/")
}

func canonicalQuery(q url.Values) string {
	var pairs []string
	for name, values := range q {
		for _, v := range values {
			pairs = append(pairs, percent(name)+"="+percent(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// percent encodes as RFC 3986 says: everything but letters, digits and -._~.
func percent(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
	}
	return b.String()
}
