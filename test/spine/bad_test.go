package spine_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// loginWith tries a token on a new device.
func (i *installation) loginWith(token string) result {
	i.t.Helper()
	return person{i, i.t.TempDir()}.run("login", "--token-file", i.tokenFile(token))
}

func TestLoginTokensThatMustNotWork(t *testing.T) {
	i := up(t, t.TempDir())
	ada := i.first()
	other := up(t, t.TempDir())
	bob := other.first()
	refused := func(t *testing.T, token, word string) {
		t.Helper()
		r := i.loginWith(token)
		if r.code == 0 || !strings.Contains(r.err, "cannot ") || !strings.Contains(r.err, word) {
			t.Errorf("exit %d, want a refusal that says %q: %s%s", r.code, word, r.out, r.err)
		}
	}
	var added struct{ Token string }
	ada.json(&added, "person", "add", "ben", "--group", "operator", "-o", "json")
	ours, err := ledger.ParseToken(added.Token)
	if err != nil {
		t.Fatal(err)
	}
	bob.json(&added, "person", "add", "eve", "--group", "operator", "-o", "json")
	theirs, err := ledger.ParseToken(added.Token)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("wrong", func(t *testing.T) {
		refused(t, ledger.Token{Address: ours.Address, RootHash: ours.RootHash, Secret: strings.Repeat("x", len(ours.Secret))}.String(), "wrong")
	})
	t.Run("of another installation", func(t *testing.T) {
		refused(t, ledger.Token{Address: ours.Address, RootHash: ours.RootHash, Secret: theirs.Secret}.String(), "wrong")
		refused(t, ledger.Token{Address: theirs.Address, RootHash: ours.RootHash, Secret: ours.Secret}.String(), "")
	})
	t.Run("garbage", func(t *testing.T) {
		for _, token := range []string{"x", "hr1...", strings.Repeat("hr1.", 2000)} {
			refused(t, token, "")
		}
	})
	t.Run("replayed", func(t *testing.T) {
		if r := i.loginWith(ours.String()); r.code != 0 {
			t.Fatalf("exit %d: %s", r.code, r.err)
		}
		refused(t, ours.String(), "used already")
	})
	t.Run("a link that is wrong, then one that is used twice", func(t *testing.T) {
		if status, body := i.follow(i.link + "x"); status == http.StatusOK || !strings.Contains(body, "wrong") {
			t.Errorf("a wrong link answers %d", status)
		}
		if status, _ := i.follow(i.link); status != http.StatusOK {
			t.Errorf("the link answers %d", status)
		}
		if status, body := i.follow(i.link); status == http.StatusOK || !strings.Contains(body, "used already") {
			t.Errorf("the used link answers %d", status)
		}
	})
	ada.ok("ledger", "verify")
}

