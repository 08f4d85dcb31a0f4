package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"drover/internal/disk/inspect"
)

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func run(t failer, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// graph names a chain's files by path, for tools that play the guest.
func graph(s *Store, chain []Layer) string {
	g := `null`
	for i := len(chain) - 1; i >= 0; i-- {
		file := fmt.Sprintf(`"file":{"driver":"file","filename":%q}`, filepath.Join(s.root.Name(), chain[i].File))
		if chain[i].Format == "raw" {
			g = `{"driver":"raw",` + file + `}`
		} else {
			g = `{"driver":"qcow2",` + file + `,"backing":` + g + `}`
		}
	}
	return "json:" + g
}

const block = 64 << 10

// write fills one block of the disk, as the guest would.
func write(t failer, s *Store, vm, disk string, at int, value byte) {
	t.Helper()
	chain, err := s.Chain(vm, disk)
	must(t, err)
	run(t, "qemu-io", "-c", fmt.Sprintf("write -P %d %d %d", value, at*block, block), graph(s, chain))
}

// content reads a chain, one byte per block, and insists that blocks are uniform.
func content(t failer, s *Store, chain []Layer) []byte {
	t.Helper()
	f, err := os.CreateTemp("", "content")
	must(t, err)
	defer os.Remove(f.Name())
	defer f.Close()
	run(t, "qemu-img", "convert", "-O", "raw", graph(s, chain), f.Name())
	b, err := io.ReadAll(f)
	must(t, err)
	out := make([]byte, len(b)/block)
	for i := range out {
		blk := b[i*block : (i+1)*block]
		out[i] = blk[0]
		if !bytes.Equal(blk, bytes.Repeat(blk[:1], block)) {
			t.Fatalf("block %d is torn", i)
		}
	}
	return out
}

func active(t failer, s *Store, vm, disk string) []byte {
	t.Helper()
	chain, err := s.Chain(vm, disk)
	must(t, err)
	return content(t, s, chain)
}

func frozen(t failer, s *Store, vm, snap, disk string) []byte {
	t.Helper()
	chain, err := s.SnapshotChain(vm, snap, disk)
	must(t, err)
	return content(t, s, chain)
}

func fileCount(t failer, s *Store, vm string) int {
	t.Helper()
	e, err := s.list(vmDir(vm))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	must(t, err)
	return len(e)
}

// testImage makes a qcow2 with known blocks and returns its cache name and bytes.
func testImage(t testing.TB, blocks int) (string, []byte) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "img")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", p, fmt.Sprint(blocks*block))
	run(t, "qemu-io", "-c", fmt.Sprintf("write -P 1 0 %d", blocks/2*block), p)
	b, err := os.ReadFile(p)
	must(t, err)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]) + ".qcow2", b
}

func fetchBytes(b []byte) Fetch {
	return func(_ context.Context, off int64, w io.Writer) error {
		_, err := w.Write(b[off:])
		return err
	}
}

func TestBlankIsCleanForQEMU(t *testing.T) {
	for name, write := range map[string]func(*os.File, int64) error{"blank": writeBlank, "fine": writeFine} {
		for _, size := range []int64{512, 1 << 20, 3<<29 + 512, 10 << 40, inspect.MaxVirtual} {
			f, err := os.Create(filepath.Join(t.TempDir(), "x"))
			must(t, err)
			must(t, write(f, size))
			run(t, "qemu-img", "check", "-q", "-f", "qcow2", f.Name())
			info, err := inspectFile(f, "qcow2")
			if err != nil || info.VirtualSize != size {
				t.Errorf("%s, size %d: %+v, %v", name, size, info, err)
			}
			run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write %d 512", size-512), f.Name())
			run(t, "qemu-img", "check", "-q", "-f", "qcow2", f.Name())
			f.Close()
		}
	}
}

