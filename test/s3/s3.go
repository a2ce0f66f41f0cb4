// Package s3 runs a real S3-compatible server for tests: Versity's gateway over
// a folder, private to them, on a port of loopback.
package s3

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/daemon"
	"handrail.dev/handrail/test/port"
)

// What the tests log in with, and the bucket that there is.
const (
	Access = "handrail-tests"
	Secret = "secret-of-the-tests"
	Bucket = "recordings"
)

// Server is a running server.
type Server struct {
	t      testing.TB
	Dir    string // holds the buckets as folders, objects as files
	URL    string
	CA     string // PEM, if it speaks TLS
	args   []string
	daemon *daemon.Daemon
}

// program finds the server, which test/need.sh installs.
func program() string {
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path
	}
	for _, dir := range []string{os.Getenv("GOBIN"), filepath.Join(os.Getenv("GOPATH"), "bin"), filepath.Join(os.Getenv("HOME"), "go", "bin")} {
		path := filepath.Join(dir, "versitygw")
		if st, err := os.Stat(path); filepath.IsAbs(path) && err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// Start starts a server with one bucket, or skips the test where there is none.
func Start(t testing.TB, tls bool) *Server {
	t.Helper()
	if program() == "" {
		t.Skip("no S3 server here (test/need.sh installs versitygw)")
	}
	address, release, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	s := &Server{t: t, Dir: t.TempDir(), URL: "http://" + address}
	s.args = []string{"--port", address, "--quiet", "--keep-alive"}
	if tls {
		keys := t.TempDir()
		s.certificate(keys)
		s.URL = "https://" + strings.Replace(address, "127.0.0.1", "localhost", 1)
		s.args = append(s.args, "--cert", filepath.Join(keys, "cert.pem"), "--key", filepath.Join(keys, "key.pem"))
	}
	// What an object is called lies beside it: not every file system of a test
	// machine has extended attributes.
	beside := t.TempDir()
	s.args = append(s.args, "posix", "--sidecar", beside, s.Dir)
	if err := os.Mkdir(filepath.Join(s.Dir, Bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.Again()
	return s
}

// Again starts the server that Stop has ended, on the same data and port.
func (s *Server) Again() {
	s.t.Helper()
	cmd := exec.Command(program(), s.args...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Access, "ROOT_SECRET_KEY="+Secret)
	_, address, _ := strings.Cut(s.URL, "://")
	s.daemon = daemon.Start(s.t, cmd, address)
}

// Stop kills the server; what it holds stays.
func (s *Server) Stop() {
	s.daemon.Stop()
}

func (s *Server) certificate(dir string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	for name, text := range map[string][]byte{"cert.pem": []byte(s.CA), "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}
