package spine_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pipeline vouches for workloads, as a build system does.
func pipeline(t *testing.T) (issuer string, token func(subject string) string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "RSA", "kid": "1", "use": "sig", "n": encode(key.N.Bytes()), "e": "AQAB"}}})
	}))
	t.Cleanup(server.Close)
	return server.URL, func(subject string) string {
		head, _ := json.Marshal(map[string]any{"alg": "RS256", "kid": "1"})
		now := time.Now()
		body, _ := json.Marshal(map[string]any{
			"iss": server.URL, "sub": subject, "aud": "handrail", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
		})
		signed := encode(head) + "." + encode(body)
		sum := sha256.Sum256([]byte(signed))
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return signed + "." + encode(sig)
	}
}

// certificate is one that a robot made itself: its key alone counts.
func certificate(t *testing.T, dir, name string, ends time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestRobotsActForTheirOwners(t *testing.T) {
	needRoot(t)
	issuer, token := pipeline(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "handrail.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[[workload]]\nissuer = %q\njwks = %q\n", issuer, issuer+"/keys"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HANDRAIL_CONFIG", config)
	i := up(t, t.TempDir())
	i.needShells()
	first := i.first()
	host := first.hostname()
	owner := first.add("bob", "admin")

	// By its workload.
	first.ok("robot", "add", "nightly", "--owner", "bob", "--may", "hosts.list", "--may", "sessions.open:read", "--on", "env:dev",
		"--issuer", issuer, "--audience", "handrail", "--subject", "project:infra:main")
	nightly := person{i, i.newHome()}
	enter := func(subject string) result {
		return nightly.runIn(token(subject), append([]string{"robot", "login", "nightly", "--token-file", "-"}, first.named()...)...)
	}
	if r := enter("project:infra:other"); r.code == 0 {
		t.Fatal("another workload came in")
	}
	if r := enter("project:infra:main"); r.code != 0 {
		t.Fatalf("%s%s", r.out, r.err)
	}
	if out := nightly.ok("hosts"); !strings.Contains(out, host) {
		t.Errorf("%s", out)
	}
	if out := nightly.ok("ssh", host, "--", "whoami"); strings.TrimSpace(out) != "nightly" {
		t.Errorf("it is %q there", out)
	}
	for _, refused := range [][]string{{"people"}, {"break-glass", host, "--reason", "x"}, {"elevate", host, "--reason", "x"}, {"person", "add", "puppet"}} {
		if r := nightly.run(refused...); r.code != 3 {
			t.Errorf("%v: exit %d %s", refused, r.code, r.err)
		}
	}

	// By a key, over mTLS.
	cert, key := certificate(t, dir, "backup", time.Now().Add(time.Hour))
	first.ok("robot", "add", "backup", "--owner", "bob", "--may", "hosts.list", "--on", "env:dev", "--for", "30d", "--key", cert)
	backup := person{i, i.newHome()}
	other, otherKey := certificate(t, dir, "other", time.Now().Add(time.Hour))
	if r := backup.run(append([]string{"robot", "login", "backup", "--cert", other, "--key", otherKey}, first.named()...)...); r.code == 0 {
		t.Fatal("another key came in")
	}
	if r := backup.run(append([]string{"robot", "login", "nightly", "--cert", cert, "--key", key}, first.named()...)...); r.code == 0 {
		t.Fatal("one robot's key let another in")
	}
	backup.ok(append([]string{"robot", "login", "backup", "--cert", cert, "--key", key}, first.named()...)...)
	backup.ok("hosts")
	if r := backup.run("ssh", host, "--", "id"); r.code == 0 || !strings.Contains(r.err, "robot-only-what-was-agreed") {
		t.Errorf("a shell that nobody agreed to: %d %s", r.code, r.err)
	}
	gone, goneKey := certificate(t, dir, "gone", time.Now().Add(-time.Minute))
	first.ok("robot", "rotate", "backup", "--key", gone)
	if r := backup.run("hosts"); r.code == 0 {
		t.Error("a login by the old key goes on")
	}
	if r := backup.run("robot", "login", "backup", "--cert", gone, "--key", goneKey); r.code == 0 {
		t.Error("an expired certificate came in")
	}

	for _, part := range []string{"nightly", "bob", "env:dev"} {
		if out := first.ok("robot", "list", "-o", "wide"); !strings.Contains(out, part) {
			t.Errorf("%q is not listed:\n%s", part, out)
		}
	}
	if out := first.ok("robot", "show", "nightly"); !strings.Contains(out, "project:infra:main") {
		t.Errorf("%s", out)
	}

	if out := first.ok("people"); !strings.Contains(out, "robot of bob") {
		t.Errorf("%s", out)
	}

	// The lock of who answers for it stops it.
	first.ok("lock", "bob", "--reason", "left")
	if r := nightly.run("hosts"); r.code == 0 {
		t.Error("the robot of somebody who is locked goes on")
	}
	if r := enter("project:infra:main"); r.code == 0 {
		t.Error("and comes in anew")
	}
	_ = owner
	told := first.ok("ledger", "list")
	for _, part := range []string{"nightly (robot of bob)", "made robot nightly of bob: hosts.list, sessions.open:read on env:dev", "changed robot backup"} {
		if !strings.Contains(told, part) {
			t.Errorf("the ledger does not say %q:\n%s", part, told)
		}
	}
	first.ok("robot", "remove", "backup", "--reason", "not needed")
	first.ok("ledger", "verify")
}
