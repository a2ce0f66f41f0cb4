package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// x32Bit marks calls of the x32 ABI, which share the architecture's number.
const x32Bit = 0x40000000

// oldCalls are those that only older architectures have.
func oldCalls(f *filterTable) {
	write := uint32(unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC)
	f.set(anyBit(1, write, f.note, ret(unix.SECCOMP_RET_ALLOW)), unix.SYS_OPEN)
	f.set(f.note, unix.SYS_CREAT, unix.SYS_UNLINK, unix.SYS_RMDIR, unix.SYS_RENAME, unix.SYS_MKDIR,
		unix.SYS_LINK, unix.SYS_SYMLINK, unix.SYS_MKNOD, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN)
	f.set(f.refuse, unix.SYS_USELIB, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
		unix.SYS__SYSCTL, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_CREATE_MODULE, unix.SYS_QUERY_MODULE,
		unix.SYS_GET_KERNEL_SYMS)
}

func addOldPathCalls(m map[int]pathCall) {
	m[unix.SYS_OPEN] = pathCall{"open", -1, 0, 1, false}
	m[unix.SYS_CREAT] = pathCall{"creat", -1, 0, -1, true}
	m[unix.SYS_UNLINK] = pathCall{"unlink", -1, 0, -1, false}
	m[unix.SYS_RMDIR] = pathCall{"rmdir", -1, 0, -1, false}
	m[unix.SYS_RENAME] = pathCall{"rename", -1, 0, -1, false}
	m[unix.SYS_MKDIR] = pathCall{"mkdir", -1, 0, -1, true}
	m[unix.SYS_LINK] = pathCall{"link", -1, 1, -1, true}
	m[unix.SYS_SYMLINK] = pathCall{"symlink", -1, 1, -1, true}
	m[unix.SYS_MKNOD] = pathCall{"mknod", -1, 0, -1, true}
	m[unix.SYS_CHMOD] = pathCall{"chmod", -1, 0, -1, false}
	m[unix.SYS_CHOWN] = pathCall{"chown", -1, 0, -1, false}
	m[unix.SYS_LCHOWN] = pathCall{"lchown", -1, 0, -1, false}
}
