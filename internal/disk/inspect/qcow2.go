package inspect

import (
	"encoding/binary"
	"math/bits"
)

// The qcow2 header as in QEMU's docs/interop/qcow2.txt.
const (
	qcowDirty       = 1 << 0
	qcowCorrupt     = 1 << 1
	qcowDataFile    = 1 << 2
	qcowCompression = 1 << 3
	qcowExtendedL2  = 1 << 4

	extDataFile = 0x44415441
	extLUKS     = 0x0537be77

	qcowOffset = 0x00fffffffffffe00
)

func qcow2(f file) (Info, error) {
	h, err := f.at(QCOW2, "the header", 0, 72)
	if err != nil {
		return Info{}, err
	}
	be := binary.BigEndian
	if string(h[:4]) != string(qcowMagic) {
		return Info{}, refuse(QCOW2, "the magic number is wrong")
	}
	version := be.Uint32(h[4:])
	if version != 2 && version != 3 {
		return Info{}, refuse(QCOW2, "version %d isn't supported (2 and 3 are)", version)
	}
	if n := be.Uint32(h[16:]); n != 0 && be.Uint64(h[8:]) != 0 {
		name := f.upTo(int64(be.Uint64(h[8:])&(1<<62-1)), int(min(n, 128)))
		return Info{}, refuse(QCOW2, "it has a backing file (%q); flatten it first: qemu-img convert -O qcow2", name)
	}
	cbits := be.Uint32(h[20:])
	if cbits < 9 || cbits > 21 {
		return Info{}, refuse(QCOW2, "the cluster size is 2^%d; 2^9 to 2^21 are valid", cbits)
	}
	q := qcow{f: f, cluster: 1 << cbits, bits: cbits, entry: 8}
	size := be.Uint64(h[24:])
	if err := checkVirtual(QCOW2, size); err != nil {
		return Info{}, err
	}
	if be.Uint32(h[32:]) != 0 {
		return Info{}, refuse(QCOW2, "it is encrypted; decrypt it first")
	}
	variant := "v2"
	extAt, refOrder := uint64(72), uint32(4)
	if version == 3 {
		variant = "v3"
		if extAt, refOrder, err = q.v3(); err != nil {
			return Info{}, err
		}
	}
	if err := q.extensions(extAt); err != nil {
		return Info{}, err
	}
	if refOrder > 6 {
		return Info{}, refuse(QCOW2, "the refcount order %d is invalid", refOrder)
	}
	if err := q.table("the refcount table", be.Uint64(h[48:]), uint64(be.Uint32(h[56:]))*q.cluster, 8<<20); err != nil {
		return Info{}, err
	}
	if be.Uint32(h[56:]) == 0 {
		return Info{}, refuse(QCOW2, "it has no refcount table")
	}
	snaps := be.Uint32(h[60:])
	if snaps > 0 {
		if snaps > 65536 {
			return Info{}, refuse(QCOW2, "it claims %d internal snapshots", snaps)
		}
		if err := q.table("the snapshot table", be.Uint64(h[64:]), uint64(snaps)*40, 64<<20); err != nil {
			return Info{}, err
		}
	}
	if err := q.walk(size, be.Uint32(h[36:]), be.Uint64(h[40:])); err != nil {
		return Info{}, err
	}
	return Info{Variant: variant, VirtualSize: int64(size), ClusterSize: int64(q.cluster), Snapshots: int(snaps)}, nil
}

type qcow struct {
	f       file
	cluster uint64
	bits    uint32
	entry   uint64 // bytes of an L2 entry: 8, or 16 with subclusters
}

// v3 checks the fields that version 3 added; it returns where extensions begin and the refcount order.
func (q *qcow) v3() (uint64, uint32, error) {
	h, err := q.f.at(QCOW2, "the version 3 header", 0, 104)
	if err != nil {
		return 0, 0, err
	}
	be := binary.BigEndian
	inc := be.Uint64(h[72:])
	switch {
	case inc&qcowDataFile != 0:
		return 0, 0, refuse(QCOW2, "it keeps its data in an external file; convert it to a self-contained one first")
	case inc&qcowCorrupt != 0:
		return 0, 0, refuse(QCOW2, "it is marked corrupt; repair it first: qemu-img check -r all")
	case inc&qcowDirty != 0:
		return 0, 0, refuse(QCOW2, "it wasn't closed cleanly; repair it first: qemu-img check -r all")
	case inc&^(qcowCompression|qcowExtendedL2) != 0:
		return 0, 0, refuse(QCOW2, "it needs features that aren't known (incompatible bits %#x)", inc)
	}
	n := uint64(be.Uint32(h[100:]))
	if n < 104 || n > q.cluster || n%8 != 0 {
		return 0, 0, refuse(QCOW2, "the header length %d is invalid", n)
	}
	if n > 104 {
		c, err := q.f.at(QCOW2, "the compression type", 104, 1)
		if err != nil {
			return 0, 0, err
		}
		if c[0] > 1 || (c[0] != 0) != (inc&qcowCompression != 0) {
			return 0, 0, refuse(QCOW2, "the compression type %d is invalid", c[0])
		}
	} else if inc&qcowCompression != 0 {
		return 0, 0, refuse(QCOW2, "it claims a compression type but has none")
	}
	if inc&qcowExtendedL2 != 0 {
		if q.bits < 14 {
			return 0, 0, refuse(QCOW2, "subclusters need clusters of 16 KiB or more")
		}
		q.entry = 16
	}
	return n, be.Uint32(h[96:]), nil
}

