package inspect

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// corpus makes one real image per format with the same content.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "src.raw")
	run(t, "qemu-img", "create", "-q", "-f", "raw", src, "8M")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 9 5M 100k", src)
	images := make(map[string][]byte)
	for name, args := range map[string][]string{
		"qcow2-v2":             {"-O", "qcow2", "-o", "compat=0.10"},
		"qcow2-v3":             {"-O", "qcow2", "-o", "compat=1.1"},
		"qcow2-zstd":           {"-c", "-O", "qcow2", "-o", "compression_type=zstd"},
		"qcow2-extl2":          {"-O", "qcow2", "-o", "extended_l2=on"},
		"qcow2-compressed":     {"-c", "-O", "qcow2"},
		"qcow2-small-clusters": {"-O", "qcow2", "-o", "cluster_size=512"},
		"vmdk-sparse":          {"-O", "vmdk", "-o", "subformat=monolithicSparse"},
		"vmdk-stream":          {"-O", "vmdk", "-o", "subformat=streamOptimized"},
		"vhdx":                 {"-O", "vhdx"},
		"vhd-dynamic":          {"-O", "vpc", "-o", "subformat=dynamic,force_size=on"},
		"vhd-fixed":            {"-O", "vpc", "-o", "subformat=fixed,force_size=on"},
	} {
		out := filepath.Join(dir, name)
		run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), src, out)...)
		images[name] = read(t, out)
	}
	run(t, "genisoimage", "-quiet", "-V", "HELLO", "-o", filepath.Join(dir, "iso"), src)
	images["iso"] = read(t, filepath.Join(dir, "iso"))
	images["ova"] = makeOVA(t, images["vmdk-stream"], func(*ovaSpec) {})
	return images
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type ovaSpec struct {
	name, href, size, disk string
	kind                   byte
}

