// Package slapd runs a real OpenLDAP server of Debian's for tests, private to
// them, on a port of loopback and in a folder of its own.
package slapd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/test/daemon"
	"handrail.dev/handrail/test/port"
)

// The company of the tests.
const (
	Base     = "dc=example,dc=com"
	People   = "ou=people," + Base
	Groups   = "ou=groups," + Base
	Admin    = "cn=admin," + Base
	Password = "of-the-directory"
)

// Options shape a server.
type Options struct {
	Sync  bool   // it pushes changes (the syncprov overlay)
	TLS   bool   // it has a certificate for localhost, and refuses what is not TLS
	Limit int    // of entries a search gives; 0: none
	Rules string // further lines of slapd.conf for the database, as access rules
	LDIF  string // what it holds at first, below the branches; see Company
}

// Server is a running slapd.
type Server struct {
	t       testing.TB
	dir     string
	o       Options
	address string
	CA      []byte // PEM, with TLS
	daemon  *daemon.Daemon
}

// Start starts a server, or skips the test where there is none.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/slapd"); err != nil {
		t.Skip("no slapd here (Debian: apt-get install slapd)")
	}
	s := &Server{t: t, o: o, dir: t.TempDir()}
	address, release, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	s.address = address
	s.write("slapd.conf", s.conf())
	if err := os.Mkdir(filepath.Join(s.dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("seed.ldif", branches+o.LDIF)
	add := exec.Command("/usr/sbin/slapadd", "-q", "-f", filepath.Join(s.dir, "slapd.conf"), "-l", filepath.Join(s.dir, "seed.ldif"))
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v: %.2000s", err, out)
	}
	t.Cleanup(s.Stop)
	s.Again()
	return s
}

const branches = `dn: dc=example,dc=com
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit
ou: groups

`

func (s *Server) conf() string {
	var b strings.Builder
	for _, name := range []string{"core", "cosine", "nis", "inetorgperson"} {
		fmt.Fprintf(&b, "include /etc/ldap/schema/%s.schema\n", name)
	}
	fmt.Fprintf(&b, "pidfile %s/pid\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload syncprov\n", s.dir)
	if s.o.TLS {
		s.certificate()
		fmt.Fprintf(&b, "TLSCertificateFile %s/cert.pem\nTLSCertificateKeyFile %s/key.pem\nTLSCACertificateFile %s/ca.pem\nsecurity ssf=64\n", s.dir, s.dir, s.dir)
	}
	limit := "unlimited"
	if s.o.Limit > 0 {
		limit = fmt.Sprint(s.o.Limit)
	}
	fmt.Fprintf(&b, "database mdb\nsuffix %q\nrootdn %q\nrootpw %s\ndirectory %s/db\nmaxsize 268435456\ndbnosync\nindex objectClass,entryUUID,entryCSN eq\nsizelimit size.soft=%s size.hard=%s size.prtotal=%s\n%s\n",
		Base, Admin, Password, s.dir, limit, limit, limit, s.o.Rules)
	if s.o.Sync {
		b.WriteString("overlay syncprov\nsyncprov-sessionlog 1000\n")
	}
	return b.String()
}

func (s *Server) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Again starts the server that Stop has ended, on the same data and port.
func (s *Server) Again() {
	s.t.Helper()
	url := "ldap://" + s.address
	if s.o.TLS {
		url += " ldaps://" + s.tlsAddress()
	}
	cmd := exec.Command("/usr/sbin/slapd", "-h", url, "-f", filepath.Join(s.dir, "slapd.conf"), "-d", "0")
	s.daemon = daemon.Start(s.t, cmd, s.address)
}

// Stop kills the server.
func (s *Server) Stop() {
	s.daemon.Stop()
}

// URL is ldap://ADDRESS.
func (s *Server) URL() string { return "ldap://" + s.address }

// tlsAddress is a second address of loopback with the same port.
func (s *Server) tlsAddress() string {
	_, p, _ := net.SplitHostPort(s.address)
	return net.JoinHostPort("127.0.0.2", p)
}

// SecureURL is ldaps://ADDRESS, with TLS.
func (s *Server) SecureURL() string { return "ldaps://" + s.tlsAddress() }

// certificate makes an authority and a certificate for 127.0.0.2.
func (s *Server) certificate() {
	s.t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		return k
	}
	caKey, ownKey := key(), key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	own := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "directory"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		s.t.Fatal(err)
	}
	ownDER, err := x509.CreateCertificate(rand.Reader, own, ca, &ownKey.PublicKey, caKey)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		s.t.Fatal(err)
	}
	s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	s.write("ca.pem", string(s.CA))
	s.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ownDER})))
	s.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

// Do changes the directory as its administrator.
func (s *Server) Do(change func(*ldap.Conn) error) {
	s.t.Helper()
	c, err := ldap.DialURL(s.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := c.Bind(Admin, Password); err != nil {
		s.t.Fatal(err)
	}
	if err := change(c); err != nil {
		s.t.Fatal(err)
	}
}

// Person is the DN of somebody.
func Person(name string) string { return "uid=" + name + "," + People }

// Group is the DN of a group.
func Group(name string) string { return "cn=" + name + "," + Groups }

// AddPerson adds somebody whose password is their name and "-pw".
func (s *Server) AddPerson(name string) {
	s.t.Helper()
	s.Do(func(c *ldap.Conn) error {
		r := ldap.NewAddRequest(Person(name), nil)
		r.Attribute("objectClass", []string{"inetOrgPerson"})
		for _, a := range []string{"uid", "cn", "sn"} {
			r.Attribute(a, []string{name})
		}
		r.Attribute("userPassword", []string{name + "-pw"})
		return c.Add(r)
	})
}

// Delete takes an entry out.
func (s *Server) Delete(dn string) {
	s.t.Helper()
	s.Do(func(c *ldap.Conn) error { return c.Del(ldap.NewDelRequest(dn, nil)) })
}

// Leave takes a member out of a group.
func (s *Server) Leave(group, member string) {
	s.t.Helper()
	s.Do(func(c *ldap.Conn) error {
		r := ldap.NewModifyRequest(Group(group), nil)
		r.Delete("member", []string{member})
		return c.Modify(r)
	})
}

// LDIFPerson is an entry for Options.LDIF.
func LDIFPerson(name string, more ...string) string {
	return fmt.Sprintf("dn: %s\nobjectClass: inetOrgPerson\nuid: %s\ncn: %s\nsn: %s\nuserPassword: %s-pw\n%s\n", Person(name), name, name, name, name, lines(more))
}

// LDIFGroup is an entry for Options.LDIF; members are DNs.
func LDIFGroup(name string, members ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dn: %s\nobjectClass: groupOfNames\ncn: %s\n", Group(name), name)
	for _, m := range members {
		fmt.Fprintf(&b, "member: %s\n", m)
	}
	return b.String() + "\n"
}

func lines(more []string) string {
	var b strings.Builder
	for _, m := range more {
		b.WriteString(m + "\n")
	}
	return b.String()
}
