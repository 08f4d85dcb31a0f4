package files

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// From nothing to the first listing, under TCG.
func TestOpenAndList(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "etc/hosts"), "127.0.0.1 localhost\n")
	img := blank(t, 64<<20)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", src, img)
	before, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	began := time.Now()
	s, err := Open(t.Context(), t.Context(), testPoint(img), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	up := time.Since(began)
	v := volumes(t, s)["a"]
	if v.Filesystem != "ext4" || v.Label != "root" || v.Size != 64<<20 || v.Note != "" {
		t.Errorf("volume %+v", v)
	}
	if got := list(t, s, "a:/"); got != "etc lost+found" {
		t.Errorf("root has %q", got)
	}
	t.Logf("helper up after %v, first listing after %v", up, time.Since(began))
	if got := content(t, s, "a:/etc/hosts"); got != "127.0.0.1 localhost\n" {
		t.Errorf("hosts: %q", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(img); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the point's disk changed, %v", err)
	}
}

// tree is what the file systems below are filled with where their tools can.
func tree(t testing.TB) string {
	t.Helper()
	src := t.TempDir()
	write(t, filepath.Join(src, "etc/hosts"), "127.0.0.1 localhost\n")
	write(t, filepath.Join(src, "ümlaut/日本.txt"), "hello")
	write(t, filepath.Join(src, "odd/new\nline"), "n")
	write(t, filepath.Join(src, "odd/\xff\xfe"), "not UTF-8")
	write(t, filepath.Join(src, `odd/sys-\x2d.slice`), "s")
	write(t, filepath.Join(src, "odd/"+strings.Repeat("x", 255)), "long")
	big := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(big)
	write(t, filepath.Join(src, "big"), string(big))
	deep := src
	for range 60 {
		deep = filepath.Join(deep, "d")
	}
	write(t, filepath.Join(deep, "bottom"), "deep")
	for from, to := range map[string]string{"etc/link": "hosts", "etc/abs": "/etc/hosts", "etc/out": "../../../../../../../proc/version", "etc/nowhere": "gone", "ldir": "etc"} {
		if err := os.Symlink(to, filepath.Join(src, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(src, "etc/hosts"), filepath.Join(src, "etc/hosts2")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), 20<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(40<<20), os.Chmod(filepath.Join(src, "etc/hosts"), 0o640),
		os.Chtimes(filepath.Join(src, "etc/hosts"), time.Unix(1600000000, 0), time.Unix(1600000000, 0))); err != nil {
		t.Fatal(err)
	}
	return src
}

func hashFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// checkTree looks at all of tree through the helper, and unpacks an archive of it.
func checkTree(t *testing.T, s *Session, volume, src string) {
	t.Helper()
	if got, want := list(t, s, volume+":/odd"), `new\x0aline sys-\x5cx2d.slice `+strings.Repeat("x", 255)+` \xff\xfe`; got != want {
		t.Errorf("odd has %q, want %q", got, want)
	}
	for path, want := range map[string]string{"/etc/link": "127.0.0.1 localhost\n", "/etc/abs": "127.0.0.1 localhost\n", "/ldir/hosts": "127.0.0.1 localhost\n", "/ümlaut/日本.txt": "hello",
		`/odd/new\x0aline`: "n", `/odd/\xff\xfe`: "not UTF-8", `/odd/sys-\x5cx2d.slice`: "s", strings.Repeat("/d", 60) + "/bottom": "deep"} {
		if got := content(t, s, volume+":"+path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]error{"/etc/out": ErrNotFound, "/etc/nowhere": ErrNotFound, "/no": ErrNotFound, "/etc": ErrWrongType, "/../../proc/version": ErrNotFound} {
		err := s.Read(t.Context(), Path{volume, path}, io.Discard, func(Entry) error { return nil })
		if !errors.Is(err, want) {
			t.Errorf("read %s: %v, want %v", path, err, want)
		}
	}
	for _, f := range []string{"big", "sparse"} {
		got, size := sumOf(t, s, volume+":/"+f)
		if st, err := os.Stat(filepath.Join(src, f)); err != nil || size != st.Size() || got != hashFile(t, filepath.Join(src, f)) {
			t.Errorf("%s is not what was written (%d bytes), %v", f, size, err)
		}
	}
	dst := t.TempDir()
	var archive bytes.Buffer
	raw := true
	if err := s.Download(t.Context(), []Path{{volume, "/"}}, &archive, func(r bool, _ int64) error { raw = r; return nil }); err != nil || raw {
		t.Fatalf("download: raw %v, %v", raw, err)
	}
	// mkfs.btrfs writes the holes of its source as zeros.
	if archive.Len() > 24<<20 && volume != "c" {
		t.Errorf("the archive of %s has %d bytes: the hole is in it", volume, archive.Len())
	}
	gnu := t.TempDir()
	path := filepath.Join(gnu, "a.tar")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	// What GNU tar makes of it is what it is for.
	tool(t, "tar", "-C", gnu, "--xattrs", "-xf", path)
	if _, err := Unpack(t.Context(), &archive, dst, UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{dst, gnu} {
		for _, f := range []string{"big", "sparse", "etc/hosts2", `odd/sys-\x2d.slice`, "odd/\xff\xfe", "odd/" + strings.Repeat("x", 255), "ümlaut/日本.txt", strings.Repeat("d/", 60) + "bottom"} {
			if hashFile(t, filepath.Join(out, f)) != hashFile(t, filepath.Join(src, f)) {
				t.Errorf("%q is different after unpacking in %s", f, out)
			}
		}
		if target, err := os.Readlink(filepath.Join(out, "etc/out")); err != nil || target != "../../../../../../../proc/version" {
			t.Errorf("link %q, %v", target, err)
		}
		a, _ := os.Stat(filepath.Join(out, "etc/hosts"))
		b, _ := os.Stat(filepath.Join(out, "etc/hosts2"))
		if a == nil || b == nil || !os.SameFile(a, b) || a.Mode().Perm() != 0o640 || a.ModTime().Unix() != 1600000000 {
			t.Errorf("hosts %v, hosts2 %v", a, b)
		}
	}
}

func TestFileSystems(t *testing.T) {
	src := tree(t)
	ext2, ext4, btrfs, xfs, iso := blank(t, 128<<20), blank(t, 128<<20), blank(t, 256<<20), blank(t, 320<<20), blank(t, 0)
	tool(t, "mke2fs", "-q", "-t", "ext2", "-d", src, ext2)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", src, ext4)
	tool(t, "mkfs.btrfs", "-q", "-L", "pool", "--rootdir", src, btrfs)
	tool(t, "mkfs.xfs", "-q", "-L", "data", "-p", xfsProto(t), xfs)
	tool(t, "genisoimage", "-quiet", "-R", "-V", "CDROM", "-o", iso, filepath.Join(src, "etc"))
	s := open(t, ext2, ext4, btrfs, xfs, iso)
	vs := volumes(t, s)
	for name, fs := range map[string]string{"a": "ext2", "b": "ext4", "c": "btrfs", "d": "xfs", "e": "iso9660"} {
		if vs[name].Filesystem != fs {
			t.Errorf("volume %s is %q, want %s", name, vs[name].Filesystem, fs)
		}
	}
	if vs["c"].Label != "pool" || vs["d"].Label != "data" || vs["e"].Label != "CDROM" {
		t.Errorf("labels: %+v", vs)
	}
	for _, v := range []string{"a", "b", "c"} {
		checkTree(t, s, v, src)
	}
	if got := content(t, s, "d:/sub/hosts"); got != "127.0.0.1 localhost\n" {
		t.Errorf("xfs: %q", got)
	}
	if got := content(t, s, "e:/hosts"); got != "127.0.0.1 localhost\n" {
		t.Errorf("iso9660: %q", got)
	}
}

// xfsProto is a prototype file of mkfs.xfs(8).
func xfsProto(t testing.TB) string {
	hosts := filepath.Join(t.TempDir(), "hosts")
	write(t, hosts, "127.0.0.1 localhost\n")
	proto := hosts + ".proto"
	write(t, proto, "/\n0 0\nd--755 0 0\nsub d--755 0 0\nhosts ---644 0 0 "+hosts+"\n$\n$\n")
	return proto
}

func TestWindowsAndPartitions(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "boot.ini"), "x")
	write(t, filepath.Join(src, "grün.txt"), "green")
	ntfs, fat, disk := blank(t, 32<<20), blank(t, 40<<20), blank(t, 128<<20)
	tool(t, "mkntfs", "-q", "-F", "-f", "-L", "System", ntfs)
	tool(t, "ntfscp", ntfs, filepath.Join(src, "boot.ini"), "boot.ini")
	tool(t, "mkfs.vfat", "-F", "32", "-n", "EFI", fat)
	tool(t, "mcopy", "-i", fat, filepath.Join(src, "boot.ini"), "::boot.ini")
	tool(t, "sgdisk", "-n", "1:2048:+40M", "-n", "2:0:+32M", "-n", "3:0:+8M", disk)
	into(t, disk, fat, 1<<20)
	into(t, disk, ntfs, 41<<20)
	mbr := blank(t, 64<<20)
	// One entry: type 7, from sector 2048, 65536 sectors.
	table := make([]byte, 512)
	copy(table[446:], []byte{0, 0, 0, 0, 7, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0})
	table[510], table[511] = 0x55, 0xaa
	f, err := os.OpenFile(mbr, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(table, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	into(t, mbr, ntfs, 1<<20)
	s := open(t, disk, mbr)
	vs := volumes(t, s)
	if vs["a.1"].Filesystem != "vfat" || vs["a.1"].Label != "EFI" || vs["a.2"].Filesystem != "ntfs" || vs["b.1"].Filesystem != "ntfs" || vs["a.3"].Note == "" {
		t.Fatalf("volumes %+v", vs)
	}
	for _, p := range []string{"a.1:/boot.ini", "a.2:/boot.ini", "b.1:/boot.ini"} {
		if got := content(t, s, p); got != "x" {
			t.Errorf("%s holds %q", p, got)
		}
	}
	if _, err := s.List(t.Context(), Path{"a.3", "/"}, "", 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("an empty partition: %v", err)
	}
}

func into(t testing.TB, disk, part string, off int64) {
	t.Helper()
	b, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
