package blob

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Settings say where blobs lie.
type Settings struct {
	Bucket    string `toml:"bucket" json:"bucket"`                   // s3://name/prefix, or file:///folder
	Endpoint  string `toml:"endpoint" json:"endpoint,omitempty"`     // https://…; empty: Amazon's, of the region
	Region    string `toml:"region" json:"region,omitempty"`         // empty: us-east-1
	PathStyle bool   `toml:"path-style" json:"path_style,omitempty"` // the bucket stands in the path, not in the host's name
	CA        string `toml:"ca-file" json:"ca,omitempty"`            // whom to trust beside the system's; the file's text once it was read
	Access    string `toml:"access-key" json:"access_key,omitempty"` // the key's id
	Secret    string `toml:"-" json:"secret,omitempty"`              // never in the file itself
	Token     string `toml:"-" json:"token,omitempty"`               // of a key for a while
	KeyFile   string `toml:"secret-file" json:"-"`                   // holds Secret; a second line is Token
}

var (
	bucketRule = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`) })
	regionRule = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9-]{1,40}$`) })
)

// where is Settings, taken apart.
type where struct {
	folder         string // of a file: URL; everything else is empty
	bucket, prefix string
	endpoint       *url.URL
}

// Check says what is wrong with settings, without their secrets.
func (s Settings) Check() error {
	_, err := s.parse()
	return err
}

func (s Settings) parse() (w where, err error) {
	u, err := url.Parse(s.Bucket)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return w, fault.New(fault.Invalid, "cannot use the bucket %q: it is s3://NAME/PREFIX or file:///FOLDER", s.Bucket)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) || filepath.Clean(u.Path) == "/" {
			return w, fault.New(fault.Invalid, "cannot use the bucket %q: file:/// and the whole path of a folder", s.Bucket)
		}
		return where{folder: filepath.Clean(u.Path)}, nil
	case "s3":
	default:
		return w, fault.New(fault.Invalid, "cannot use the bucket %q: it is s3://NAME/PREFIX or file:///FOLDER", s.Bucket)
	}
	w.bucket, w.prefix = u.Host, strings.Trim(u.Path, "/")
	if !bucketRule().MatchString(w.bucket) || strings.Contains(w.bucket, "..") {
		return w, fault.New(fault.Invalid, "cannot use the bucket %q: small letters, digits, dots and hyphens", w.bucket)
	}
	if w.prefix != "" {
		if !ValidName(w.prefix) || len(w.prefix) > 100 {
			return w, fault.New(fault.Invalid, "cannot use the prefix %q of the bucket: small letters, digits, dots and hyphens", w.prefix)
		}
		w.prefix += "/"
	}
	if s.Region != "" && !regionRule().MatchString(s.Region) {
		return w, fault.New(fault.Invalid, "cannot use the region %q", s.Region)
	}
	endpoint := s.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + s.region() + ".amazonaws.com"
	}
	w.endpoint, err = url.Parse(endpoint)
	if err != nil || w.endpoint.Host == "" || w.endpoint.User != nil || strings.Trim(w.endpoint.Path, "/") != "" || w.endpoint.RawQuery != "" {
		return w, fault.New(fault.Invalid, "cannot use the endpoint %q: https://HOST[:PORT]", endpoint)
	}
	switch {
	case w.endpoint.Scheme == "https":
	case w.endpoint.Scheme == "http" && isLoopback(w.endpoint.Hostname()):
	default:
		return w, fault.New(fault.Invalid, "cannot use the endpoint %s: what is not on this machine has to be https", endpoint)
	}
	if s.Access == "" {
		return w, fault.New(fault.Invalid, "cannot use the bucket %s: there is no access-key", w.bucket).WithHint("handrail config explain --help")
	}
	return w, nil
}

func (s Settings) region() string {
	if s.Region == "" {
		return "us-east-1"
	}
	return s.Region
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Open opens what the settings name. It does not go there yet.
func (s Settings) Open() (Store, error) {
	w, err := s.parse()
	if err != nil {
		return nil, err
	}
	if w.folder != "" {
		return OpenFiles(w.folder)
	}
	if s.Secret == "" {
		return nil, fault.New(fault.Invalid, "cannot use the bucket %s: there is no secret key", w.bucket).WithHint("handrail config explain --help")
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, fault.New(fault.Invalid, "cannot use the ca-file of the bucket %s: no certificate in it", w.bucket)
		}
		trust.RootCAs = pool
	}
	return newBucket(w, signer{access: s.Access, secret: s.Secret, token: s.Token, region: s.region()}, s.PathStyle, trust), nil
}

// Place says where blobs lie, for people; never how to get in.
func (s Settings) Place() string {
	w, err := s.parse()
	switch {
	case err != nil:
		return "nowhere"
	case w.folder != "":
		return w.folder
	}
	return "s3://" + w.bucket + "/" + w.prefix + " at " + w.endpoint.Host
}
