package blob

import (
	"encoding/xml"
	"errors"
	"net/http"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// refusal is an error as the storage says it.
type refusal struct {
	XMLName xml.Name `xml:"Error"`
	Code    string   `xml:"Code"`
	Message string   `xml:"Message"`
	Region  string   `xml:"Region"`
}

// parseRefusal reads an error's body; what cannot be read is the zero value.
func parseRefusal(text []byte) (r refusal) {
	if xml.Unmarshal(text, &r) != nil {
		return refusal{}
	}
	r.Message = strings.Map(func(c rune) rune { // it goes to terminals and logs
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return ' '
		}
		return c
	}, r.Message)
	if len(r.Message) > 200 {
		r.Message = r.Message[:200]
	}
	return r
}

const askSettings = "handrail config explain"

// skew is how far clocks may be apart; S3 refuses beyond 15 minutes.
const skew = 5 * time.Minute

// refused turns an answer into an error that says what to do.
func (b *Bucket) refused(c call, resp *http.Response, text []byte) error {
	r := parseRefusal(text)
	if d := drift(resp); resp.StatusCode == http.StatusForbidden && (r.Code == "RequestTimeTooSkewed" || d > skew) {
		return fault.New(fault.Denied, "cannot %s in bucket %s: this machine's clock and the storage's are %s apart", c.verb, b.bucket, d.Round(time.Second)).
			WithHint("timedatectl")
	}
	switch r.Code {
	case "SignatureDoesNotMatch":
		return fault.New(fault.Denied, "cannot %s in bucket %s: the secret key is not that of access key %s", c.verb, b.bucket, b.signer.access).WithHint(askSettings)
	case "InvalidAccessKeyId", "InvalidToken", "ExpiredToken":
		return fault.New(fault.Denied, "cannot %s in bucket %s: the storage does not know access key %s (any more)", c.verb, b.bucket, b.signer.access).WithHint(askSettings)
	case "NoSuchBucket":
		return &noBucket{fault.New(fault.NotFound, "cannot %s: there is no bucket %s at %s", c.verb, b.bucket, b.endpoint.Host).WithHint("make the bucket there; none is made for you")}
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException":
		region := r.Region
		if region == "" {
			region = resp.Header.Get("X-Amz-Bucket-Region")
		}
		return fault.New(fault.Invalid, "cannot %s: bucket %s is not in region %s%s", c.verb, b.bucket, b.signer.region, orNothing(" but in ", region)).WithHint(askSettings)
	case "InvalidRange":
		return fault.New(fault.Invalid, "cannot %s: it is not that long", c.verb)
	case "ConditionalRequestConflict", "SlowDown", "RequestTimeout", "OperationAborted":
		return fault.New(fault.Unavailable, "cannot %s in bucket %s: %s", c.verb, b.bucket, r.Code)
	}
	return b.refusedByStatus(c, resp.StatusCode, r)
}

func (b *Bucket) refusedByStatus(c call, status int, r refusal) error {
	what := http.StatusText(status) + orNothing(": ", r.Message)
	switch {
	// Versity's answers 404 to a key that it does not know.
	case status == http.StatusNotFound && r.Code != "" && r.Code != "NoSuchKey" && r.Code != "NotFound":
		return fault.New(fault.Denied, "cannot %s in bucket %s: the storage does not know access key %s (%s)", c.verb, b.bucket, b.signer.access, what).WithHint(askSettings)
	case status == http.StatusForbidden:
		return fault.New(fault.Denied, "cannot %s in bucket %s: access key %s may not (%s)", c.verb, b.bucket, b.signer.access, what).
			WithHint("allow it s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket")
	case status == http.StatusNotFound:
		return fault.New(fault.NotFound, "cannot %s: there is no such blob", c.verb)
	case status == http.StatusPreconditionFailed:
		return fault.New(fault.Conflict, "cannot %s: there is one of that name", c.verb)
	case status == http.StatusRequestedRangeNotSatisfiable:
		return fault.New(fault.Invalid, "cannot %s: it is not that long", c.verb)
	case status >= 500 && status != http.StatusNotImplemented || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return fault.New(fault.Unavailable, "cannot %s in bucket %s: %s", c.verb, b.bucket, what)
	case status/100 == 3:
		return fault.New(fault.Invalid, "cannot %s: %s sends requests for bucket %s elsewhere", c.verb, b.endpoint.Host, b.bucket).WithHint(askSettings)
	}
	return fault.New(fault.Invalid, "cannot %s in bucket %s: %s", c.verb, b.bucket, what)
}

// unreachable is an error of the way there.
func (b *Bucket) unreachable(c call, err error) error {
	return fault.Wrap(fault.Unavailable, err, "cannot %s: the storage %s does not answer", c.verb, b.endpoint.Host)
}

// noBucket is a NotFound that is not about one blob.
type noBucket struct{ is *fault.Error }

// Error is the fault's text.
func (n *noBucket) Error() string { return n.is.Error() }

// Unwrap shows the fault to whoever asks for its kind.
func (n *noBucket) Unwrap() error { return n.is }

func isNoBucket(err error) bool {
	var n *noBucket
	return errors.As(err, &n)
}

// drift is how far the storage's clock is from ours.
func drift(resp *http.Response) time.Duration {
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0
	}
	return time.Since(at).Abs()
}

func orNothing(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}
