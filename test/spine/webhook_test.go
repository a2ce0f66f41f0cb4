package spine_test

import (
	"bufio"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const outsideDir = "../outside"

// told is one line of the receiver.
type told struct {
	Port    int
	Ready   bool
	ID      string
	Wrong   string
	Message struct {
		Type string
		Data struct {
			Seq     int64
			Payload json.RawMessage
		}
	}
}

// receiver is an HTTPS server in node.js that verifies by the specification's
// own library.
type receiver struct {
	t     *testing.T
	url   string
	stdin io.Writer
	lines chan told
}

// listen starts a receiver and makes a configuration that trusts it.
func listen(t *testing.T) *receiver {
	t.Helper()
	if _, err := os.Stat(filepath.Join(outsideDir, "node_modules", "standardwebhooks")); err != nil {
		t.Skip("standardwebhooks is missing (npm ci in test/outside)")
	}
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "receiver"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile := file("receiver.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	keyFile := file("receiver.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	t.Setenv("HANDRAIL_CONFIG", file("handrail.toml", []byte("[webhooks]\nca-file = \"receiver.pem\"\n")))
	cmd := exec.Command("node", "receiver.mjs", certFile, keyFile)
	cmd.Dir, cmd.Stderr = outsideDir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := &receiver{t: t, stdin: in, lines: make(chan told, 4096)}
	go func() {
		defer close(r.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var l told
			if json.Unmarshal(lines.Bytes(), &l) == nil {
				r.lines <- l
			}
		}
	}()
	r.url = fmt.Sprintf("https://127.0.0.1:%d/in", r.next().Port)
	return r
}

func (r *receiver) next() told {
	r.t.Helper()
	select {
	case l, ok := <-r.lines:
		if !ok {
			r.t.Fatal("the receiver ended")
		}
		if l.Wrong != "" {
			r.t.Errorf("somebody else's verification refuses what came: %s", l.Wrong)
		}
		return l
	case <-time.After(patience):
		r.t.Fatal("nothing came")
	}
	return told{}
}

// use gives the receiver the secret that it believes from now on.
func (r *receiver) use(secret string) {
	r.t.Helper()
	if _, err := fmt.Fprintln(r.stdin, secret); err != nil {
		r.t.Fatal(err)
	}
	for !r.next().Ready {
	}
}

func TestAKilledServerGoesOnWhereItWas(t *testing.T) {
	r := listen(t)
	i := up(t, t.TempDir())
	ada := i.first()
	var added struct{ Secret, Approval string }
	ada.json(&added, "webhook", "add", "siem", r.url, "--actions", "person.*", "-o", "json")
	r.use(added.Secret)
	ada.ok("webhook", "test", "siem")
	if l := r.next(); l.Message.Type != "webhook.tested" || l.Message.Data.Payload != nil {
		t.Fatalf("the test came as %+v", l)
	}
	seen := map[int64]string{}
	last, count := int64(0), 0
	take := func() {
		l := r.next()
		seq := l.Message.Data.Seq
		if id, known := seen[seq]; known {
			if id != l.ID {
				t.Errorf("#%d came as %s and as %s", seq, id, l.ID)
			}
			return
		}
		if seq < last {
			t.Errorf("#%d came after #%d", seq, last)
		}
		seen[seq], last = l.ID, seq
		if l.Message.Type == "person.added" {
			count++
		}
	}
	const people = 6
	for n := range people {
		ada.ok("person", "add", fmt.Sprintf("p%d", n), "--group", "developer")
		if n == people/2 {
			for _, pid := range i.role("server-role") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			i.until("the server to be back", func() bool { return ada.run("status").code == 0 })
		}
	}
	for count < people {
		take()
	}
	i.until("the deliveries", func() bool { return strings.Contains(ada.ok("webhook", "deliveries", "siem"), "person.added") })
	var rotated struct{ Secret string }
	ada.json(&rotated, "webhook", "rotate", "siem", "-o", "json")
	ada.ok("webhook", "test", "siem") // signed by the old one too
	for r.next().Message.Type != "webhook.tested" {
	}
	r.use(rotated.Secret)
	ada.ok("webhook", "test", "siem")
	ada.ok("webhook", "remove", "siem", "--yes")
	if out := ada.ok("webhook", "list"); strings.Contains(out, "siem ") {
		t.Errorf("it is still there:\n%s", out)
	}
	ada.ok("ledger", "verify")
}

// operation is of the document what somebody needs who has nothing else.
type operation struct {
	Security    []map[string][]string
	Action      string `json:"x-handrail-action"`
	Audit       string `json:"x-handrail-audit"`
	Stream      bool   `json:"x-handrail-stream"`
	RequestBody struct {
		Content map[string]struct {
			Schema struct {
				Ref string `json:"$ref"`
			}
		}
	}
	Responses map[string]struct {
		Content map[string]struct {
			Schema struct {
				Ref string `json:"$ref"`
			}
		}
	}
}

// A client that knows the document and nothing else calls everything that only
// looks, and understands what it gets.
func TestTheAPIIsWhatItsDocumentSays(t *testing.T) {
	i := up(t, t.TempDir())
	ada := i.first()
	status, text := i.calling(i.page, http.MethodGet, "/v1/openapi.json", nil)
	if status != http.StatusOK || text != ada.ok("api") {
		t.Fatalf("the document comes with %d, and is not what the command prints", status)
	}
	var doc struct {
		Paths      map[string]map[string]operation
		Components struct {
			Schemas map[string]struct {
				Properties map[string]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(ada.home, "login.json"))
	if err != nil {
		t.Fatal(err)
	}
	var login struct{ Token string }
	if err := json.Unmarshal(raw, &login); err != nil || login.Token == "" {
		t.Fatalf("no login: %v", err)
	}
	called := 0
	for path, methods := range doc.Paths {
		op, ok := methods["post"]
		if !ok || op.Stream || op.Audit == "entry" || op.Action == "" {
			continue
		}
		called++
		head := http.Header{"Content-Type": {"application/json"}}
		if code, _ := i.calling(i.page, http.MethodPost, path, head); code != http.StatusUnauthorized {
			t.Errorf("%s without a login is answered with %d", path, code)
		}
		head.Set("Authorization", "Bearer "+login.Token)
		code, body := i.calling(i.page, http.MethodPost, path, head)
		ref := op.Responses["200"].Content["application/json"].Schema.Ref
		if code != http.StatusOK {
			ref = "#/components/schemas/connect.Error"
			if code == http.StatusNotFound && !strings.Contains(body, "handrail.v1.Fault") || code >= 500 && code != http.StatusServiceUnavailable {
				t.Errorf("%s is answered with %d %s", path, code, body)
			}
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Errorf("%s is answered with %d %s", path, code, body)
			continue
		}
		for name := range got {
			if _, said := doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")].Properties[name]; !said {
				t.Errorf("%s answers with %q, which the document does not know in %s", path, name, ref)
			}
		}
	}
	if called < 30 {
		t.Errorf("only %d calls look", called)
	}
}
