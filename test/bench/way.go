package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
)

// way is how a session is reached: through handrail, directly, by ProxyJump.
type way struct {
	name string
	dial func() (*ssh.Client, error)
	// command is ssh(1) with that way's configuration.
	command func(remote string) *exec.Cmd
}

const dialTime = 20 * time.Second

func (p person) way() way {
	config := &ssh.ClientConfig{User: p.i.host, Auth: []ssh.AuthMethod{ssh.PublicKeys(p.signer)}, HostKeyCallback: p.known, Timeout: dialTime}
	return way{"handrail", func() (*ssh.Client, error) { return ssh.Dial("tcp", p.i.ssh, config) },
		func(remote string) *exec.Cmd {
			return exec.Command("ssh", "-T", "-F", filepath.Join(p.home, "ssh_config"), p.i.host+"@handrail", remote)
		}}
}

func (p *peers) clientFor() *ssh.ClientConfig {
	return &ssh.ClientConfig{User: p.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(p.signer)}, HostKeyCallback: ssh.FixedHostKey(p.hostKey), Timeout: dialTime}
}

func (p *peers) openssh(name string) func(string) *exec.Cmd {
	return func(remote string) *exec.Cmd { return exec.Command("ssh", "-T", "-F", p.config, name, remote) }
}

func (p *peers) direct() way {
	return way{"direct", func() (*ssh.Client, error) { return ssh.Dial("tcp", p.final.addr, p.clientFor()) }, p.openssh("direct")}
}

// proxyJump does what `ssh -J` does: a connection to the jump host, a channel
// to the end through it, a second connection inside.
func (p *peers) proxyJump() way {
	dial := func() (*ssh.Client, error) {
		outer, err := ssh.Dial("tcp", p.jump.addr, p.clientFor())
		if err != nil {
			return nil, err
		}
		pipe, err := outer.Dial("tcp", p.final.addr)
		if err != nil {
			outer.Close()
			return nil, err
		}
		conn, channels, requests, err := ssh.NewClientConn(pipe, p.final.addr, p.clientFor())
		if err != nil {
			outer.Close()
			return nil, err
		}
		inner := ssh.NewClient(conn, channels, requests)
		go func() {
			_ = inner.Wait()
			outer.Close()
		}()
		return inner, nil
	}
	return way{"ProxyJump", dial, p.openssh("behind")}
}

// ways are the columns of the table.
func (b *bench) ways() [3]way {
	return [3]way{b.handrail.first.way(), b.peers.direct(), b.peers.proxyJump()}
}

// each measures a number for all ways, in turns, and returns the medians.
func (b *bench) each(f func(w way, column int) (float64, error)) ([3]value, error) {
	var got [3][]float64
	for range b.turns {
		for column, w := range b.ways() {
			v, err := f(w, column)
			if err != nil {
				return [3]value{}, fmt.Errorf("%s: %w", w.name, err)
			}
			got[column] = append(got[column], v)
		}
	}
	var out [3]value
	for column := range got {
		out[column] = known(median(got[column]))
	}
	return out, nil
}

// setUp is one whole session: connect, authenticate, run, exit.
func setUp(w way, remote string) error {
	client, err := w.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	return runOn(client, remote)
}

func runOn(client *ssh.Client, remote string) error {
	s, err := client.NewSession()
	if err != nil {
		return err
	}
	defer s.Close()
	var said bytes.Buffer
	s.Stderr = &said
	if err := s.Run(remote); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