// A write of 4 KiB to a layer over a base that fails needs nothing of the base.
func TestFineLayerNeedsNothingForSmallWrites(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]bool{"blank": false, "fine": true} {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		write := map[string]func(*os.File, int64) error{"blank": writeBlank, "fine": writeFine}[name]
		must(t, errors.Join(write(f, 1<<20), f.Close()))
		// The base answers every read with an error.
		opts := fmt.Sprintf("driver=qcow2,file.filename=%s,backing.driver=blkdebug,backing.image.driver=null-co,backing.image.size=1M,backing.inject-error.0.event=none,backing.inject-error.0.iotype=read", f.Name())
		out, err := exec.Command("qemu-io", "--image-opts", opts, "-c", "write -P 7 12288 4096").CombinedOutput()
		if ok := err == nil && !bytes.Contains(out, []byte("failed")); ok != want {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestCreateFromImage(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	name, b := testImage(t, 16)
	must(t, s.EnsureImage(ctx, name, fetchBytes(b)))
	img := append(bytes.Repeat([]byte{1}, 8), make([]byte, 8)...)
	for disk, spec := range map[string]Spec{
		"linked": {Image: name, Size: 32 * block}, "same": {Image: name}, "copy": {Image: name, Copy: true},
		"grown": {Image: name, Copy: true, Size: 32 * block}, "raw": {Image: name, Copy: true, Format: "raw", Size: 32 * block},
		"blank": {Size: 16 * block}, "blank-raw": {Size: 16 * block, Format: "raw"},
	} {
		must(t, s.CreateDisk(ctx, "vm1", disk, spec))
		want := append(bytes.Clone(img), make([]byte, 16)...)
		if strings.HasPrefix(disk, "blank") {
			want = make([]byte, 16)
		} else if spec.Size == 0 {
			want = img
		}
		if got := active(t, s, "vm1", disk); !bytes.Equal(got, want) {
			t.Errorf("%s: %v", disk, got)
		}
	}
	chain, err := s.Chain("vm1", "linked")
	if err != nil || len(chain) != 2 || chain[1].ID != name || !chain[0].Active {
		t.Errorf("chain %+v, %v", chain, err)
	}
	if _, err := s.OpenLayer(chain[1], true); !errors.Is(err, ErrInvalid) {
		t.Errorf("an image was opened for writing: %v", err)
	}
	var used *InUseError
	if err := s.DeleteImage(ctx, name); !errors.As(err, &used) || used.Users[0] != "vm vm1" {
		t.Errorf("deleting a used image: %v", err)
	}
	must(t, s.DeleteVM(ctx, "vm1"))
	must(t, s.DeleteImage(ctx, name))
	sp, err := s.Space()
	if err != nil || sp.VMs != 0 || sp.Images != 0 || sp.Total < sp.Free {
		t.Errorf("%+v, %v", sp, err)
	}
}

func TestImageFetch(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := t.Context()
	name, b := testImage(t, 16)
	cut := errors.New("cut")
	err := s.EnsureImage(ctx, name, func(_ context.Context, _ int64, w io.Writer) error {
		_, err := w.Write(b[:1000])
		return errors.Join(cut, err)
	})
	if !errors.Is(err, cut) {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, dir)
	must(t, s.EnsureImage(ctx, name, func(ctx context.Context, off int64, w io.Writer) error {
		if off != 1000 {
			t.Errorf("the fetch began at %d, not 1000", off)
		}
		return fetchBytes(b)(ctx, off, w)
	}))
	must(t, s.EnsureImage(ctx, name, func(context.Context, int64, io.Writer) error { return errors.New("fetched twice") }))
	wrong := strings.Repeat("0", 64) + ".qcow2"
	if err := s.EnsureImage(ctx, wrong, fetchBytes(b)); !errors.Is(err, ErrChecksum) {
		t.Errorf("wrong bytes: %v", err)
	}
	p := filepath.Join(t.TempDir(), "backed")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", p, "1M")
	lie, err := os.ReadFile(p)
	must(t, err)
	sum := sha256.Sum256(lie)
	if err := s.EnsureImage(ctx, hex.EncodeToString(sum[:])+".qcow2", fetchBytes(lie)); !errors.Is(err, inspect.ErrRefused) {
		t.Errorf("an image with a backing file: %v", err)
	}
	if e, _ := s.list("tmp"); len(e) != 0 {
		t.Errorf("%d files are left in tmp", len(e))
	}
}

func TestRefusals(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	for _, c := range []struct {
		vm, disk string
		spec     Spec
	}{
		{"../x", "root", Spec{Size: 512}}, {"", "root", Spec{Size: 512}}, {"VM", "root", Spec{Size: 512}},
		{"vm", "../../etc/passwd", Spec{Size: 512}}, {"vm", "", Spec{Size: 512}}, {"vm", "root", Spec{}},
		{"vm", "root", Spec{Size: -1}}, {"vm", "root", Spec{Size: 1e18}}, {"vm", "root", Spec{Size: 513}},
		{"vm", "root", Spec{Size: 512, Format: "vmdk"}}, {"vm", "root", Spec{Image: "../../etc/passwd"}},
	} {
		if err := s.CreateDisk(ctx, c.vm, c.disk, c.spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := s.CreateDisk(ctx, "vm", "root", Spec{Image: strings.Repeat("a", 64) + ".qcow2"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such image: %v", err)
	}
	if e, _ := s.list("vms"); len(e) != 0 {
		t.Errorf("refusals left %d VMs", len(e))
	}
	must(t, s.CreateDisk(ctx, "vm", "root", Spec{Size: 4 * block}))
	if err := s.Grow(ctx, "vm", "root", 2*block); !errors.Is(err, ErrInvalid) {
		t.Errorf("shrunk: %v", err)
	}
	must(t, s.Snapshot(ctx, "vm", "s1"))
	must(t, s.LinkedClone(ctx, "vm", "s1", "child"))
	var used *InUseError
	if _, err := s.DeleteSnapshot(ctx, "vm", "s1", false); !errors.As(err, &used) || used.Users[0] != "vm child" {
		t.Errorf("deleting a snapshot in use: %v", err)
	}
	if err := s.DeleteVM(ctx, "vm"); !errors.As(err, &used) {
		t.Errorf("deleting a VM in use: %v", err)
	}
	// A layer whose header was taken over by its guest is refused, not followed.
	chain, err := s.Chain("child", "root")
	must(t, err)
	run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", filepath.Join(s.root.Name(), chain[0].File))
	if err := s.FullClone(ctx, "child", "", "stolen"); !errors.Is(err, inspect.ErrRefused) {
		t.Errorf("a layer that names a file of the host: %v", err)
	}
	if n := fileCount(t, s, "stolen"); n != 0 {
		t.Errorf("the refused clone left %d files", n)
	}
}

func TestUnreadableManifestStopsOnlyWhatIsUnsafe(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := t.Context()
	for _, vm := range []string{"a", "b"} {
		must(t, s.CreateDisk(ctx, vm, "root", Spec{Size: 4 * block}))
	}
	must(t, s.Snapshot(ctx, "a", "s1"))
	s.Close()
	must(t, os.WriteFile(filepath.Join(dir, "vms/b/layers.json"), []byte("{"), 0o600))
	s = openStore(t, dir)
	write(t, s, "a", "root", 0, 7)
	must(t, s.Snapshot(ctx, "a", "s2"))
	if _, err := s.DeleteSnapshot(ctx, "a", "s1", false); err == nil || !strings.Contains(err.Error(), "VM b") {
		t.Errorf("a layer was dropped although VM b may need it: %v", err)
	}
	if fileCount(t, s, "b") != 2 {
		t.Error("files of the unreadable VM were swept")
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"vm":"a","disks":{"root":"0123456789abcdef"},"layers":{"0123456789abcdef":{"file":"0123456789abcdef.qcow2","format":"qcow2","size":512}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest("a", b)
		if err != nil {
			return
		}
		for _, l := range m.Layers {
			if strings.ContainsAny(l.File, "/\\") {
				t.Fatalf("accepted the file %q", l.File)
			}
		}
		m.collect(nil)
		if _, err := parseManifest("a", mustJSON(t, m)); err != nil {
			t.Fatalf("collect made it invalid: %v", err)
		}
	})
}

// A directory that is somebody else's is not made a datastore: what is in its tmp and vms would be swept.
func TestForeignDirectoriesAreRefused(t *testing.T) {
	for _, name := range []string{"tmp", "vms", "images"} {
		dir := t.TempDir()
		kept := filepath.Join(dir, name, "0c0ffee0", "kept")
		must(t, os.MkdirAll(kept, 0o755))
		if s, err := Open(dir, Options{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("a directory with %s: %v, %v", name, s, err)
		}
		if _, err := os.Stat(kept); err != nil {
			t.Error(err)
		}
	}
	// One whose making was cut off anywhere is made whole.
	dir := t.TempDir()
	for _, name := range []string{"", "vms", "images", "tmp"} {
		must(t, os.WriteFile(filepath.Join(dir, ".lock"), nil, 0o600))
		if name != "" {
			must(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
		}
		s, err := Open(dir, Options{})
		must(t, err)
		must(t, s.Close())
		if name == "" || name == "vms" {
			for _, later := range []string{"vms", "images", "tmp"}[min(len(name), 1):] {
				must(t, os.Remove(filepath.Join(dir, later)))
			}
		}
	}
}
