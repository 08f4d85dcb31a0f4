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

const (
	extendedL2 = 1 << 4 // the incompatible feature's bit: a cluster has 32 parts whose content can be told apart
	fineBits   = 17     // clusters of 128 KiB, so that a part is 4 KiB
)

// writeFine is writeBlank with extended L2 entries: a write of 4 KiB needs nothing of what lies below. It is for layers over a base that may not answer.
func writeFine(f *os.File, size int64) error {
	return writeEmpty(f, size, fineBits, 16, extendedL2)
}

// writeBlank writes an empty qcow2 v3 without a backing name (QEMU docs/interop/qcow2.txt): header, refcount table,
// refcount block, L1 table, all zero beyond that. An overlay is this too: what lies below is told by the manifest.
func writeBlank(f *os.File, size int64) error { return writeEmpty(f, size, clusterBits, 8, 0) }

// writeEmpty takes the size of a cluster, of an L2 entry, and the incompatible features.
func writeEmpty(f *os.File, size int64, bits uint32, entry int64, features uint64) error {
	cluster := int64(1) << bits
	perL1 := cluster / entry * cluster // bytes of disk that an L1 entry covers
	l1 := (size + perL1 - 1) / perL1
	l1Clusters := (l1*8 + cluster - 1) / cluster
	be := binary.BigEndian
	b := make([]byte, 3*cluster)
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], bits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(l1))
	be.PutUint64(b[40:], uint64(3*cluster)) // L1
	be.PutUint64(b[48:], uint64(cluster))   // refcount table
	be.PutUint32(b[56:], 1)
	be.PutUint64(b[72:], features)
	be.PutUint32(b[96:], 4) // 16-bit refcounts
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[cluster:], uint64(2*cluster))
	for i := range 3 + l1Clusters {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Truncate((3 + l1Clusters) * cluster)
}

func checkSize(size int64) error {
	if size <= 0 || size > inspect.MaxVirtual || size%512 != 0 {
		return fmt.Errorf("disk size %d: %w: a multiple of 512 from 512 to 64 TiB", size, ErrInvalid)
	}
	return nil
}
