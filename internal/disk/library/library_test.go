package library

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/disk/inspect"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// source makes a raw disk with known bytes.
func source(t testing.TB, dir string) string {
	t.Helper()
	src := filepath.Join(dir, "src.raw")
	run(t, "qemu-img", "create", "-q", "-f", "raw", src, "16M")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x55 0 64k", "-c", "write -P 9 5M 1M", src)
	f, err := os.OpenFile(src, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0x55, 0xaa}, 510); err != nil {
		t.Fatal(err)
	}
	return src
}

func open(t testing.TB, dir string, opt Options) *Library {
	t.Helper()
	l, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// clean checks that nothing unfinished is left.
func clean(t testing.TB, dir string, partials int) {
	t.Helper()
	for d, want := range map[string]int{"tmp": 0, "partial": partials} {
		e, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil || len(e) != want {
			t.Errorf("%s has %d files, want %d (%v)", d, len(e), want, err)
		}
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestEveryFormatImportsToTheSameContent(t *testing.T) {
	dir := t.TempDir()
	src := source(t, dir)
	paths := []string{src}
	for name, args := range map[string][]string{
		"qcow2": {"-c", "-O", "qcow2"}, "vmdk": {"-O", "vmdk", "-o", "subformat=streamOptimized"},
		"vhdx": {"-O", "vhdx"}, "vpc": {"-O", "vpc", "-o", "force_size=on"},
	} {
		out := filepath.Join(dir, "src."+name)
		run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), src, out)...)
		paths = append(paths, out)
	}
	for ext, tool := range map[string]string{"xz": "xz", "gz": "gzip", "zst": "zstd"} {
		run(t, "sh", "-c", tool+" -q -c "+src+" > "+src+"."+ext)
		paths = append(paths, src+"."+ext)
	}
	vmdk := read(t, filepath.Join(dir, "src.vmdk"))
	ovf := fmt.Sprintf(`<Envelope><References><File href="disk.vmdk" id="f" size="%d"/></References><DiskSection><Disk fileRef="f" capacity="16" capacityAllocationUnits="byte * 2^20"/></DiskSection></Envelope>`, len(vmdk))
	for name, b := range map[string][]byte{"vm.ovf": []byte(ovf), "disk.vmdk": vmdk} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "tar", "-C", dir, "--format=ustar", "-cf", filepath.Join(dir, "vm.ova"), "vm.ovf", "disk.vmdk")
	paths = append(paths, filepath.Join(dir, "vm.ova"))

	lib := t.TempDir()
	l := open(t, lib, Options{})
	for _, p := range paths {
		var phases []Phase
		res, err := l.Import(t.Context(), Request{Path: p, SHA256: sum(read(t, p)), Progress: func(ph Phase, _, _ int64) {
			if len(phases) == 0 || phases[len(phases)-1] != ph {
				phases = append(phases, ph)
			}
		}})
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(p), err)
			continue
		}
		out := filepath.Join(lib, res.Name)
		if got := sum(read(t, out)); got != res.SHA256 {
			t.Errorf("%s: the name says %s, the bytes %s", p, res.SHA256, got)
		}
		st, err := os.Stat(out)
		if err != nil || st.Mode() != 0o444 || res.VirtualSize != 16<<20 {
			t.Errorf("%s: mode %v, size %d (%v)", p, st.Mode(), res.VirtualSize, err)
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", src, out)
		if phases[0] != Download || phases[len(phases)-1] != Finish {
			t.Errorf("%s: phases %v", p, phases)
		}
	}
	clean(t, lib, 0)
}

func TestISOIsKept(t *testing.T) {
	dir, lib := t.TempDir(), t.TempDir()
	iso := filepath.Join(dir, "x.iso")
	run(t, "genisoimage", "-quiet", "-V", "X", "-o", iso, source(t, dir))
	res, err := open(t, lib, Options{}).Import(t.Context(), Request{Path: iso})
	if err != nil || res.Name != sum(read(t, iso))+".iso" {
		t.Fatalf("%+v, %v", res, err)
	}
	clean(t, lib, 0)
}

