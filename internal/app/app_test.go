package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
)

// TestMain becomes a caller of the local door when a test asks for one under
// another account, or a migration that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HANDRAIL_TEST_ASK"); dir != "" {
		if _, err := askLocal(context.Background(), dir, "login", localQuestion{}); err != nil {
			os.Stdout.WriteString(fault.KindOf(err).String())
		} else {
			os.Stdout.WriteString("answered")
		}
		os.Exit(0)
	}
	if dir := os.Getenv(migrateEnv); dir != "" {
		fmt.Fprintln(os.Stderr, migrateWithoutEnd(place(dir)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func ring(t *testing.T) *keyring.Ring {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(dir+"/keys", dir+"/root", "handrail/test"); err != nil {
		t.Fatal(err)
	}
	r, err := keyring.Open(dir + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// startFront serves "page" on a port; nodes are counted.
func startFront(t *testing.T, plain bool) (address string, pool *keyring.Ring, nodes chan string) {
	t.Helper()
	r := ring(t)
	cert, err := r.ServerCertificate([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nodes = make(chan string, 1)
	f := newFront(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1", wire.ALPN}}, l.Addr(),
		func(_ context.Context, c *tls.Conn) {
			nodes <- c.ConnectionState().NegotiatedProtocol
			c.Close()
		})
	f.plain = plain
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{
		TLSConfig: &tls.Config{NextProtos: []string{"h2", "http/1.1"}},
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page "+r.Proto) }),
	}
	go func() { _ = f.serve(ctx, l) }()
	for _, q := range []*queue{f.http, f.web} {
		go func() { _ = srv.Serve(q) }()
	}
	t.Cleanup(func() { cancel(); l.Close(); srv.Close() })
	return l.Addr().String(), r, nodes
}

func fetch(t *testing.T, client *http.Client, url string) (string, int) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), resp.StatusCode
}

func TestOnePortSpeaksToBrowsersCommandsAndNodes(t *testing.T) {
	address, r, nodes := startFront(t, true)
	if body, _ := fetch(t, &http.Client{Transport: &http.Transport{}}, "http://"+address); body != "page HTTP/1.1" {
		t.Errorf("a browser on loopback got %q", body)
	}
	secure := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: r.CAPool(), ServerName: keyring.ServerName}}}
	if body, _ := fetch(t, secure, "https://"+address); body != "page HTTP/2.0" {
		t.Errorf("a command got %q", body)
	}
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: r.CAPool(), ServerName: keyring.ServerName, NextProtos: []string{wire.ALPN}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := <-nodes; got != wire.ALPN {
		t.Errorf("a node came in as %q", got)
	}
}

func TestOffLoopbackPlainTextIsToldToUseHTTPS(t *testing.T) {
	address, _, _ := startFront(t, false)
	body, code := fetch(t, &http.Client{Transport: &http.Transport{}}, "http://"+address)
	if code != http.StatusBadRequest || !strings.Contains(body, "https://") {
		t.Errorf("got %d %q", code, body)
	}
}

func TestOnlyTheOwnerIsHeardAtTheLocalDoor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("calling under other accounts needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "handrail-local")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(place(dir).at("run", "server"), 0o755); err != nil {
		t.Fatal(err)
	}
	const owner = 54321
	door := &localDoor{owner: owner, supervise: owner, login: func(context.Context) (localAnswer, error) { return localAnswer{Token: "x"}, nil }}
	l, err := door.listen(place(dir).control())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = door.serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	for uid, want := range map[uint32]string{owner: "answered", 54322: "denied", 0: "answered"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "HANDRAIL_TEST_ASK="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("as account %d: %v", uid, err)
		}
		if string(out) != want {
			t.Errorf("account %d was %q, want %q", uid, out, want)
		}
	}
}

func TestAPortThatIsTakenIsAnErrorOnlyWhenItWasAskedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr)
	if _, err := openPort("page", "--listen", taken.String(), 0); fault.KindOf(err) != fault.Conflict {
		t.Errorf("asking for a taken port gives %v", err)
	}
	next, err := openPort("page", "--listen", "", taken.Port)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.Addr().String() == taken.String() {
		t.Error("two listeners on one port")
	}
}

func TestAGivenCertificateIsReadFromItsStartEachTime(t *testing.T) {
	r := ring(t)
	cert, err := r.ServerCertificate([]string{"example.org"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	names := []string{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	blocks := []*pem.Block{{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, {Type: "PRIVATE KEY", Bytes: key}}
	for range 2 { // a server that starts again gets the same open files
		var fds [2]int
		for i, name := range names {
			if err := os.WriteFile(name, pem.EncodeToMemory(blocks[i]), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, f); err != nil {
				t.Fatal(err)
			}
			if fds[i], err = syscall.Dup(int(f.Fd())); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		if _, err := givenCertificate(fds[0], fds[1]); err != nil {
			t.Error(err)
		}
	}
}
