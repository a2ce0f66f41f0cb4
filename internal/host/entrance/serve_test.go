package entrance

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A stranger says anything, in the clear, at any place of the first exchange: the
// child ends, and has asked the warden for nothing but a signature.
func FuzzServe(f *testing.F) {
	signer, kexinit := hostKey(f), clientKexInit(f)
	const version = "SSH-2.0-OpenSSH_9.2p1\r\n"
	f.Add([]byte(version))
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14"))
	f.Add(append([]byte(version), kexinit...))
	f.Add(append(append([]byte(version), kexinit...), kexinit...))
	f.Add(append(append([]byte(version), kexinit...), "\x00\x00\x00\x2c\x06\x1e\x00\x00\x00\x20................................\x00\x00\x00\x00\x00\x00"...))
	f.Fuzz(func(t *testing.T, said []byte) {
		mine, theirs := pair(t)
		defer mine.Close()
		w := &child{control: theirs, host: signer.PublicKey()}
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			for {
				a, err := ReadAsk(mine)
				if err != nil {
					return
				}
				if a.Op != OpSign {
					t.Errorf("the warden is asked to %s", a.Op)
				}
				sig, err := signer.Sign(nil, a.Data)
				if err != nil || WriteAnswer(mine, Answer{OK: true, Data: ssh.Marshal(sig)}, nil) != nil {
					return
				}
			}
		}()
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		go func() {
			_, _ = there.Write(said)
			there.Close()
		}()
		if err := w.serve(here); err == nil {
			t.Errorf("%q got in", said)
		}
		theirs.Close()
		<-asked
	})
}

func hostKey(f *testing.F) ssh.Signer {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// clientKexInit is the first packet of a real client.
func clientKexInit(f *testing.F) []byte {
	here, there := net.Pipe()
	go func() {
		_, _, _, _ = ssh.NewClientConn(here, "x", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()})
		here.Close()
	}()
	defer there.Close()
	go func() { _, _ = there.Write([]byte("SSH-2.0-x\r\n")) }()
	if _, err := firstOf(there, '\n'); err != nil {
		f.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(there, head); err != nil {
		f.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(there, body); err != nil {
		f.Fatal(err)
	}
	return append(head, body...)
}

func firstOf(r io.Reader, end byte) (n int, err error) {
	for b := make([]byte, 1); b[0] != end && err == nil; n++ {
		_, err = r.Read(b)
	}
	return n, err
}