func TestLiesLeaveNothing(t *testing.T) {
	dir, lib := t.TempDir(), t.TempDir()
	l := open(t, lib, Options{MaxBytes: 64 << 20, MaxRatio: 50})
	backed := filepath.Join(dir, "backed")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", backed, "8M")
	huge := filepath.Join(dir, "huge")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", huge, "1T")
	good := filepath.Join(dir, "good.qcow2")
	run(t, "qemu-img", "convert", "-O", "qcow2", source(t, dir), good)
	cut := read(t, good)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 100<<20); err != nil {
		t.Fatal(err)
	}
	z.Close()
	run(t, "sh", "-c", "xz -kq "+good)
	xz := read(t, good+".xz")
	for _, c := range []struct {
		name, want string
		b          []byte
		is         error
		sha        string
	}{
		{"backing", "backing file", read(t, backed), inspect.ErrRefused, ""},
		{"backing in gzip", "backing file", pack(t, read(t, backed)), inspect.ErrRefused, ""},
		{"too big inside", "too big", read(t, huge), ErrTooBig, ""},
		{"truncated", "truncated", cut[:len(cut)/2], inspect.ErrRefused, ""},
		{"truncated xz", "truncated", xz[:len(xz)/2], inspect.ErrRefused, ""},
		{"truncated gzip", "truncated", pack(t, cut)[:400], inspect.ErrRefused, ""},
		{"bomb", "too big", bomb.Bytes(), ErrTooBig, ""},
		{"twice", "packed twice", pack(t, pack(t, cut)), inspect.ErrRefused, ""},
		{"checksum", "expected 0000", cut, ErrChecksum, strings.Repeat("0", 64)},
	} {
		_, err := l.Import(t.Context(), Request{Reader: bytes.NewReader(c.b), SHA256: c.sha})
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	for _, r := range []Request{{}, {Path: "/dev/zero"}, {Path: dir}, {URL: "file:///etc/passwd"}, {URL: "http://"}, {Path: good, SHA256: "abc"}, {Path: good, Disk: -1}} {
		if _, err := l.Import(t.Context(), r); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
	clean(t, lib, 0)
	if names, _ := l.Files(); len(names) != 0 {
		t.Errorf("images appeared: %v", names)
	}
	if _, err := l.File("../../etc/passwd"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a climbing name: %v", err)
	}
}

func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	z.Close()
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// cutServer serves b, but cuts each of the first n answers after some bytes, and counts what it sent.
func cutServer(t testing.TB, b []byte, cuts int32, each int64) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	var left atomic.Int32
	var sent atomic.Int64
	left.Store(cuts)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		cw := &counting{ResponseWriter: w, n: &sent, most: 1 << 62}
		if left.Add(-1) >= 0 {
			cw.most = each
		}
		http.ServeContent(cw, r, "", time.Time{}, bytes.NewReader(b))
	}))
	t.Cleanup(s.Close)
	return s, &sent
}

type counting struct {
	http.ResponseWriter
	n    *atomic.Int64
	most int64
}

func (c *counting) Write(p []byte) (int, error) {
	if c.most <= 0 {
		panic(http.ErrAbortHandler)
	}
	p2 := p[:min(int64(len(p)), c.most)]
	n, err := c.ResponseWriter.Write(p2)
	c.most -= int64(n)
	c.n.Add(int64(n))
	if err == nil && n < len(p) {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestDownloadGoesOnAfterCuts(t *testing.T) {
	b := read(t, source(t, t.TempDir()))
	s, sent := cutServer(t, b, 4, 3<<20)
	lib := t.TempDir()
	l := open(t, lib, Options{SyncEvery: 1 << 20, Backoff: time.Millisecond})
	res, err := l.Import(t.Context(), Request{URL: s.URL + "/a.raw", SHA256: sum(b)})
	if err != nil {
		t.Fatal(err)
	}
	if res.VirtualSize != 16<<20 || sent.Load() > int64(len(b))+4<<20 {
		t.Errorf("%+v; the server sent %d bytes for %d", res, sent.Load(), len(b))
	}
	clean(t, lib, 0)
}

// TestMain lets the test binary be the process that is killed in the middle of a download.
func TestMain(m *testing.M) {
	if u := os.Getenv("LIBRARY_DOWNLOAD"); u != "" {
		l, err := Open(os.Getenv("LIBRARY_DIR"), Options{SyncEvery: 1 << 20})
		if err != nil {
			panic(err)
		}
		_, err = l.Import(context.Background(), Request{URL: u, Progress: func(p Phase, n, _ int64) {
			if p == Download && n >= 9<<20 {
				p, _ := os.FindProcess(os.Getpid())
				p.Kill()
				select {}
			}
		}})
		panic(err)
	}
	os.Exit(m.Run())
}

func TestDownloadGoesOnAfterKill(t *testing.T) {
	b := read(t, source(t, t.TempDir()))
	s, sent := cutServer(t, b, 0, 0)
	lib := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "LIBRARY_DOWNLOAD="+s.URL+"/a.raw", "LIBRARY_DIR="+lib)
	if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the downloader wasn't killed: %v", err)
	}
	clean(t, lib, 2)
	sent.Store(0)
	l := open(t, lib, Options{})
	if _, err := l.Import(t.Context(), Request{URL: s.URL + "/a.raw", SHA256: sum(b)}); err != nil {
		t.Fatal(err)
	}
	if n := sent.Load(); n > 8<<20 {
		t.Errorf("%d bytes came again; at most 8 MiB were missing", n)
	}
	clean(t, lib, 0)
}

