package attack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/unix"
)

func openWrite(path string, flags int) error {
	fd, err := unix.Open(path, flags, 0o666)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("attacked"))
	return err
}

func fileProbes() []probe {
	const f = unix.O_WRONLY
	return []probe{
		{name: "write-file", what: "Write to a file that everybody may write.", run: func(s *scene) error { return openWrite(s.Dir+"/write", f) }},
		{name: "create-file", what: "Make a file in a folder that everybody may write.", run: func(s *scene) error { return openWrite(s.Dir+"/created", f|unix.O_CREAT|unix.O_EXCL) }},
		{name: "creat", what: "Empty a file by creat.", run: func(s *scene) error { return openWrite(s.Dir+"/creat", f|unix.O_CREAT|unix.O_TRUNC) }},
		{name: "openat2", what: "Open for writing by openat2, whose flags no filter sees.", run: func(s *scene) error {
			fd, err := unix.Openat2(unix.AT_FDCWD, s.Dir+"/openat2", &unix.OpenHow{Flags: unix.O_WRONLY})
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{name: "truncate", what: "Truncate a file by name.", run: func(s *scene) error { return unix.Truncate(s.Dir+"/truncate", 0) }},
		{name: "unlink", what: "Delete a file.", run: func(s *scene) error { return unix.Unlink(s.Dir + "/unlink") }},
		{name: "rename", what: "Rename a file.", run: func(s *scene) error { return unix.Rename(s.Dir+"/rename", s.Dir+"/renamed") }},
		{name: "mkdir", what: "Make a folder.", run: func(s *scene) error { return unix.Mkdir(s.Dir+"/mkdir", 0o777) }},
		{name: "rmdir", what: "Remove a folder.", run: func(s *scene) error { return unix.Rmdir(s.Dir + "/rmdir") }},
		{name: "symlink", what: "Place a symbolic link.", run: func(s *scene) error { return unix.Symlink("/etc/passwd", s.Dir+"/symlink") }},
		{name: "hardlink", what: "Place a hard link.", run: func(s *scene) error { return unix.Link(s.Dir+"/link", s.Dir+"/hardlink") }},
		{name: "mkfifo", what: "Place a named pipe.", run: func(s *scene) error { return unix.Mkfifo(s.Dir+"/fifo-made", 0o666) }},
		{name: "tmpfile", what: "Make a nameless file and link it in.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err != nil {
				return err
			}
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.Dir+"/tmpfile", unix.AT_SYMLINK_FOLLOW)
		}},
		{name: "chmod", what: "Change the mode of an own file.", run: func(s *scene) error { return unix.Chmod(s.Dir+"/chmod", 0o600) }},
		{name: "fchmod", what: "Change a mode through a descriptor opened for reading.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir+"/chmod", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Fchmod(fd, 0o666)
		}},
		{name: "chown", what: "Change the owner of an own file, to itself.", run: func(s *scene) error { return unix.Chown(s.Dir+"/chown", os.Getuid(), os.Getgid()) }},
		{name: "utimes", what: "Change a file's times.", run: func(s *scene) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, s.Dir+"/utimes", []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0)
		}},
		{name: "setxattr", what: "Set an extended attribute.", run: func(s *scene) error {
			return orCannot(unix.Setxattr(s.Dir+"/xattr", "user.attacked", []byte("1"), 0), unix.EOPNOTSUPP)
		}},
		{name: "reopen-proc-fd", what: "Open a descriptor for reading again for writing, through /proc.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir+"/reopen", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return openWrite(fmt.Sprintf("/proc/self/fd/%d", fd), f)
		}},
		{name: "victim-fd", what: "Open a victim's writable descriptor through /proc.", run: func(s *scene) error {
			return openWrite(fmt.Sprintf("/proc/%d/fd/%d", s.PID, s.Writer), f)
		}},
		{name: "victim-root-write", what: "Write through a victim's /proc/PID/root, which has other mounts.", run: func(s *scene) error {
			return openWrite(fmt.Sprintf("/proc/%d/root%s/procroot", s.PID, s.Dir), f)
		}},
		{name: "write-fifo", what: "Write into a named pipe that somebody reads.", run: func(s *scene) error { return openWrite(s.Dir+"/fifo", f|unix.O_NONBLOCK) }},
		{name: "write-tmp", what: "Write to another's file in /tmp.", run: func(s *scene) error { return openWrite(s.Tmp, f) }},
		{name: "write-var-tmp", what: "Write to another's file in /var/tmp.", run: func(s *scene) error { return openWrite(s.VarTmp, f) }},
		{name: "posix-shm", what: "Write to shared memory in /dev/shm.", run: func(s *scene) error { return openWrite(s.Shm, f) }},
		{name: "oom-score", what: "Change which victim the kernel kills first.", run: func(s *scene) error {
			return openWriteText(fmt.Sprintf("/proc/%d/oom_score_adj", s.PID), "999")
		}},
		{name: "sysctl", what: "Change a kernel setting.", run: func(*scene) error { return openWriteText("/proc/sys/kernel/domainname", "attacked") }},
		{name: "crontab", what: "Place a job in the account's crontab.", run: func(*scene) error { return openWrite("/var/spool/cron/crontabs/attacker", f|unix.O_CREAT) }},
		{name: "inode-flags", what: "Make an own file append-only or undeletable by inode flags.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir+"/xattr", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			const noDump = 0x40
			return orCannot(unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, noDump), unix.ENOTTY, unix.EOPNOTSUPP)
		}},
	}
}