func makeOVA(t testing.TB, disk []byte, change func(*ovaSpec)) []byte {
	t.Helper()
	s := ovaSpec{name: "disk1.vmdk", href: "disk1.vmdk", size: fmt.Sprint(len(disk)), kind: tar.TypeReg,
		disk: `<Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="d" ovf:fileRef="f1"/>`}
	change(&s)
	ovf := `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References><File ovf:href="` +
		s.href + `" ovf:id="f1" ovf:size="` + s.size + `"/></References><DiskSection>` + s.disk + `</DiskSection></Envelope>`
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []struct {
		name string
		kind byte
		data []byte
	}{{"vm.ovf", tar.TypeReg, []byte(ovf)}, {s.name, s.kind, disk}} {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Mode: 0o644, Size: int64(len(m.data))}
		if m.kind != tar.TypeReg {
			h.Size, h.Linkname, m.data = 0, "/etc/passwd", nil
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func look(b []byte) (Info, error) {
	return Inspect(bytes.NewReader(b), int64(len(b)), Options{})
}

func TestCorpusIsAccepted(t *testing.T) {
	for name, b := range corpus(t) {
		info, err := look(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		switch {
		case name == "iso":
			if info.Format != ISO || info.Label != "HELLO" {
				t.Errorf("iso: %+v", info)
			}
		case name == "ova":
			if len(info.Disks) != 1 || info.Disks[0].Capacity != 8<<20 {
				t.Fatalf("ova: %+v", info)
			}
			d := info.Disks[0]
			if in, err := look(b[d.Offset : d.Offset+d.Size]); err != nil || in.Variant != "streamOptimized" {
				t.Errorf("the disk inside the OVA: %+v, %v", in, err)
			}
		default:
			if info.VirtualSize != 8<<20 {
				t.Errorf("%s: virtual size %d", name, info.VirtualSize)
			}
			if !strings.HasPrefix(name, strings.Replace(string(info.Format), "vpc", "vhd", 1)) {
				t.Errorf("%s: taken for %s", name, info.Format)
			}
		}
	}
}

func TestTruncationIsRefused(t *testing.T) {
	for name, b := range corpus(t) {
		for _, n := range []int{1, 100, 600, len(b) / 4, len(b) / 2} {
			if _, err := look(b[:n]); !errors.Is(err, ErrRefused) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
			}
		}
	}
}

func TestLiesAreRefused(t *testing.T) {
	images := corpus(t)
	be, le := binary.BigEndian, binary.LittleEndian
	patch := func(name string, f func(b []byte)) []byte {
		b := bytes.Clone(images[name])
		f(b)
		return b
	}
	dir := t.TempDir()
	backed, data := filepath.Join(dir, "backed"), filepath.Join(dir, "data")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", backed, "8M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/outside,data_file_raw=on", data, "8M")
	text := []byte("# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 16384 FLAT \"/etc/passwd\" 0\n")
	descriptor := func(from, to string) func([]byte) {
		return func(b []byte) {
			i := bytes.Index(b, []byte(from))
			if i < 0 || len(from) != len(to) {
				t.Fatalf("no %q in the descriptor", from)
			}
			copy(b[i:], to)
		}
	}
	stream := images["vmdk-stream"]
	for _, c := range []struct {
		name, want string
		b          []byte
	}{
		{"backing", "backing file", read(t, backed)},
		{"data file", "external file", read(t, data)},
		{"encrypted", "encrypted", patch("qcow2-v3", func(b []byte) { b[35] = 2 })},
		{"corrupt bit", "marked corrupt", patch("qcow2-v3", func(b []byte) { b[79] |= 2 })},
		{"dirty bit", "closed cleanly", patch("qcow2-v3", func(b []byte) { b[79] |= 1 })},
		{"unknown bit", "features", patch("qcow2-v3", func(b []byte) { b[72] |= 0x80 })},
		{"version", "version 9", patch("qcow2-v3", func(b []byte) { b[7] = 9 })},
		{"cluster bits", "cluster size", patch("qcow2-v3", func(b []byte) { b[23] = 40 })},
		{"huge", "64 TiB", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[24:], 1<<60) })},
		{"zero", "size zero", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[24:], 0) })},
		{"L1 short", "L1 table has", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[24:], 1<<40) })},
		{"L1 outside", "beyond the end", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[40:], 1<<40) })},
		{"refcount outside", "beyond the end", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[48:], 1<<62) })},
		{"refcount order", "refcount order", patch("qcow2-v3", func(b []byte) { be.PutUint32(b[96:], 60) })},
		{"snapshots", "internal snapshots", patch("qcow2-v3", func(b []byte) { be.PutUint32(b[60:], 1<<31) })},
		{"L2 outside", "beyond the end", patch("qcow2-v3", func(b []byte) { be.PutUint64(b[be.Uint64(b[40:]):], 1<<63|1<<40) })},
		{"data outside", "beyond the end", patch("qcow2-v3", func(b []byte) {
			l2 := be.Uint64(b[be.Uint64(b[40:]):]) & qcowOffset
			be.PutUint64(b[l2:], 1<<63|1<<41)
		})},
		{"descriptor only", "text descriptor", text},
		{"vmdk capacity 0", "points at other files", patch("vmdk-sparse", func(b []byte) { le.PutUint64(b[12:], 0) })},
		{"vmdk huge", "disagree", patch("vmdk-sparse", func(b []byte) { le.PutUint64(b[12:], 1<<50) })},
		{"vmdk flat", "sparse extent", patch("vmdk-sparse", descriptor("16384 SPARSE", "16384 FLAT  "))},
		{"vmdk path", "names a path", patch("vmdk-sparse", descriptor(`SPARSE "vmdk`, `SPARSE "/etc`))},
		{"vmdk parent", "delta of a parent", patch("vmdk-sparse", descriptor("parentCID=ffffffff", "parentCID=0000beef"))},
		{"vmdk type", "isn't supported", patch("vmdk-sparse", descriptor("monolithicSparse", "twoGbMaxExtentSpa"[:16]))},
		{"vmdk no footer", "footer", patch("vmdk-stream", func(b []byte) { le.PutUint64(b[56:], vmdkGDAtEnd) })},
		{"vhdx headers", "headers are corrupt", patch("vhdx", func(b []byte) { b[64<<10+9]++; b[128<<10+9]++ })},
		{"vhdx regions", "region tables are corrupt", patch("vhdx", func(b []byte) { b[192<<10+9]++; b[256<<10+9]++ })},
		{"vhd sum", "checksum", patch("vhd-fixed", func(b []byte) { b[len(b)-512+50]++ })},
		{"iso size", "truncated", patch("iso", func(b []byte) { le.PutUint32(b[32768+80:], 1<<30); be.PutUint32(b[32768+84:], 1<<30) })},
		{"ova climbs", "plain file name", makeOVA(t, stream, func(s *ovaSpec) { s.name = "../../etc/cron.d/x" })},
		{"ova link", "regular file", makeOVA(t, stream, func(s *ovaSpec) { s.kind = tar.TypeSymlink })},
		{"ova href", "isn't in the archive", makeOVA(t, stream, func(s *ovaSpec) { s.href = "/etc/passwd" })},
		{"ova size", "descriptor says", makeOVA(t, stream, func(s *ovaSpec) { s.size = "12" })},
		{"ova no disk", "no disk", makeOVA(t, stream, func(s *ovaSpec) { s.disk = "" })},
		{"ova capacity", "isn't believed", makeOVA(t, stream, func(s *ovaSpec) { s.disk = strings.Replace(s.disk, `"8"`, `"80000000000"`, 1) })},
		{"web page", "no known disk image", []byte("<html>404 not found</html>")},
		{"empty", "empty", nil},
	} {
		_, err := look(c.b)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want a refusal with %q", c.name, err, c.want)
		}
	}
	foot := append(bytes.Clone(stream), stream[:512]...)
	foot = append(foot, make([]byte, 512)...)
	le.PutUint64(foot[56:], vmdkGDAtEnd)
	if _, err := look(foot); err != nil {
		t.Errorf("a stream with its directory named in the footer: %v", err)
	}
	grow := append(bytes.Clone(images["vhd-fixed"][:1<<20]), images["vhd-fixed"][8<<20:]...)
	if _, err := look(grow); err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("a fixed VHD without its middle: %v", err)
	}
}

