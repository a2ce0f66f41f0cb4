package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/test/port"
)

// installation is one running `handrail up`.
type installation struct {
	binary, dir, data string
	page, ssh         string // host:port
	host              string
	cmd               *exec.Cmd
	said              bytes.Buffer
	done              chan struct{}
	first             person
	// How long after the start of the process.
	firstPage, greeted time.Duration
}

// person is somebody with a client folder of their own.
type person struct {
	i      *installation
	home   string
	signer ssh.Signer
	known  ssh.HostKeyCallback
}

// up starts an installation and times its start.
func (b *bench) up(ctx context.Context, data string) (*installation, error) {
	page, release, err := port.Reserve()
	if err != nil {
		return nil, err
	}
	i := &installation{binary: b.binary, dir: b.dir, data: data, page: page, done: make(chan struct{})}
	defer release() // it listens by then
	i.cmd = exec.Command(b.binary, "up", "--data", data, "--listen", i.page, "--ssh-listen", "127.0.0.1:0")
	i.cmd.Env = append(os.Environ(), "HANDRAIL_HOME=")
	var stderr bytes.Buffer
	i.cmd.Stderr = &stderr
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := i.cmd.Start(); err != nil {
		return nil, err
	}
	greeted := make(chan time.Duration, 1)
	go func() {
		defer close(i.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if i.hear(lines.Text()) {
				greeted <- time.Since(began)
			}
		}
		_ = i.cmd.Wait()
	}()
	if i.firstPage, err = firstPage(ctx, i.page, began); err == nil {
		select {
		case i.greeted = <-greeted:
			return i, nil
		case <-i.done:
			err = errors.New("it ended")
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	_ = i.stop()
	return nil, fmt.Errorf("cannot start handrail: %w\n%s%s", err, &i.said, &stderr)
}

// firstPage asks for the login page until it is there.
func firstPage(ctx context.Context, addr string, began time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	client := http.Client{Transport: transport}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/login", nil)
		if err != nil {
			return 0, err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(began), nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("no first page: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// hear takes one line of the greeting; the last one starts with Ctrl-C.
func (i *installation) hear(line string) (last bool) {
	fmt.Fprintln(&i.said, line)
	f := strings.Fields(line)
	if len(f) > 3 && f[0] == "ssh" && f[2] == "-p" {
		i.ssh = net.JoinHostPort("127.0.0.1", f[3])
		i.host, _, _ = strings.Cut(f[4], "@")
	}
	return strings.HasPrefix(line, "Ctrl-C")
}

func (i *installation) stop() error {
	_ = i.cmd.Process.Signal(os.Interrupt)
	select {
	case <-i.done:
		return nil
	case <-time.After(15 * time.Second):
	}
	left := descendants(i.cmd.Process.Pid)
	_ = i.cmd.Process.Kill()
	for _, pid := range left {
		endProcess(pid)
	}
	<-i.done
	return errors.New("handrail up did not stop within 15 s of an interrupt")
}

// role returns the process of a role: server, warden, link. The supervisor
// calls it NAME or NAME-role.
func (i *installation) role(name string) (int, error) {
	for _, pid := range descendants(i.cmd.Process.Pid) {
		if args := command(pid); len(args) > 1 && (args[1] == name || args[1] == name+"-role") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of the role %s", name)
}

// enrol logs the first person in and waits until the host takes sessions.
func (i *installation) enrol(ctx context.Context) error {
	p := person{i: i, home: filepath.Join(i.dir, "home-first")}
	if _, err := p.run(ctx, "login", "--local", "--data", i.data); err != nil {
		return err
	}
	if err := p.load(); err != nil {
		return err
	}
	i.first = p
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := setUp(p.way(), "true")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("no session on %s: %w", i.host, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// add adds a person who may read, and logs them in.
func (i *installation) add(ctx context.Context, name string) (person, error) {
	out, err := i.first.run(ctx, "person", "add", name, "--group", "developer", "-o", "json")
	if err != nil {
		return person{}, err
	}
	var added struct{ Token string }
	if err := json.Unmarshal([]byte(out), &added); err != nil {
		return person{}, err
	}
	file := filepath.Join(i.dir, "token-"+name)
	if err := os.WriteFile(file, []byte(added.Token+"\n"), 0o600); err != nil {
		return person{}, err
	}
	p := person{i: i, home: filepath.Join(i.dir, "home-"+name)}
	if _, err := p.run(ctx, "login", "--token-file", file); err != nil {
		return person{}, err
	}
	return p, p.load()
}

func (p person) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.i.binary, args...)
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+p.home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("handrail %s: %w\n%s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), nil
}

// load takes key, certificate and the host CA from the client folder.
func (p *person) load() error {
	raw, err := os.ReadFile(filepath.Join(p.home, "id_handrail"))
	if err != nil {
		return err
	}
	key, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return err
	}
	if raw, err = os.ReadFile(filepath.Join(p.home, "id_handrail-cert.pub")); err != nil {
		return err
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(raw)
	if err != nil {
		return err
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok {
		return errors.New("login wrote no certificate")
	}
	if p.signer, err = ssh.NewCertSigner(cert, key); err != nil {
		return err
	}
	known, err := os.ReadFile(filepath.Join(p.home, "known_hosts"))
	if err != nil {
		return err
	}
	_, _, ca, _, _, err := ssh.ParseKnownHosts(known)
	if err != nil {
		return err
	}
	checker := &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool { return bytes.Equal(key.Marshal(), ca.Marshal()) }}
	p.known = func(_ string, remote net.Addr, key ssh.PublicKey) error {
		return checker.CheckHostKey("server.handrail.internal:22", remote, key)
	}
	return nil
}

// enterAll adds several people at once.
func (i *installation) enterAll(ctx context.Context, names ...string) ([]person, error) {
	all, errs := make([]person, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	for n, name := range names {
		wg.Go(func() { all[n], errs[n] = i.add(ctx, name) })
	}
	wg.Wait()
	return all, errors.Join(errs...)
}
