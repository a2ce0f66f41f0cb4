package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// The files of the client folder. Each is replaced as a whole, so a crash
// leaves the old one or the new one.
const (
	fileLogin  = "login.json"   // who I am, and the bearer token
	fileBundle = "trust-bundle" // the newest one seen, as signed
	fileKey    = "id_handrail"  // this device's key, made here, never sent
	fileSSH    = "ssh_config"
	fileHosts  = "known_hosts"
	fileSeen   = "checkpoint" // the newest checkpoint seen: a ledger never shrinks
)

// folder is a person's client folder.
type folder struct{ dir string }

// login is what the folder remembers of the last login.
type login struct {
	Address    string    `json:"address"`
	RootHash   string    `json:"root_hash"` // pinned: nothing else is trusted
	SSHAddress string    `json:"ssh_address,omitempty"`
	Token      string    `json:"token,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
	Person     string    `json:"person,omitempty"`
	PersonName string    `json:"person_name,omitempty"`
	Device     string    `json:"device,omitempty"`
	Robot      bool      `json:"robot,omitempty"`    // a robot's: an hour, and no way to renew
	Provider   bool      `json:"provider,omitempty"` // logged in at the company's provider
	User       string    `json:"user,omitempty"`     // whose password the directory knows
}

func (t *tool) folder() (folder, error) {
	dir, err := t.home()
	return folder{dir}, err
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// make creates the folder. An empty one that somebody made beforehand is
// closed to others; one that holds something and stands open is refused, since
// the device key in it may have been read.
func (f folder) make() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot make the client folder")
	}
	if held, err := os.ReadDir(f.dir); err == nil && len(held) == 0 {
		if err := os.Chmod(f.dir, 0o700); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot close the client folder to others")
		}
	}
	return f.private()
}

func (f folder) private() error {
	info, err := os.Stat(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the client folder")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fault.New(fault.Invalid, "cannot use the client folder %s: others may read it (mode %04o)", f.dir, info.Mode().Perm()).
			WithHint("chmod 700 %s", quoteShell(f.dir))
	}
	return nil
}

func (f folder) write(name string, data []byte) error {
	if err := f.make(); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.dir, "."+name+"-*")
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot write the client folder")
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if closing := tmp.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.path(name))
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot write %s", f.path(name))
	}
	return nil
}

// notLoggedIn is the error of every command that needs a login.
func notLoggedIn() *fault.Error {
	return fault.New(fault.Unauthenticated, "cannot go on: nobody is logged in here").WithHint("handrail login")
}

func (f folder) login() (login, error) {
	raw, err := os.ReadFile(f.path(fileLogin))
	if errors.Is(err, fs.ErrNotExist) {
		return login{}, notLoggedIn()
	}
	if err != nil {
		return login{}, fault.Wrap(fault.Internal, err, "cannot read the login")
	}
	if err := f.private(); err != nil {
		return login{}, err
	}
	var l login
	if err := json.Unmarshal(raw, &l); err != nil || l.Address == "" || l.RootHash == "" {
		return login{}, fault.New(fault.Invalid, "cannot read the login in %s: it is damaged", f.path(fileLogin)).
			WithHint("handrail logout --forget && handrail login")
	}
	return l, nil
}

func (f folder) saveLogin(l login) error {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return f.write(fileLogin, append(raw, '\n'))
}

// device returns this device's key, which is made at the first login.
func (f folder) device(create bool) (ssh.Signer, error) {
	raw, err := os.ReadFile(f.path(fileKey))
	if err == nil {
		signer, err := ssh.ParsePrivateKey(raw)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the device key %s", f.path(fileKey)).
				WithHint("handrail logout --forget && handrail login")
		}
		return signer, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the device key")
	}
	if !create {
		return nil, notLoggedIn()
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "handrail")
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	if err := f.write(fileKey+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey())); err != nil {
		return nil, err
	}
	return signer, f.write(fileKey, pem.EncodeToMemory(block))
}

// gatewayName is the name that the gateway's host certificate and the server's
// TLS certificate carry, whatever address they answer on.
const (
	gatewayName = "server.handrail.internal"
	// gatewayAlias is what people write behind the @.
	gatewayAlias = "handrail"
)

// writeSSH makes stock ssh, scp, sftp and rsync reach the gateway as
// "HOST@handrail", trusting the host CA of the bundle and nothing else.
func (f folder) writeSSH(l login, b ledger.Bundle, certificate string) error {
	if certificate != "" {
		if err := f.write(fileKey+"-cert.pub", []byte(strings.TrimSpace(certificate)+"\n")); err != nil {
			return err
		}
	}
	host, port := splitAddress(l.SSHAddress)
	if host == "" || port == "" {
		return nil // this server has no gateway
	}
	var known strings.Builder
	for _, ca := range b.SSHAuthorities(ledger.KeySSHHost, time.Now()) {
		fmt.Fprintf(&known, "@cert-authority %s %s\n", gatewayName, strings.TrimSpace(ca))
	}
	if err := f.write(fileHosts, []byte(known.String())); err != nil {
		return err
	}
	config := fmt.Sprintf(`# Written by "handrail login"; changes here are lost.
# ssh HOST@handrail is a read-only shell, ssh HOST+write@handrail needs a grant.
Host handrail
  HostName %s
  Port %s
  HostKeyAlias %s
  UserKnownHostsFile %q
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  IdentityFile %q
  CertificateFile %q
  IdentitiesOnly yes
  ForwardAgent no
  ServerAliveInterval 15
`, host, port, gatewayName, f.path(fileHosts), f.path(fileKey), f.path(fileKey+"-cert.pub"))
	return f.write(fileSSH, []byte(config))
}

// forget removes what a login left; all of it, or what proves an identity.
func (f folder) forget(all bool) error {
	names := []string{fileKey + "-cert.pub"}
	if all {
		names = append(names, fileLogin, fileBundle, fileKey, fileKey+".pub", fileSSH, fileHosts, fileSeen)
	}
	for _, name := range names {
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(fault.Internal, err, "cannot remove %s", f.path(name))
		}
	}
	if all {
		_ = os.Remove(f.dir) // stays when something of the person's own lies in it
	}
	return nil
}