// patched is an image with some bytes overwritten, without a copy of the image.
type patched struct {
	base  []byte
	off   int64
	patch []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for i, c := range p.patch {
		if at := p.off + int64(i) - off; at >= 0 && at < int64(n) {
			b[at] = c
		}
	}
	return n, err
}

// FuzzPatch overwrites bytes of a real image of each format: far tables are reached that random bytes never reach.
func FuzzPatch(f *testing.F) {
	images := corpus(f)
	names := slices.Sorted(maps.Keys(images))
	for i := range names {
		for _, off := range []uint32{0, 12, 24, 40, 60, 72, 512, 32768 + 80, 65536, 192 << 10, 1 << 20, 2 << 20} {
			f.Add(byte(i), off, uint32(0), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		}
	}
	f.Fuzz(func(t *testing.T, which byte, off, cut uint32, patch []byte) {
		b := images[names[int(which)%len(names)]]
		size := int64(len(b)) - int64(cut)%int64(len(b))
		info, err := Inspect(patched{b[:size], int64(off), patch}, size, Options{})
		if err == nil && (info.VirtualSize < 0 || info.VirtualSize > MaxVirtual) {
			t.Fatalf("accepted with virtual size %d", info.VirtualSize)
		}
		if err != nil && !errors.Is(err, ErrRefused) {
			t.Fatalf("an error that isn't a refusal: %v", err)
		}
	})
}

func FuzzInspect(f *testing.F) {
	for name, b := range corpus(f) {
		if name != "vhdx" {
			f.Add(b[:min(len(b), 40<<10)], byte(0))
		}
	}
	f.Add([]byte("# Disk DescriptorFile\n"), byte(2))
	formats := []Format{"", QCOW2, VMDK, VHDX, VHD, OVA, ISO, Raw}
	f.Fuzz(func(t *testing.T, b []byte, which byte) {
		opt := Options{Format: formats[int(which)%len(formats)]}
		info, err := Inspect(bytes.NewReader(b), int64(len(b)), opt)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("an error that isn't a refusal: %v", err)
			}
			return
		}
		if info.VirtualSize < 0 || info.VirtualSize > MaxVirtual {
			t.Fatalf("accepted with virtual size %d", info.VirtualSize)
		}
		for _, d := range info.Disks {
			if d.Offset < 0 || d.Size < 0 || d.Offset+d.Size > int64(len(b)) || !safeName(d.Name) {
				t.Fatalf("accepted with the member %+v", d)
			}
		}
	})
}

func FuzzDescriptor(f *testing.F) {
	f.Add("createType=\"monolithicSparse\"\nparentCID=ffffffff\nRW 16384 SPARSE \"a.vmdk\"\n", uint64(16384))
	f.Fuzz(func(t *testing.T, s string, n uint64) {
		if kind, err := vmdkDescriptor(s, n); err == nil && kind == "" {
			t.Fatal("accepted without a type")
		}
	})
}

func FuzzOVF(f *testing.F) {
	f.Add([]byte(`<Envelope><References><File href="a" id="x"/></References><DiskSection><Disk fileRef="x" capacity="1"/></DiskSection></Envelope>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		disks, err := ovfDisks(b, map[string]Member{"a": {Name: "a", Size: 1}})
		if err == nil && (len(disks) == 0 || disks[0].Capacity <= 0 || disks[0].Capacity > MaxVirtual) {
			t.Fatalf("accepted with %+v", disks)
		}
	})
}
