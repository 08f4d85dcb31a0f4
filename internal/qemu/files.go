package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// listen makes a listening socket and a connection to it, which waits in the socket's queue for QEMU.
func listen(ctx context.Context, path string) (*os.File, net.Conn, error) {
	// sun_path has room for 107 characters; the error the kernel gives does not say so.
	if len(path) > 107 {
		return nil, nil, fmt.Errorf("socket %s: the path is longer than 107 characters; use a shorter state directory", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, nil, err
	}
	conn, err := dialUnix(ctx, path)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, conn, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return conn, nil
}

// openLayer opens an image for QEMU. A link in place of the file is refused, and so is a qcow2 whose header names an
// external data file, which QEMU would open by that name.
func openLayer(path string, write bool) (*os.File, error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(path, mode|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := checkImage(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	return f, nil
}

func checkImage(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() || !st.Mode().IsRegular() && st.Mode()&os.ModeDevice == 0 {
		return errors.New("is neither a file nor a block device")
	}
	var head [80]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// Incompatible feature bit 2: external data file (QEMU docs/interop/qcow2.txt).
	if n == len(head) && string(head[:4]) == "QFI\xfb" && binary.BigEndian.Uint32(head[4:]) >= 3 && binary.BigEndian.Uint64(head[72:])&4 != 0 {
		return errors.New("keeps its data in an external file; convert it with qemu-img convert first")
	}
	return nil
}

// openForUser opens a file that QEMU opens again by /proc/self/fd, which takes permission to read it. A file that
// others may not read is copied into memory that uid owns.
func openForUser(path string, uid uint32) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode()&0o004 != 0 {
		return f, nil
	}
	defer f.Close()
	if !st.Mode().IsRegular() || st.Size() > 1<<30 {
		return nil, fmt.Errorf("%s: not a file of at most 1 GiB", path)
	}
	m, err := memfd(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(m, f); err != nil {
		m.Close()
		return nil, fmt.Errorf("copy %s: %w", path, err)
	}
	if err := m.Chown(int(uid), -1); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeMemory makes the files of the guest's RAM, which QEMU opens by name. Old ones are not reused: what another run
// left in them is not this guest's to see.
func makeMemory(s *Spec, uid, gid uint32) error {
	if err := os.MkdirAll(filepath.Dir(s.Memory.Path), 0o711); err != nil {
		return err
	}
	if err := makeRAM(s.Memory.Path, s.Memory.MiB, uid, gid); err != nil {
		return err
	}
	for _, d := range s.Memory.DIMMs {
		if err := makeRAM(dimmPath(s.Memory.Path, d.Slot), d.MiB, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func makeRAM(path string, mib int64, uid, gid uint32) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(mib<<20), f.Chown(int(uid), int(gid)), f.Close())
}

// removeMemory gives the guest's RAM back. It is safe while QEMU runs only in so far as QEMU keeps what it has mapped.
func removeMemory(s *Spec) {
	os.Remove(s.Memory.Path)
	for _, d := range s.Memory.DIMMs {
		removeDIMM(s.Memory.Path, d.Slot)
	}
}

func removeDIMM(ram string, slot int) { os.Remove(dimmPath(ram, slot)) }

// removeRuntime deletes what Start made in the machine's directory, but for the log.
func removeRuntime(dir string) {
	for _, name := range []string{qmpSocket, conSocket, qgaSocket, nbdSocket, stderrFIFO, stateFile, stateFile + ".new"} {
		os.Remove(filepath.Join(dir, name))
	}
}
