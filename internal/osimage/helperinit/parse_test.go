package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

// golden is the first MiB of a physical volume as LVM wrote it.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
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
	return b
}

func TestLVMTables(t *testing.T) {
	p, ok := readPV(bytes.NewReader(golden(t, "pv1.gz")))
	if !ok || len(p.uuid) != 32 {
		t.Fatalf("physical volume %+v", p)
	}
	name, g := groupOf(p.text)
	if name != "vg0" {
		t.Fatalf("group %q", name)
	}
	q, _ := readPV(bytes.NewReader(golden(t, "pv2.gz")))
	devs := map[string]string{p.uuid: "253:0", q.uuid: "253:16"}
	lvs := lvsOf(name, g, func(uuid string) (string, bool) { d, ok := devs[uuid]; return d, ok })
	if len(lvs) != 2 || lvs[0].name != "root" || lvs[1].name != "str-ipe" {
		t.Fatalf("volumes %+v", lvs)
	}
	want := []target{{0, 65536, "linear", "253:0 2048"}, {65536, 65536, "linear", "253:16 26624"}}
	if got := lvs[0].table; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("root: %+v", got)
	}
	if got := lvs[1].table; len(got) != 1 || got[0] != (target{0, 65536, "striped", "2 128 253:0 100352 253:16 100352"}) {
		t.Errorf("striped: %+v", got)
	}
	delete(devs, q.uuid)
	for _, v := range lvsOf(name, g, func(uuid string) (string, bool) { d, ok := devs[uuid]; return d, ok }) {
		if v.note == "" || v.table != nil {
			t.Errorf("with a disk missing: %+v", v)
		}
	}
}

func TestUnsupportedLVM(t *testing.T) {
	_, g := groupOf(`vg { extent_size = 8192 physical_volumes { } logical_volumes { pool { status = ["VISIBLE"] segment_count = 1 segment1 { type = "thin-pool" } } hid { status = ["READ"] } } }`)
	lvs := lvsOf("vg", g, nil)
	if len(lvs) != 1 || !strings.Contains(lvs[0].note, "thin-pool") {
		t.Errorf("%+v", lvs)
	}
}

// What is sent is read by the standard library's reader; GNU tar's is tried in backup/files.
func TestTarHeaders(t *testing.T) {
	long := strings.Repeat("d/", 80) + "é"
	st := &syscall.Stat_t{Mode: 0o4755, Uid: 1 << 22, Gid: 7, Mtim: syscall.Timespec{Sec: -5, Nsec: 250}}
	var b []byte
	h := header{name: long, typ: '0', size: 3, xattrs: map[string]string{"user.a": "x\x00y\n"}}
	b = append(h.append(b, st), append([]byte("abc"), make([]byte, tarBlock-3)...)...)
	table := sparseMap([]part{{4096, 3}}, 8192)
	s := header{name: "dir/" + strings.Repeat("s", 200), typ: '0', sparse: true, real: 8192, size: int64(len(table) + 3)}
	b = append(append(append(s.append(b, st), table...), "abc"...), make([]byte, tarBlock-3)...)
	dev := header{name: "sda", typ: '4'}
	b = dev.append(b, &syscall.Stat_t{Mode: 0o600, Rdev: 8<<8 | 1})
	r := tar.NewReader(bytes.NewReader(append(b, make([]byte, 1024)...)))
	m, err := r.Next()
	if err != nil || m.Name != long || m.Uid != 1<<22 || m.Mode != 0o4755 || m.PAXRecords["SCHILY.xattr.user.a"] != "x\x00y\n" || m.ModTime.UnixNano() != -5e9+250 {
		t.Fatalf("%+v, %v", m, err)
	}
	if m, err = r.Next(); err != nil || m.Name != s.name || m.Size != 8192 {
		t.Fatalf("%+v, %v", m, err)
	}
	got, err := io.ReadAll(r)
	if err != nil || len(got) != 8192 || string(got[4096:4099]) != "abc" || got[0] != 0 {
		t.Errorf("sparse content of %d bytes, %v", len(got), err)
	}
	if m, err = r.Next(); err != nil || m.Devmajor != 8 || m.Devminor != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestPaxRecordCountsItself(t *testing.T) {
	for n := range 1200 {
		rec := string(paxRecord(nil, "k", strings.Repeat("v", n)))
		var k int
		for _, c := range rec[:strings.IndexByte(rec, ' ')] {
			k = k*10 + int(c-'0')
		}
		if k != len(rec) {
			t.Fatalf("a record of %d bytes says %d", len(rec), k)
		}
	}
}

func FuzzSuperblocks(f *testing.F) {
	f.Add(golden(f, "pv1.gz")[:16<<10])
	ext := make([]byte, 70<<10)
	ext[1024+0x38], ext[1024+0x39] = 0x53, 0xef
	f.Add(ext)
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := probe(bytes.NewReader(b), int64(len(b)))
		if got.fs == "" {
			t.Error("no name")
		}
		readMember(bytes.NewReader(b), int64(len(b)))
		if p, ok := readPV(bytes.NewReader(b)); ok {
			groupOf(p.text)
		}
	})
}

func FuzzLVMText(f *testing.F) {
	p, _ := readPV(bytes.NewReader(golden(f, "pv1.gz")))
	f.Add(p.text)
	f.Add(`a { b = [ "x", 1 ] c { d = "\"" } } # e`)
	f.Fuzz(func(t *testing.T, s string) {
		name, g := groupOf(s)
		if g == nil {
			return
		}
		for _, v := range lvsOf(name, g, func(string) (string, bool) { return "1:1", true }) {
			var at uint64
			for _, x := range v.table {
				if x.start != at || x.length == 0 {
					t.Errorf("table %+v", v.table)
				}
				at += x.length
			}
		}
	})
}