func TestCredentialsOfAnotherInstallation(t *testing.T) {
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	other := up(t, t.TempDir())
	bob := other.first()

	t.Run("a login", func(t *testing.T) {
		if status, said := (person{i, bob.home}).call("Hosts/List", map[string]any{}, nil); status != http.StatusUnauthorized {
			t.Errorf("it answers %d: %s", status, said)
		}
	})
	t.Run("an SSH certificate", func(t *testing.T) {
		if status := bob.knocks(t, i, host); status == nil || !strings.Contains(status.Error(), "unable to authenticate") {
			t.Errorf("the gateway says: %v", status)
		}
		if status := bob.knocks(t, other, bob.hostname()); status != nil {
			t.Errorf("at home the same certificate is refused: %v", status)
		}
	})
	t.Run("a node's certificate", func(t *testing.T) {
		bob.hostname() // its node has joined
		pair, err := tls.LoadX509KeyPair(filepath.Join(other.data, "link", "node.pem"), filepath.Join(other.data, "link", "node.pem"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := (&tls.Dialer{Config: &tls.Config{
			Certificates: []tls.Certificate{pair}, NextProtos: []string{wire.ALPN},
			InsecureSkipVerify: true, // the test plays a node that lies; it is the server that must check
		}}).DialContext(t.Context(), "tcp", i.page)
		if err != nil {
			return // refused in the handshake
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte(`{"v":1,"use":"control","version":"x","mode":"root","floor":"full"}` + "\n"))
		if answer, _ := io.ReadAll(io.LimitReader(c, 4096)); bytes.Contains(answer, []byte("nats_pass")) {
			t.Errorf("a node of another installation is let in: %s", answer)
		}
	})
	ada.ok("ledger", "verify")
}

// knocks offers the person's certificate to a gateway.
func (p person) knocks(t *testing.T, at *installation, host string) error {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.home, "id_handrail"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(filepath.Join(p.home, "id_handrail-cert.pub")); err != nil {
		t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(public.(*ssh.Certificate), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ssh.Dial("tcp", at.ssh, &ssh.ClientConfig{
		User: host, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: patience,
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // whose gateway it is does not matter here
	})
	if err == nil {
		c.Close()
	}
	return err
}

// call calls the API as a client of one's own would.
func (p person) call(method string, ask map[string]any, answer any) (int, string) {
	p.i.t.Helper()
	var login struct{ Token string }
	raw, err := os.ReadFile(filepath.Join(p.home, "login.json"))
	if err == nil {
		err = json.Unmarshal(raw, &login)
	}
	if err != nil {
		p.i.t.Fatal(err)
	}
	body, err := json.Marshal(ask)
	if err != nil {
		p.i.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(p.i.t.Context(), http.MethodPost, "http://"+p.i.page+"/handrail.v1."+method, bytes.NewReader(body))
	if err != nil {
		p.i.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+login.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.i.t.Fatal(err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		p.i.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK && answer != nil {
		if err := json.Unmarshal(said, answer); err != nil {
			p.i.t.Fatalf("%v: %s", err, said)
		}
	}
	return resp.StatusCode, string(said)
}

// signed is a signature by the person's device over what an approval signs.
func (p person) signed(hash []byte) []byte {
	p.i.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.home, "id_handrail"))
	if err != nil {
		p.i.t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		p.i.t.Fatal(err)
	}
	s, err := key.Sign(rand.Reader, append([]byte("handrail-approve-v1\n"), hash...))
	if err != nil {
		p.i.t.Fatal(err)
	}
	return ssh.Marshal(s)
}

func TestApprovalsThatMustNotCount(t *testing.T) {
	i := up(t, t.TempDir())
	i.needWrites()
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	dora := ada.add("dora", "admin")
	var ask asked
	cleo.json(&ask, "elevate", host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "30m", "-o", "json")

	var got struct {
		Approval struct{ SubjectHash []byte }
	}
	if status, said := ben.call("Approvals/Get", map[string]any{"id": ask.Approval}, &got); status != http.StatusOK || len(got.Approval.SubjectHash) != 32 {
		t.Fatalf("Get: %d %s", status, said)
	}
	right := got.Approval.SubjectHash
	changed := bytes.Clone(right)
	changed[0] ^= 1
	for name, approve := range map[string]map[string]any{
		"the hash of another request":      {"id": ask.Approval, "subjectHash": changed, "deviceSignature": ben.signed(changed)},
		"a signature over another request": {"id": ask.Approval, "subjectHash": right, "deviceSignature": ben.signed(changed)},
		"a signature by another device":    {"id": ask.Approval, "subjectHash": right, "deviceSignature": cleo.signed(right)},
	} {
		if status, said := ben.call("Approvals/Approve", approve, nil); status == http.StatusOK {
			t.Errorf("%s counts: %s", name, said)
		}
	}
	cleo.refused(255, "ssh", "--write", host, "--", "true")

	ada.ok("bootstrap", "end", "--yes")
	// In bootstrap a browser without a passkey may approve; from now on nobody may unsigned.
	if status, said := ben.call("Approvals/Approve", map[string]any{"id": ask.Approval, "subjectHash": right}, nil); status == http.StatusOK {
		t.Errorf("an approval without a signature counts: %s", said)
	}
	puppet := ada.puppet(dora)
	if r := puppet.refused(3, "approve", ask.Approval, "--yes"); !strings.Contains(r.err, "is new and may approve from") {
		t.Errorf("why a new approver does not count is not said: %s", r.err)
	}
	cleo.refused(255, "ssh", "--write", host, "--", "true")
	ben.ok("approve", ask.Approval, "--yes")
	cleo.ok("ssh", "--write", host, "--", "true")
	ada.ok("ledger", "verify")
}

// puppet adds somebody after bootstrap, which somebody else agrees to.
func (p person) puppet(agrees person) person {
	p.i.t.Helper()
	var added struct{ Token, Approval string }
	r := p.refused(4, "person", "add", "puppet", "--group", "operator", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &added); err != nil {
		p.i.t.Fatalf("%v: %s", err, r.out)
	}
	agrees.ok("approve", added.Approval, "--yes")
	p.json(&added, "person", "add", "puppet", "--group", "operator", "-o", "json") // collects what was agreed to
	return p.i.enter(added.Token)
}

// strangers is how many connections send nonsense at once.
const strangers = 40

func TestGarbageOnBothPortsIsSurvived(t *testing.T) {
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	noise := make([]byte, 256<<10)
	_, _ = rand.Read(noise)
	hello := append([]byte{0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc}, noise[:16<<10]...)
	for name, garbage := range map[string][]byte{
		"http, a header without end": append([]byte("GET / HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("a"), 200<<10)...),
		"http, malformed":            []byte("POST /handrail.v1.Logins/Redeem HTTP/9.9\r\nContent-Length: -1\r\n\r\n"),
		"tls":                        hello,
		"ssh, a packet too large":    append([]byte("SSH-2.0-x\r\n\xff\xff\xff\xff"), noise...),
		"ssh, a version without end": bytes.Repeat([]byte("SSH-2.0-"), 20<<10),
		"noise":                      noise,
	} {
		t.Run(name, func(t *testing.T) {
			var all sync.WaitGroup
			for n := range strangers {
				all.Go(func() { throw(t.Context(), []string{i.page, i.ssh}[n%2], garbage) })
			}
			all.Wait()
		})
	}
	t.Run("oversized API calls", func(t *testing.T) {
		for _, method := range []string{"Logins/Redeem", "Hosts/Join", "Grants/Request"} {
			status, said := ada.call(method, map[string]any{"token": strings.Repeat("x", 20<<20)}, nil)
			if status < 400 || status == http.StatusInternalServerError {
				t.Errorf("%s answers %d: %.200s", method, status, said)
			}
		}
	})
	if out := ada.ok("ssh", host, "--", "echo alive"); out != "alive\n" {
		t.Errorf("after the garbage: %q", out)
	}
	if status, _ := i.open("http://" + i.page + "/login"); status != http.StatusOK {
		t.Errorf("the page answers %d", status)
	}
	if errs := i.errs.String(); strings.Contains(errs, "panic") || strings.Contains(errs, "started again") {
		t.Errorf("a role fell:\n%s", errs)
	}
	ada.ok("ledger", "verify")
}

// throw sends garbage and hears what comes back, until the server closes or
// has nothing to say.
func throw(ctx context.Context, address string, garbage []byte) {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", address)
	if err != nil {
		return // it may refuse
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(garbage)
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}
