package files

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// newOverlay makes an empty qcow2 (QEMU docs/interop/qcow2.txt) for a disk of size bytes, in a file of room bytes that has no name and is full of holes.
func newOverlay(dir string, size, room int64) (*os.File, error) {
	const cluster = 1 << 16
	f, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	const perL1 = cluster / 8 * cluster // bytes of disk that an L1 entry covers
	l1 := (size + perL1 - 1) / perL1
	l1Clusters := (l1*8 + cluster - 1) / cluster
	be := binary.BigEndian
	b := make([]byte, 3*cluster) // header, refcount table, refcount block; then the L1 table, all zeros
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(l1))
	be.PutUint64(b[40:], 3*cluster)
	be.PutUint64(b[48:], cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[cluster:], 2*cluster)
	for i := range 3 + l1Clusters {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	_, err = f.WriteAt(b, 0)
	if err = errors.Join(err, f.Truncate(max(room, (4+l1Clusters)*cluster))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unnamed makes a file without a name: nothing is left of it after any end.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "make a file", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, ".overlay-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
