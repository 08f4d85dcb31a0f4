package main

import (
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// System calls that package syscall has not got.
const (
	sysNewfstatat = 262
	sysReadlinkat = 267
	sysFgetxattr  = 193
	sysFlistxattr = 196
	sysOpenat2    = 437

	oPath          = 0x200000
	atNofollow     = 0x100
	resolveInRoot  = 0x10
	resolveNoMagic = 0x02
	seekData       = 3
	seekHole       = 4
	maxTarget      = 4096
	maxXattrs      = 64 << 10
)

// openIn opens a path as if root were the root of all, symlinks included.
func openIn(root, path string, flags int) (*os.File, error) {
	dir, err := syscall.Open(root, oPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer syscall.Close(dir)
	p := strings.TrimLeft(path, "/")
	if p == "" {
		p = "."
	}
	name, err := syscall.BytePtrFromString(p)
	if err != nil {
		return nil, syscall.ENOENT
	}
	how := struct{ flags, mode, resolve uint64 }{uint64(flags | syscall.O_CLOEXEC), 0, resolveInRoot | resolveNoMagic}
	for {
		fd, _, e := syscall.Syscall6(sysOpenat2, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		switch e {
		case 0:
			return os.NewFile(fd, path), nil
		case syscall.EINTR, syscall.EAGAIN:
			continue
		}
		return nil, e
	}
}

func fstatat(dir int, name string, st *syscall.Stat_t) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return syscall.ENOENT
	}
	if _, _, e := syscall.Syscall6(sysNewfstatat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(st)), atNofollow, 0, 0); e != 0 {
		return e
	}
	return nil
}

// readlinkat reads a symlink; with an empty name dir is the link itself, opened by its path alone.
func readlinkat(dir int, name string) (string, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", syscall.ENOENT
	}
	b := make([]byte, maxTarget)
	n, _, e := syscall.Syscall6(sysReadlinkat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	if e != 0 {
		return "", e
	}
	return string(b[:n]), nil
}

// xattrs of an open file. A file system without them has none.
func xattrs(fd int) (map[string]string, error) {
	list := make([]byte, maxXattrs)
	n, _, e := syscall.Syscall(sysFlistxattr, uintptr(fd), uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)))
	if e == syscall.EOPNOTSUPP || e == 0 && n == 0 {
		return nil, nil
	}
	if e != 0 {
		return nil, e
	}
	out := map[string]string{}
	val := make([]byte, maxXattrs)
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		p, err := syscall.BytePtrFromString(name)
		if err != nil || name == "" || strings.Contains(name, "=") {
			continue
		}
		k, _, e := syscall.Syscall6(sysFgetxattr, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&val[0])), uintptr(len(val)), 0, 0)
		if e == syscall.ENODATA || e == syscall.EOPNOTSUPP {
			continue
		}
		if e != 0 {
			return nil, e
		}
		out[name] = string(val[:k])
	}
	return out, nil
}

func ioctl(fd uintptr, req uintptr, arg unsafe.Pointer) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, req, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
