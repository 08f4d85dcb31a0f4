package files

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// put writes b at off of a file.
func put(t testing.TB, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// filled is an ext4 image of a size, with a large file so that all of its parts matter.
func filled(t testing.TB, size int64) ([]byte, string) {
	t.Helper()
	src := t.TempDir()
	big := make([]byte, size/2)
	for i := range big {
		big[i] = byte(i>>16 ^ i>>8 ^ i)
	}
	write(t, filepath.Join(src, "big"), string(big))
	img := blank(t, size)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", src, img)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b, hashFile(t, filepath.Join(src, "big"))
}

// The first MiB of two physical volumes as LVM wrote them: group vg0 with extents of 4 MiB from 1 MiB on; root is extents 0–7 of the first and 3–10 of the second,
// str-ipe is striped by 64 KiB over extents 12–15 of both.
func TestLVM(t *testing.T) {
	const mib, extent = 1 << 20, 4 << 20
	pvs := []string{blank(t, 96*mib), blank(t, 96*mib)}
	for i, name := range []string{"pv1.gz", "pv2.gz"} {
		b, err := os.ReadFile("../../osimage/helperinit/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		put(t, pvs[i], b, 0)
	}
	root, rootSum := filled(t, 64*mib)
	put(t, pvs[0], root[:8*extent], mib)
	put(t, pvs[1], root[8*extent:], mib+3*extent)
	stripe, stripeSum := filled(t, 32*mib)
	for i := 0; i < len(stripe); i += 64 << 10 {
		k := i / (64 << 10)
		put(t, pvs[k%2], stripe[i:i+64<<10], mib+12*extent+int64(k/2)*(64<<10))
	}
	s := open(t, pvs...)
	vs := volumes(t, s)
	if v := vs["lvm.vg0.root"]; v.Filesystem != "ext4" || v.Size != 64*mib {
		t.Errorf("root: %+v", v)
	}
	if got, _ := sumOf(t, s, "lvm.vg0.root:/big"); got != rootSum {
		t.Error("the linear volume's file is different")
	}
	if got, _ := sumOf(t, s, "lvm.vg0.str-ipe:/big"); got != stripeSum {
		t.Error("the striped volume's file is different")
	}
	// Half of the group.
	vs = volumes(t, open(t, pvs[0]))
	if len(vs) != 2 || vs["lvm.vg0.root"].Note == "" {
		t.Errorf("with one of two disks: %+v", vs)
	}
}

// superblock is one of MD, version 1.2 (linux/raid/md_p.h).
func superblock(level int32, chunk uint32, disks, number int, sectors uint64) []byte {
	const dataOffset = 2048
	le := binary.LittleEndian
	b := make([]byte, 256+2*disks+2)
	le.PutUint32(b, 0xa92b4efc)
	le.PutUint32(b[4:], 1)
	copy(b[16:], "sixteen-bytes-id")
	copy(b[32:], "host:data")
	le.PutUint32(b[72:], uint32(level))
	le.PutUint64(b[80:], sectors)
	le.PutUint32(b[88:], chunk)
	le.PutUint32(b[92:], uint32(disks))
	le.PutUint64(b[128:], dataOffset)
	le.PutUint64(b[136:], sectors)
	le.PutUint64(b[144:], 8)
	le.PutUint32(b[160:], uint32(number))
	b[168] = byte(number + 1)
	le.PutUint64(b[200:], 5)
	le.PutUint64(b[208:], ^uint64(0)) // in sync
	le.PutUint32(b[220:], uint32(disks))
	for i := range disks {
		le.PutUint16(b[256+2*i:], uint16(i))
	}
	var sum uint64
	for i := 0; i+4 <= 256+2*disks; i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	if disks%2 == 1 {
		sum += uint64(le.Uint16(b[256+2*disks-2:]))
	}
	le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
	return b
}

func TestMD(t *testing.T) {
	const mib = 1 << 20
	data, sum := filled(t, 64*mib)
	mirror := []string{blank(t, 65*mib), blank(t, 65*mib)}
	for i, p := range mirror {
		put(t, p, superblock(1, 0, 2, i, 64*mib/512), 4096)
		put(t, p, data, mib)
	}
	s := open(t, mirror...)
	if v := volumes(t, s)["md.data"]; v.Filesystem != "ext4" {
		t.Errorf("mirror: %+v", v)
	}
	if got, _ := sumOf(t, s, "md.data:/big"); got != sum {
		t.Error("the mirror's file is different")
	}
	// One half is enough of a mirror.
	if got, _ := sumOf(t, open(t, mirror[1]), "md.data:/big"); got != sum {
		t.Error("half of a mirror has another file")
	}
	stripes := []string{blank(t, 33*mib), blank(t, 33*mib)}
	for i, p := range stripes {
		put(t, p, superblock(0, 128, 2, i, 32*mib/512), 4096)
	}
	for i := 0; i < len(data); i += 64 << 10 {
		k := i / (64 << 10)
		put(t, stripes[k%2], data[i:i+64<<10], mib+int64(k/2)*(64<<10))
	}
	if got, _ := sumOf(t, open(t, stripes...), "md.data:/big"); got != sum {
		t.Error("the stripes' file is different")
	}
}
