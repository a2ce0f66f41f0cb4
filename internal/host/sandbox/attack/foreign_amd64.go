package attack

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// foreignCall asks for the process id by the 32-bit gate, in code written at
// run time since the Go assembler need not know it.
func foreignCall() error {
	code := []byte{
		0x53,                         // push rbx
		0xb8, 0x14, 0x00, 0x00, 0x00, // mov eax, 20 (getpid)
		0xcd, 0x80, // int 0x80
		0x5b, // pop rbx
		0xc3, // ret
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	copy(page, code)
	entry := uintptr(unsafe.Pointer(&page[0]))
	closure := &entry
	call := *(*func())(unsafe.Pointer(&closure))
	call() // a filter kills here
	return nil
}

func ioPorts() error { return failed(sys(unix.SYS_IOPL, 3)) }

// segmentTable writes an empty entry.
func segmentTable() error {
	var entry [16]byte
	const write = 0x11
	r, err := sys(unix.SYS_MODIFY_LDT, write, uintptr(unsafe.Pointer(&entry)), uintptr(len(entry)))
	if err != nil {
		return err
	}
	if int32(r) < 0 { // this call returns its error unsigned
		return fmt.Errorf("errno %d", -int32(r))
	}
	return nil
}