func openWriteText(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}

func readSecret(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return expect(holds(b), "read %d bytes", len(b))
}

func secretProbes() []probe {
	return []probe{
		{name: "secret", what: "Read a declared secret.", run: func(s *scene) error { return readSecret(s.Dir + "/secret") }},
		{name: "secret-hardlink", what: "Read it under another hard link.", run: func(s *scene) error { return readSecret(s.Dir + "/gone/other-name") }},
		{name: "secret-backup", what: "Read the backup that an editor left.", run: func(s *scene) error { return readSecret(s.Dir + "/secret.bak") }},
		{name: "secret-copy", what: "Read a copy under another name.", run: func(s *scene) error { return readSecret(s.Dir + "/copy") }},
		{name: "secret-symlink", what: "Read it through a symbolic link.", run: func(s *scene) error { return readSecret(s.Dir + "/alias") }},
		{name: "secret-victim-root", what: "Read it through a victim's /proc/PID/root, where it is not masked.", run: func(s *scene) error {
			return readSecret(fmt.Sprintf("/proc/%d/root%s/secret", s.PID, s.Dir))
		}},
		{name: "secret-victim-cwd", what: "Read it through a victim's /proc/PID/cwd.", run: func(s *scene) error {
			return readSecret(fmt.Sprintf("/proc/%d/cwd%s/secret", s.PID, s.Dir))
		}},
		{name: "secret-map-files", what: "List what a victim has mapped.", run: func(s *scene) error {
			_, err := os.ReadDir(fmt.Sprintf("/proc/%d/map_files", s.PID))
			return err
		}},
		{name: "secret-by-handle", what: "Open it by file handle, without its name.", run: func(s *scene) error {
			if len(s.Handle) == 0 {
				return cannotRun{"this file system has no handles"}
			}
			fd, err := unix.Open(s.Dir, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			_, err = unix.OpenByHandleAt(fd, unix.NewFileHandle(s.Kind, s.Handle), unix.O_RDONLY)
			return err
		}},
		{name: "secret-unmask", what: "Unmount the mask.", run: func(s *scene) error {
			if err := unix.Unmount(s.Dir+"/secret", unix.MNT_DETACH); err != nil {
				return err
			}
			return readSecret(s.Dir + "/secret")
		}},
		{name: "secret-mask-chmod", what: "Open the mask itself by changing its mode.", run: func(s *scene) error {
			if err := unix.Chmod(s.Dir+"/secret", 0o666); err != nil {
				return err
			}
			return openWrite(s.Dir+"/secret", unix.O_WRONLY)
		}},
		{name: "handrail-data", what: "Read handrail's own folder.", run: func(s *scene) error { return readSecret(s.Hidden) }},
		{name: "shadow", what: "Read the password hashes.", run: func(*scene) error {
			b, err := os.ReadFile("/etc/shadow")
			return errors.Join(err, expect(len(b) > 0, "it is empty"))
		}},
		{name: "shadow-backup", what: "Read the backup of the password hashes.", run: func(*scene) error {
			b, err := os.ReadFile("/etc/shadow-")
			return errors.Join(err, expect(len(b) > 0, "it is empty"))
		}},
		{name: "host-key", what: "Read the host's SSH key.", run: func(*scene) error {
			b, err := os.ReadFile("/etc/ssh/ssh_host_ed25519_key")
			return errors.Join(err, expect(len(b) > 0, "it is empty"))
		}},
		{name: "victim-environ", what: "Read a victim's environment.", run: func(s *scene) error { return readSecret(fmt.Sprintf("/proc/%d/environ", s.PID)) }},
		{name: "victim-secret-fd", what: "Read a victim's nameless file through /proc.", run: func(s *scene) error {
			return readSecret(fmt.Sprintf("/proc/%d/fd/%d", s.PID, s.Secret))
		}},
		{name: "victim-mem", what: "Read a victim's memory through /proc.", run: func(s *scene) error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/mem", s.PID))
			if err != nil {
				return err
			}
			b := make([]byte, len(secretText))
			if _, err := f.ReadAt(b, int64(s.Address)); err != nil {
				return err
			}
			return expect(holds(b), "other bytes")
		}},
		{name: "victim-mem-write", what: "Change a victim's memory through /proc.", run: func(s *scene) error {
			f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.PID), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("t"), int64(s.Address))
			return err
		}},
		{name: "victim-maps", what: "Read where a victim's memory lies.", run: func(s *scene) error {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.PID))
			return errors.Join(err, expect(len(b) > 0, "it is empty"))
		}},
		{name: "kernel-log-clear", what: "Clear the kernel's log.", run: func(*scene) error { return failed(sys(unix.SYS_SYSLOG, 5, 0, 0)) }},
	}
}

