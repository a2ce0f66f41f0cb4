package keeper

import (
	"io"
	"os"

	"github.com/pkg/sftp"
)

// stdio is the sftp server's connection.
type stdio struct {
	io.Reader
	io.WriteCloser
}

// serveSFTP is the sftp server. It runs inside the sandbox, as the session's
// own uid: what it may do is the kernel's business. The read-only option is
// there for the client's sake, which then hears "permission denied" and not
// "failure".
func serveSFTP() int {
	opts := []sftp.ServerOption{}
	if len(os.Args) > 1 && os.Args[1] == "read" {
		opts = append(opts, sftp.ReadOnly())
	}
	if dir, err := os.Getwd(); err == nil {
		opts = append(opts, sftp.WithServerWorkingDirectory(dir))
	}
	s, err := sftp.NewServer(stdio{os.Stdin, os.Stdout}, opts...)
	if err != nil {
		return 1
	}
	defer s.Close()
	if err := s.Serve(); err != nil && err != io.EOF {
		return 1
	}
	return 0
}
