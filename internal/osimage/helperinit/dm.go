package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// Device mapper's ioctls (linux/dm-ioctl.h).
const (
	dmHead    = 312
	dmCreate  = 3
	dmSuspend = 6 // without its flag: resume
	dmLoad    = 9
)

// target is a line of a device mapper table, in sectors.
type target struct {
	start, length uint64
	kind, params  string
}

// mapDevice makes a device of a table and gives its name under /dev.
func mapDevice(name string, table []target) (string, error) {
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	b, err := dmCall(ctl, dmCreate, name, nil)
	if err != nil {
		return "", fmt.Errorf("make a device: %w", err)
	}
	if _, err := dmCall(ctl, dmLoad, name, table); err != nil {
		return "", fmt.Errorf("load its table: %w", err)
	}
	if _, err := dmCall(ctl, dmSuspend, name, nil); err != nil {
		return "", fmt.Errorf("resume it: %w", err)
	}
	dev := binary.LittleEndian.Uint64(b[40:])
	return fmt.Sprintf("dm-%d", dev&0xff|dev>>12&0xfff00), nil
}

func dmCall(ctl *os.File, cmd uintptr, name string, table []target) ([]byte, error) {
	b := dmRequest(name, table)
	return b, ioctl(ctl.Fd(), 3<<30|dmHead<<16|0xfd<<8|cmd, unsafe.Pointer(&b[0]))
}

func dmRequest(name string, table []target) []byte {
	b := make([]byte, dmHead)
	le := binary.LittleEndian
	le.PutUint32(b, 4) // interface version 4.0.0
	le.PutUint32(b[16:], dmHead)
	le.PutUint32(b[20:], uint32(len(table)))
	copy(b[48:48+127], name)
	for _, t := range table {
		spec := make([]byte, 40)
		le.PutUint64(spec, t.start)
		le.PutUint64(spec[8:], t.length)
		copy(spec[24:39], t.kind)
		spec = append(spec, t.params...)
		spec = append(spec, make([]byte, 8-len(spec)%8)...)
		le.PutUint32(spec[20:], uint32(len(spec)))
		b = append(b, spec...)
	}
	if len(table) == 0 {
		b = append(b, make([]byte, 16<<10)...)
	}
	le.PutUint32(b[12:], uint32(len(b)))
	return b
}

// scanBtrfs tells btrfs of a device, so that the others of its file system find it (BTRFS_IOC_SCAN_DEV).
func scanBtrfs(dev string) {
	ctl, err := os.OpenFile("/dev/btrfs-control", os.O_RDWR, 0)
	if err != nil {
		logf("btrfs: %v", err)
		return
	}
	defer ctl.Close()
	var args [4096]byte
	copy(args[8:4000], "/dev/"+dev)
	if err := ioctl(ctl.Fd(), 1<<30|4096<<16|0x94<<8|4, unsafe.Pointer(&args[0])); err != nil {
		logf("btrfs: scan %s: %v", dev, err)
	}
}

// makeNode makes a block device's node.
func makeNode(path string, major, minor int) error {
	err := syscall.Mknod(path, syscall.S_IFBLK|0o600, major<<8|minor)
	if err == syscall.EEXIST {
		return nil
	}
	return err
}
