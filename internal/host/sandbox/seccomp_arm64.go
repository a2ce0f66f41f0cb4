package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// x32Bit is a bit that no call of this architecture has.
const x32Bit = 0x40000000

// oldCalls are those that only older architectures have.
func oldCalls(f *filterTable) { f.set(f.refuse, unix.SYS_KEXEC_FILE_LOAD) }

func addOldPathCalls(map[int]pathCall) {}