func TestChangedFileStartsAgain(t *testing.T) {
	b := read(t, source(t, t.TempDir()))
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := n.Add(1)
		w.Header().Set("ETag", fmt.Sprintf(`"v%d"`, min(v, 2)))
		cw := &counting{ResponseWriter: w, n: new(atomic.Int64), most: 1 << 62}
		body := b
		if v == 1 {
			cw.most, body = 4<<20, bytes.Repeat([]byte{1}, len(b))
		}
		http.ServeContent(cw, r, "", time.Time{}, bytes.NewReader(body))
	}))
	defer s.Close()
	l := open(t, t.TempDir(), Options{Backoff: time.Millisecond})
	if res, err := l.Import(t.Context(), Request{URL: s.URL, SHA256: sum(b)}); err != nil {
		t.Fatalf("%+v, %v", res, err)
	}
}

func TestRefusalsOfServers(t *testing.T) {
	lib := t.TempDir()
	l := open(t, lib, Options{MaxBytes: 1 << 20, Backoff: time.Millisecond, Attempts: 2, Stall: 100 * time.Millisecond})
	hang := make(chan struct{})
	for _, c := range []struct {
		want string
		h    http.HandlerFunc
	}{
		{"404", http.NotFound},
		{"503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		{"too big", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "99999999999") }},
		{"too big", func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, 8<<20) }},
		{"no byte came", func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-hang:
			}
		}},
		{"no known disk", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }},
	} {
		s := httptest.NewServer(c.h)
		_, err := l.Import(t.Context(), Request{URL: s.URL})
		s.CloseClientConnections()
		s.Close()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	close(hang)
	clean(t, lib, 0)
}

func TestCancelInEveryPhase(t *testing.T) {
	dir := t.TempDir()
	src := source(t, dir)
	run(t, "xz", "-kq", src)
	for _, at := range []Phase{Download, Check, Unpack, Convert, Finish} {
		lib := t.TempDir()
		l := open(t, lib, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		r := Request{Path: src + ".xz", Progress: func(p Phase, _, _ int64) {
			if p == at {
				cancel()
			}
		}}
		if at == Unpack { // xz reads by itself and reports nothing
			run(t, "sh", "-c", "gzip -c "+src+" > "+src+".gz")
			r.Path = src + ".gz"
		}
		if _, err := l.Import(ctx, r); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in %s: %v", at, err)
		}
		cancel()
		clean(t, lib, 0)
		if names, _ := l.Files(); len(names) != 0 {
			t.Errorf("cancelled in %s: %v appeared", at, names)
		}
	}
}

func TestOpenSweepsAndLocks(t *testing.T) {
	lib := t.TempDir()
	l := open(t, lib, Options{})
	if _, err := Open(lib, Options{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second Open: %v", err)
	}
	l.Close()
	old := filepath.Join(lib, "partial", "old.part")
	for _, f := range []string{filepath.Join(lib, "tmp", "x"), old, filepath.Join(lib, "partial", "new.part")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-8 * 24 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	open(t, lib, Options{})
	clean(t, lib, 1)
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 1-2/3")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		if start, total, ok := contentRange(s); ok && (start < 0 || total < 0 || total > 0 && start >= total) {
			t.Fatalf("%q gives %d of %d", s, start, total)
		}
	})
}