func deviceProbes() []probe {
	return []probe{
		{name: "tty-write", what: "Write on another's open terminal.", run: func(s *scene) error {
			if s.TTY == "" {
				return cannotRun{"no terminal"}
			}
			return openWrite(s.TTY, unix.O_WRONLY|unix.O_NOCTTY)
		}},
		{name: "tty-inject", what: "Type into a terminal by TIOCSTI.", run: func(*scene) error { return typeInto(unix.TIOCSTI) }},
		{name: "tty-console", what: "Steer the console by TIOCLINUX.", run: func(*scene) error { return typeInto(unix.TIOCLINUX) }},
		{name: "tty-discipline", what: "Load a line discipline.", run: func(*scene) error {
			slave, err := openTerminal()
			if err != nil {
				return err
			}
			const slip = 1
			return orCannot(unix.IoctlSetPointerInt(slave, unix.TIOCSETD, slip), unix.EINVAL)
		}},
		{name: "disk", what: "Read a disk past its file system.", run: func(s *scene) error {
			var st unix.Stat_t
			if err := unix.Stat("/", &st); err != nil {
				return err
			}
			node := "/tmp/disk-node"
			defer unix.Unlink(node)
			if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Dev)); err != nil {
				return err
			}
			fd, err := unix.Open(node, unix.O_RDONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{name: "dev-mem", what: "Read the machine's memory.", run: func(*scene) error { return readSome("/dev/mem", "/dev/kmem", "/proc/kcore") }},
		{name: "dev-nodes", what: "Open a device that can do more than read.", run: func(*scene) error {
			return openAny("/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/userfaultfd", "/dev/vhost-vsock", "/dev/loop-control", "/dev/uinput", "/dev/console")
		}},
		{name: "kmsg", what: "Write into the kernel's log.", run: func(*scene) error { return openWrite("/dev/kmsg", unix.O_WRONLY) }},
		{name: "sysrq", what: "Reach the emergency keys.", run: func(*scene) error {
			fd, err := unix.Open("/proc/sysrq-trigger", unix.O_WRONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
	}
}

func readSome(paths ...string) error {
	err := error(cannotRun{"there is none"})
	for _, p := range paths {
		f, open := os.Open(p)
		if open != nil {
			if !errors.Is(open, os.ErrNotExist) {
				err = open
			}
			continue
		}
		n, read := f.Read(make([]byte, 16))
		f.Close()
		if n > 0 {
			return nil
		}
		err = read
	}
	return err
}

func openAny(paths ...string) error {
	err := errors.New("none is there")
	for _, p := range paths {
		fd, open := unix.Open(p, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if open == nil {
			unix.Close(fd)
			return nil
		}
		if !errors.Is(open, unix.ENOENT) {
			err = open
		}
	}
	return err
}

// openTerminal gives the probe a controlling terminal of its own.
func openTerminal() (slave int, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, err
	}
	_ = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	if slave, err = unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return -1, err
	}
	_, _ = unix.Setsid()
	_ = unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0)
	return slave, nil
}

func typeInto(request uintptr) error {
	slave, err := openTerminal()
	if err != nil {
		return err
	}
	key := byte('x')
	return failed(sys(unix.SYS_IOCTL, uintptr(slave), request, uintptr(unsafe.Pointer(&key))))
}

func mountProbes() []probe {
	return []probe{
		{name: "remount", what: "Make the root writable again.", run: func(*scene) error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }},
		{name: "mount-tmpfs", what: "Mount over a folder.", run: func(s *scene) error { return unix.Mount("x", s.Dir, "tmpfs", 0, "") }},
		{name: "bind", what: "Show one folder in place of another.", run: func(s *scene) error { return unix.Mount(s.Dir, "/tmp", "", unix.MS_BIND, "") }},
		{name: "mount-proc", what: "Mount a writable /proc.", run: func(*scene) error { return unix.Mount("proc", "/tmp", "proc", 0, "") }},
		{name: "open-tree", what: "Clone a mount by open_tree.", run: func(*scene) error {
			_, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)
			return err
		}},
		{name: "mount-setattr", what: "Clear the read-only flag by mount_setattr.", run: func(*scene) error {
			return unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}},
		{name: "fsopen", what: "Open a file system by fsopen.", run: func(*scene) error {
			_, err := unix.Fsopen("tmpfs", 0)
			return err
		}},
		{name: "chroot", what: "Change the root.", run: func(*scene) error { return unix.Chroot("/tmp") }},
		{name: "pivot-root", what: "Swap the root.", run: func(*scene) error { return unix.PivotRoot("/tmp", "/tmp") }},
		{name: "victim-namespace", what: "Enter a victim's mount namespace.", run: func(s *scene) error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.PID), unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Setns(fd, unix.CLONE_NEWNS)
		}},
		{name: "user-namespace", what: "Become root of a new user namespace.", run: func(*scene) error { return unshareAlone(unix.CLONE_NEWUSER) }},
		{name: "user-namespace-clone", what: "The same by clone.", run: func(*scene) error { return cloneInto(unix.CLONE_NEWUSER) }},
		{name: "user-namespace-clone3", what: "The same by clone3, whose flags no filter sees.", run: func(*scene) error { return clone3Into(unix.CLONE_NEWUSER) }},
		{name: "user-namespace-mount", what: "Make the root writable from inside a new user namespace.", run: func(s *scene) error {
			cmd := exec.Command("unshare", "-Urm", "sh", "-c", "mount -o remount,bind,rw / && echo x > "+s.Dir+"/mask")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %.80s", err, out)
			}
			return nil
		}},
	}
}
