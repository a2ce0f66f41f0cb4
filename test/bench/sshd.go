package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/test/port"
)

// peers are two sshd of the system, with a configuration, keys and ports of
// their own. The first is logged in to directly; ProxyJump goes through the
// second to the first.
type peers struct {
	dir     string
	version string
	user    string
	madeAs  string // account made for this run
	madeRun bool   // /run/sshd made for this run
	signer  ssh.Signer
	hostKey ssh.PublicKey
	final   *daemon
	jump    *daemon
	config  string // for ssh(1)
}

type daemon struct {
	cmd  *exec.Cmd
	addr string
}

// account is the peers' user: plain, with a small shell and no rc files, so
// that what is measured is sshd.
const account = "handrail-bench"

func startPeers(ctx context.Context, dir string) (p *peers, err error) {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd = "/usr/sbin/sshd"; !exists(sshd) {
			return nil, fmt.Errorf("sshd is missing (Debian: openssh-server)")
		}
	}
	p = &peers{dir: filepath.Join(dir, "peers")}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return p, err
	}
	if err := p.chooseUser(); err != nil {
		return p, err
	}
	if os.Geteuid() == 0 && !exists("/run/sshd") {
		p.madeRun = os.Mkdir("/run/sshd", 0o755) == nil
	}
	if err := p.keys(); err != nil {
		return p, err
	}
	if p.final, err = p.daemon(ctx, sshd, "final"); err != nil {
		return p, err
	}
	if p.jump, err = p.daemon(ctx, sshd, "jump"); err != nil {
		return p, err
	}
	out, _ := exec.CommandContext(ctx, "ssh", "-V").CombinedOutput()
	p.version = "peer: " + strings.TrimSpace(string(out)) + ", UsePAM no, logged in as " + p.user
	return p, p.clientConfig()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *peers) chooseUser() error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	p.user = me.Username
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := user.Lookup(account); err == nil {
		p.user = account
		return nil
	}
	home := filepath.Join(p.dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if exec.Command("useradd", "-M", "-d", home, "-s", "/bin/sh", "-p", "*", account).Run() == nil {
		p.user, p.madeAs = account, account
	}
	return nil // root itself will do
}

func (p *peers) keys() error {
	if _, err := p.key("host_key"); err != nil {
		return err
	}
	host, err := os.ReadFile(filepath.Join(p.dir, "host_key.pub"))
	if err != nil {
		return err
	}
	if p.hostKey, _, _, _, err = ssh.ParseAuthorizedKey(host); err != nil {
		return err
	}
	ca, err := p.key("user_ca")
	if err != nil {
		return err
	}
	own, err := p.key("id")
	if err != nil {
		return err
	}
	cert := &ssh.Certificate{Key: own.PublicKey(), CertType: ssh.UserCert, KeyId: "bench", ValidPrincipals: []string{p.user},
		ValidBefore: uint64(time.Now().Add(time.Hour).Unix()), Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": ""}}}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		return err
	}
	if p.signer, err = ssh.NewCertSigner(cert, own); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, "id-cert.pub"), ssh.MarshalAuthorizedKey(cert), 0o600)
}

// key makes an ed25519 key pair in the peers' folder.
func (p *peers) key(name string) (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	return signer, os.WriteFile(filepath.Join(p.dir, name+".pub"), ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
}

const sshdConfig = `ListenAddress 127.0.0.1
Port %s
HostKey %[2]s/host_key
PidFile none
TrustedUserCAKeys %[2]s/user_ca.pub
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
StrictModes no
PrintMotd no
PrintLastLog no
MaxStartups 1000
MaxSessions 1000
AllowUsers %[3]s
LogLevel QUIET
`

func (p *peers) daemon(ctx context.Context, sshd, name string) (*daemon, error) {
	addr, release, err := port.Reserve()
	if err != nil {
		return nil, err
	}
	defer release() // it listens by then
	_, number, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(p.dir, name+".conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, sshdConfig, number, p.dir, p.user), 0o600); err != nil {
		return nil, err
	}
	// -D: it stays our child and ends with our signal. Not bound to ctx: stop
	// ends it when its turn comes.
	d := &daemon{cmd: exec.Command(sshd, "-D", "-e", "-f", config), addr: addr}
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	return d, waitDial(ctx, d.addr)
}

func waitDial(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// clientConfig is what ssh(1) is run with.
func (p *peers) clientConfig() error {
	known := fmt.Sprintf("* %s", ssh.MarshalAuthorizedKey(p.hostKey))
	if err := os.WriteFile(filepath.Join(p.dir, "known_hosts"), []byte(known), 0o644); err != nil {
		return err
	}
	var b strings.Builder
	for name, d := range map[string]*daemon{"direct": p.final, "jumphost": p.jump, "behind": p.final} {
		_, port, _ := net.SplitHostPort(d.addr)
		fmt.Fprintf(&b, "Host %s\n  HostName 127.0.0.1\n  Port %s\n", name, port)
		if name == "behind" {
			b.WriteString("  ProxyJump jumphost\n")
		}
	}
	fmt.Fprintf(&b, "Host *\n  User %s\n  IdentityFile %[2]s/id\n  CertificateFile %[2]s/id-cert.pub\n  IdentitiesOnly yes\n"+
		"  UserKnownHostsFile %[2]s/known_hosts\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n", p.user, p.dir)
	p.config = filepath.Join(p.dir, "ssh_config")
	return os.WriteFile(p.config, []byte(b.String()), 0o600)
}

// stop ends both daemons and removes what was made for them.
func (p *peers) stop() {
	for _, d := range []*daemon{p.final, p.jump} {
		if d == nil || d.cmd.Process == nil {
			continue
		}
		for _, pid := range descendants(d.cmd.Process.Pid) {
			endProcess(pid) // what still serves a connection of ours
		}
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	}
	if p.madeAs != "" {
		// By force: the last session's process may need a moment to end.
		_ = exec.Command("userdel", "-f", p.madeAs).Run()
	}
	if p.madeRun {
		_ = os.Remove("/run/sshd")
	}
}
