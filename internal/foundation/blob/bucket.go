package blob

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Bucket keeps blobs as objects of S3-compatible storage. It needs five
// requests of it, and one condition: If-None-Match on PUT.
type Bucket struct {
	where
	signer    signer
	pathStyle bool
	client    *http.Client
	tries     int
	pause     time.Duration // before the second try; it doubles
}

const (
	emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

	maxAnswer = 4 << 20 // of a list
	maxError  = 64 << 10
)

func newBucket(w where, s signer, pathStyle bool, trust *tls.Config) *Bucket {
	return &Bucket{
		where: w, signer: s, pathStyle: pathStyle || isLoopback(w.endpoint.Hostname()), tries: 4, pause: 200 * time.Millisecond,
		client: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, ForceAttemptHTTP2: true, DisableCompression: true,
				DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
				TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute, IdleConnTimeout: time.Minute,
				MaxIdleConnsPerHost: 4, MaxResponseHeaderBytes: 64 << 10,
			},
			// A signature is for one host: whoever sends us elsewhere gets an error.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// call is one request, which may be sent more than once.
type call struct {
	method, name string // name "" is the bucket itself
	query        url.Values
	header       http.Header
	body         Source
	hash         string
	verb         string // for errors
}

func (b *Bucket) url(c call) *url.URL {
	u := &url.URL{Scheme: b.endpoint.Scheme, Host: b.endpoint.Host, Path: "/"}
	if b.pathStyle {
		u.Path += b.bucket + "/"
	} else {
		u.Host = b.bucket + "." + u.Host
	}
	if c.name != "" {
		u.Path += b.prefix + c.name
	}
	u.RawQuery = canonicalQuery(c.query)
	return u
}

// do sends a call, again while trying again may help. The answer is 2xx.
func (b *Bucket) do(ctx context.Context, c call) (*http.Response, error) {
	if c.hash == "" {
		c.hash = emptyHash
	}
	for try, pause := 1, b.pause; ; try, pause = try+1, 2*pause {
		resp, err := b.once(ctx, c)
		if err == nil || fault.KindOf(err) != fault.Unavailable || try == b.tries || ctx.Err() != nil {
			return resp, err
		}
		t := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

func (b *Bucket) once(ctx context.Context, c call) (*http.Response, error) {
	var body io.Reader
	if c.body != nil {
		body = io.NewSectionReader(c.body, 0, c.body.Size())
	}
	r, err := http.NewRequestWithContext(ctx, c.method, b.url(c).String(), body)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot %s", c.verb)
	}
	if c.body != nil {
		r.ContentLength = c.body.Size()
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	b.signer.sign(r, c.hash, time.Now())
	resp, err := b.client.Do(r)
	if err != nil {
		return nil, b.unreachable(c, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	return nil, b.refused(c, resp, text)
}

// Put sends a new object, whole, with its hash.
func (b *Bucket) Put(ctx context.Context, name string, from Source) error {
	if err := checkPut(name, from); err != nil {
		return err
	}
	// A server that does not know the condition ignores it and overwrites: then
	// this question is all there is.
	if _, err := b.Stat(ctx, name); fault.KindOf(err) != fault.NotFound {
		if err == nil {
			err = fault.New(fault.Conflict, "cannot keep %s: there is one of that name", name)
		}
		return err
	}
	return b.put(ctx, name, from)
}

func (b *Bucket) put(ctx context.Context, name string, from Source) error {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(from, 0, from.Size()))
	if err == nil && n != from.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep %s", name)
	}
	resp, err := b.do(ctx, call{method: http.MethodPut, name: name, body: from, hash: hex.EncodeToString(h.Sum(nil)),
		header: http.Header{"If-None-Match": {"*"}, "Content-Type": {"application/octet-stream"}}, verb: "keep " + name})
	if err != nil {
		return err
	}
	return drain(resp)
}

func drain(resp *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxError))
	resp.Body.Close()
	return err
}

// Get reads a range of an object.
func (b *Bucket) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := checkRange(name, offset, length); err != nil {
		return nil, err
	}
	ranged := fmt.Sprintf("bytes=%d-", offset)
	if length > 0 {
		ranged += strconv.FormatInt(offset+length-1, 10)
	}
	resp, err := b.do(ctx, call{method: http.MethodGet, name: name, header: http.Header{"Range": {ranged}}, verb: "read " + name})
	if err != nil {
		return nil, err
	}
	from, to, ok := contentRange(resp.Header.Get("Content-Range"))
	switch {
	case resp.StatusCode != http.StatusPartialContent || !ok || from != offset:
		err = fault.New(fault.Unavailable, "cannot read %s: the storage does not answer with the range that was asked for", name)
	case length == -1:
		length = to - from + 1
	case to-from+1 != length:
		err = outside(name, offset, length)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &exactly{in: resp.Body, left: length}, nil
}

// contentRange reads "bytes 0-9/10".
func contentRange(text string) (from, to int64, ok bool) {
	span, found := strings.CutPrefix(text, "bytes ")
	span, _, slash := strings.Cut(span, "/")
	a, z, dash := strings.Cut(span, "-")
	from, err := strconv.ParseInt(a, 10, 64)
	to, err2 := strconv.ParseInt(z, 10, 64)
	return from, to, found && slash && dash && err == nil && err2 == nil && from >= 0 && to >= from
}

// Stat asks for an object's head.
func (b *Bucket) Stat(ctx context.Context, name string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, err
	}
	resp, err := b.do(ctx, call{method: http.MethodHead, name: name, verb: "find " + name})
	if err != nil {
		return Info{}, err
	}
	defer resp.Body.Close()
	at, _ := http.ParseTime(resp.Header.Get("Last-Modified")) // the zero time says that it is not known
	if resp.ContentLength < 0 {
		return Info{}, fault.New(fault.Unavailable, "cannot find %s: the storage does not say how long it is", name)
	}
	return Info{Name: name, Size: resp.ContentLength, Modified: at}, nil
}