// extensions walks the header extensions and refuses those that lead out of the file.
func (q *qcow) extensions(off uint64) error {
	for off+8 <= q.cluster && q.f.holds(off, 8) {
		e, err := q.f.at(QCOW2, "a header extension", off, 8)
		if err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(e), uint64(binary.BigEndian.Uint32(e[4:]))
		switch kind {
		case 0:
			return nil
		case extDataFile:
			return refuse(QCOW2, "it names an external data file")
		case extLUKS:
			return refuse(QCOW2, "it is encrypted; decrypt it first")
		}
		off += 8
		if n > q.cluster-off {
			return refuse(QCOW2, "a header extension (%#x, %d bytes) runs out of the first cluster", kind, n)
		}
		off += (n + 7) &^ 7
	}
	return nil
}

func (q *qcow) table(what string, off, n, most uint64) error {
	switch {
	case n > most:
		return refuse(QCOW2, "%s claims %d bytes; at most %d are believed", what, n, most)
	case off%q.cluster != 0:
		return refuse(QCOW2, "%s isn't aligned to a cluster", what)
	case off == 0 && n > 0:
		return refuse(QCOW2, "%s overlaps the header", what)
	case !q.f.holds(off, n):
		return refuse(QCOW2, "%s (%d bytes at %d) lies beyond the end of the file (%d bytes): truncated or corrupt", what, n, off, q.f.size)
	}
	return nil
}

// walk follows L1 to every L2 table and checks that what they point at is inside the file.
// Each table may be used once, so the work is bounded by the size of the file.
func (q *qcow) walk(size uint64, n uint32, off uint64) error {
	perL2 := q.cluster / q.entry
	span := q.cluster * perL2
	need := (size + span - 1) / span
	if uint64(n) < need {
		return refuse(QCOW2, "the L1 table has %d entries; a disk of %d bytes needs %d", n, size, need)
	}
	if err := q.table("the L1 table", off, uint64(n)*8, 32<<20); err != nil {
		return err
	}
	l1, err := q.f.at(QCOW2, "the L1 table", off, int(n)*8)
	if err != nil {
		return err
	}
	seen := make(map[uint64]struct{})
	for i := 0; i < len(l1); i += 8 {
		l2 := binary.BigEndian.Uint64(l1[i:]) & qcowOffset
		if l2 == 0 {
			continue
		}
		if _, dup := seen[l2]; dup {
			return refuse(QCOW2, "two L1 entries use the L2 table at %d: corrupt", l2)
		}
		seen[l2] = struct{}{}
		if err := q.table("an L2 table", l2, q.cluster, q.cluster); err != nil {
			return err
		}
		if err := q.l2(l2); err != nil {
			return err
		}
	}
	return nil
}

func (q *qcow) l2(off uint64) error {
	t, err := q.f.at(QCOW2, "an L2 table", off, int(q.cluster))
	if err != nil {
		return err
	}
	// A compressed cluster's entry: offset in the low x bits (QEMU docs/interop/qcow2.txt).
	x := 62 - (q.bits - 8)
	for i := uint64(0); i < q.cluster; i += q.entry {
		e := binary.BigEndian.Uint64(t[i:])
		if e == 0 {
			continue
		}
		at := e & qcowOffset
		if e&(1<<62) != 0 {
			at = e & (1<<x - 1)
		} else if at%q.cluster != 0 {
			return refuse(QCOW2, "a data cluster at %d isn't aligned: corrupt", at)
		}
		if at >= uint64(q.f.size) {
			return refuse(QCOW2, "a data cluster at %d lies beyond the end of the file (%d bytes): truncated or corrupt", at, q.f.size)
		}
	}
	return nil
}

func powerOfTwo(n uint64) bool { return bits.OnesCount64(n) == 1 }
