package disk

import (
	"encoding/binary"
	"fmt"
	"os"

	"drover/internal/disk/inspect"
)

const (
	clusterBits = 16
	clusterSize = 1 << clusterBits
)

// writeBlank writes an empty qcow2 v3 without a backing name (QEMU docs/interop/qcow2.txt): header, refcount table,
// refcount block, L1 table, all zero beyond that. An overlay is this too: what lies below is told by the manifest.
func writeBlank(f *os.File, size int64) error {
	const perL1 = clusterSize / 8 * clusterSize // bytes of disk that an L1 entry covers
	l1 := (size + perL1 - 1) / perL1
	l1Clusters := (l1*8 + clusterSize - 1) / clusterSize
	be := binary.BigEndian
	b := make([]byte, 3*clusterSize)
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(l1))
	be.PutUint64(b[40:], 3*clusterSize) // L1
	be.PutUint64(b[48:], 1*clusterSize) // refcount table
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4) // 16-bit refcounts
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[clusterSize:], 2*clusterSize)
	for i := range 3 + l1Clusters {
		be.PutUint16(b[2*clusterSize+2*i:], 1)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Truncate((3 + l1Clusters) * clusterSize)
}

func checkSize(size int64) error {
	if size <= 0 || size > inspect.MaxVirtual || size%512 != 0 {
		return fmt.Errorf("disk size %d: %w: a multiple of 512 from 512 to 64 TiB", size, ErrInvalid)
	}
	return nil
}