// listed is one page of a list.
type listed struct {
	XMLName   xml.Name `xml:"ListBucketResult"`
	Truncated bool     `xml:"IsTruncated"`
	Next      string   `xml:"NextContinuationToken"`
	Contents  []struct {
		Key      string    `xml:"Key"`
		Size     int64     `xml:"Size"`
		Modified time.Time `xml:"LastModified"`
	} `xml:"Contents"`
}

// parseList reads a page of a list below a prefix. What has another name than a
// blob may have is not ours.
func parseList(text []byte, prefix string) (all []Info, next string, err error) {
	var l listed
	if err := xml.Unmarshal(text, &l); err != nil {
		return nil, "", err
	}
	for _, o := range l.Contents {
		name, ours := strings.CutPrefix(o.Key, prefix)
		if ours && ValidName(name) && o.Size >= 0 {
			all = append(all, Info{Name: name, Size: o.Size, Modified: o.Modified})
		}
	}
	if l.Truncated && l.Next == "" {
		return nil, "", errors.New("it says that there is more, and not where")
	}
	if !l.Truncated {
		l.Next = ""
	}
	return all, l.Next, nil
}

// List asks for page after page.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		token := ""
		for {
			all, next, err := b.page(ctx, prefix, token)
			if err == nil && next != "" && next == token {
				err = fault.New(fault.Unavailable, "cannot list blobs: the storage gives the same page again")
			}
			if err != nil {
				yield(Info{}, err)
				return
			}
			for _, i := range all {
				if strings.HasPrefix(i.Name, prefix) && !yield(i, nil) {
					return
				}
			}
			if token = next; token == "" {
				return
			}
		}
	}
}

func (b *Bucket) page(ctx context.Context, prefix, token string) ([]Info, string, error) {
	q := url.Values{"list-type": {"2"}, "prefix": {b.prefix + prefix}}
	if token != "" {
		q.Set("continuation-token", token)
	}
	resp, err := b.do(ctx, call{method: http.MethodGet, query: q, verb: "list blobs"})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, "", fault.Wrap(fault.Unavailable, err, "cannot list blobs")
	}
	all, next, err := parseList(text, b.prefix)
	if err != nil {
		return nil, "", fault.Wrap(fault.Unavailable, err, "cannot list blobs: the answer cannot be read")
	}
	return all, next, nil
}

// Delete deletes an object. Where the bucket keeps versions, the storage keeps
// this one until its own rules let it go.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	resp, err := b.do(ctx, call{method: http.MethodDelete, name: name, verb: "delete " + name})
	if fault.KindOf(err) == fault.NotFound && !isNoBucket(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return drain(resp)
}
