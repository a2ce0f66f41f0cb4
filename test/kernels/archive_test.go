package kernels

import (
	"bytes"
	"fmt"
	"os"
)

// archive is an initial root file system in the form that the kernel unpacks
// (cpio, "newc").
type archive struct {
	b bytes.Buffer
	n int
}

const (
	kindDir  = 0o040000
	kindFile = 0o100000
	kindLink = 0o120000
)

func (a *archive) add(name string, mode int, content []byte) {
	a.n++
	fmt.Fprintf(&a.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.n, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.b.WriteString(name)
	a.b.WriteByte(0)
	a.pad()
	a.b.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.b.Len()%4 != 0 {
		a.b.WriteByte(0)
	}
}

func (a *archive) dir(name string, mode int)   { a.add(name, kindDir|mode, nil) }
func (a *archive) link(name, to string)        { a.add(name, kindLink|0o777, []byte(to)) }
func (a *archive) text(name, content string)   { a.add(name, kindFile|0o644, []byte(content)) }
func (a *archive) secret(name, content string) { a.add(name, kindFile|0o600, []byte(content)) }
func (a *archive) program(name, path string) error {
	b, err := os.ReadFile(path)
	if err == nil {
		a.add(name, kindFile|0o755, b)
	}
	return err
}

// bytes ends the archive.
func (a *archive) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.b.Bytes()
}
