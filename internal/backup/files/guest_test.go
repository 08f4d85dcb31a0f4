package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"drover/internal/backup"
	"drover/internal/osimage"
)

// helperImage is built once, and laid out for all tests.
var helperImage = sync.OnceValues(func() (Image, error) {
	r, err := osimage.BuildHelper(context.Background(), osimage.Helper{}, osimage.Options{CacheDir: os.Getenv("DROVER_IMAGE_CACHE")})
	if err != nil {
		return Image{}, err
	}
	dir, err := os.MkdirTemp("", "drover-helper-")
	if err != nil {
		return Image{}, err
	}
	return OpenImage(context.Background(), r.Path, dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if img, err := helperImage(); err == nil && code >= 0 {
		os.RemoveAll(filepath.Dir(img.Kernel))
	}
	os.Exit(code)
}

// filePoint is a point whose disks are raw files.
type filePoint struct {
	p     backup.Point
	paths map[string]string
}

func (f *filePoint) Point() backup.Point { return f.p }
func (f *filePoint) Close() error        { return nil }
func (f *filePoint) Disk(_ context.Context, name string) (backup.DiskReader, error) {
	file, err := os.Open(f.paths[name])
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	return &fileDisk{file, st.Size()}, err
}

type fileDisk struct {
	f    *os.File
	size int64
}

func (d *fileDisk) Size() int64  { return d.size }
func (d *fileDisk) Close() error { return d.f.Close() }
func (d *fileDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	n, err := d.f.ReadAt(p, off)
	clear(p[n:])
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}
func (d *fileDisk) Extents(_ context.Context, off, n int64) ([]backup.Extent, error) {
	return []backup.Extent{{Offset: off, Length: n}}, nil
}
func (d *fileDisk) Changed(_ context.Context, _, _ string) ([]backup.Extent, error) {
	return nil, errors.ErrUnsupported
}

// testPoint makes a point of raw images: disk a, b, …
func testPoint(images ...string) *filePoint {
	f := &filePoint{paths: map[string]string{}}
	f.p.ID = "test"
	for i, path := range images {
		name := string(rune('a' + i))
		f.p.Disks = append(f.p.Disks, backup.Disk{Name: name})
		f.paths[name] = path
	}
	return f
}

const testUser = 61234

func testOptions(t testing.TB) Options {
	t.Helper()
	if testing.Short() {
		t.Skip("starts VMs")
	}
	img, err := helperImage()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Image: img, Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if os.Geteuid() == 0 {
		o.UID, o.GID = testUser, testUser
	}
	return o
}

func open(t testing.TB, images ...string) *Session {
	t.Helper()
	s, err := Open(t.Context(), context.Background(), testPoint(images...), testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func blank(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a program, or skips the test if it is not installed.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed; run scripts/install-deps", name)
		}
		t.Skipf("%s is not installed; run scripts/install-deps", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(es []Entry) string {
	var out []string
	for _, e := range es {
		out = append(out, Show(e.Name))
	}
	return strings.Join(out, " ")
}

func list(t testing.TB, s *Session, path string) string {
	t.Helper()
	p, err := ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	es, err := s.List(t.Context(), p, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return names(es)
}

func sumOf(t testing.TB, s *Session, path string) (string, int64) {
	t.Helper()
	p, err := ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	var size int64
	if err := s.Read(t.Context(), p, h, func(e Entry) error { size = e.Size; return nil }); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil)), size
}

func content(t testing.TB, s *Session, path string) string {
	t.Helper()
	p, err := ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := s.Read(t.Context(), p, &b, func(Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func volumes(t testing.TB, s *Session) map[string]Volume {
	t.Helper()
	vs, err := s.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Volume{}
	for _, v := range vs {
		out[v.Name] = v
		t.Logf("%+v", v)
	}
	return out
}
