// Package sshd runs Debian's own sshd on loopback for a test, with a folder,
// keys and accounts of its own, and ends it with the test.
package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

const program = "/usr/sbin/sshd"

// Server is one sshd.
type Server struct {
	Address string // host:port
	Key     string // its public host key, one line
	Dir     string
	log     *safeBuffer
	t       testing.TB
	process *exec.Cmd
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Need skips a test where there is no sshd, or where it may not make accounts.
func Need(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skip("sshd is missing (Debian: openssh-server)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for accounts of its own")
	}
}

// Home is an account's home.
func Home(t testing.TB, account string) string {
	u, err := user.Lookup(account)
	if err != nil {
		t.Fatal(err)
	}
	return u.HomeDir
}

// Authorize puts lines into an account's authorized_keys.
func Authorize(t testing.TB, account string, lines ...string) {
	t.Helper()
	u, err := user.Lookup(account)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(u.HomeDir, ".ssh")
	file := filepath.Join(dir, "authorized_keys")
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file} {
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
}

// Start runs an sshd with further lines of configuration.
func Start(t testing.TB, lines ...string) *Server {
	t.Helper()
	Need(t)
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, Dir: t.TempDir(), log: &safeBuffer{}}
	s.NewKey()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(s.Address)
	conf := strings.Join(append([]string{
		"ListenAddress 127.0.0.1", "Port " + port, "HostKey " + s.keyFile(), "PidFile none", "UsePAM no", "StrictModes no",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "MaxStartups 100:30:200", "Subsystem sftp internal-sftp", "LogLevel VERBOSE",
	}, lines...), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(s.Dir, "sshd_config"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Run()
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) keyFile() string { return filepath.Join(s.Dir, "host_key") }

// NewKey gives it another host key; it counts from the next Run.
func (s *Server) NewKey() {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.keyFile(), pem.EncodeToMemory(block), 0o600); err != nil {
		s.t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Key = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// Run starts it and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	s.process = exec.Command(program, "-D", "-e", "-f", filepath.Join(s.Dir, "sshd_config"))
	s.process.Stderr, s.process.SysProcAttr = s.log, &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", s.Address)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("sshd does not answer: %s", s.log)
		}
	}
}

// Stop ends it, its connections with it.
func (s *Server) Stop() {
	if s.process == nil {
		return
	}
	pid := s.process.Process.Pid
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	s.process = nil
}

// Log is what it said.
func (s *Server) Log() string { return s.log.String() }
