package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// start runs a program until the test ends.
func start(t testing.TB, name string, args ...string) {
	t.Helper()
	need(t, name)
	cmd := exec.Command(name, args...)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out)
		}
	})
}

func need(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v; run scripts/install-deps", err)
		}
		t.Skip(err)
	}
}

// run runs a program to its end and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	need(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// listening waits until somebody listens on a unix socket.
func listening(t testing.TB, path string) {
	t.Helper()
	for range 500 {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %s", path)
}

func dialTest(t testing.TB, path string, o Options) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, "unix", path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sparse makes an image with data at each odd MiB.
func sparse(t testing.TB, path string, mib int) []byte {
	t.Helper()
	want := make([]byte, mib<<20)
	r := rand.NewChaCha8([32]byte{1})
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < mib; i += 2 {
		r.Read(want[i<<20 : (i+1)<<20])
		f.WriteAt(want[i<<20:(i+1)<<20], int64(i)<<20)
	}
	return want
}

// checkRead reads all of an export by many at once, and odd pieces of it.
func checkRead(t *testing.T, c *Client, want []byte) {
	t.Helper()
	if c.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", c.Size(), len(want))
	}
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for w := range 24 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for range 30 {
				n := 1 + r.IntN(1<<20)
				off := r.IntN(len(want) - n)
				got := bytes.Repeat([]byte{0xee}, n)
				if err := c.ReadAt(t.Context(), got, int64(off)); err != nil {
					errs <- err
					return
				}
				if !bytes.Equal(got, want[off:off+n]) {
					errs <- errors.New("other bytes")
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	all := make([]byte, len(want))
	if err := c.ReadAt(t.Context(), all, 0); err != nil || !bytes.Equal(all, want) {
		t.Fatalf("all: %v", err)
	}
	if err := c.ReadAt(t.Context(), all[:2], int64(len(want))-1); err == nil {
		t.Fatal("read past the end")
	}
}

func TestClientOfQemuNBD(t *testing.T) {
	dir := t.TempDir()
	raw, img, sock := filepath.Join(dir, "raw"), filepath.Join(dir, "img"), filepath.Join(dir, "s")
	want := sparse(t, raw, 32)
	run(t, "qemu-img", "convert", "-O", "qcow2", raw, img)
	run(t, "qemu-img", "bitmap", "--add", img, "b0")
	run(t, "qemu-io", "-c", "write -P 7 5M 200k", img)
	copy(want[5<<20:], bytes.Repeat([]byte{7}, 200<<10))
	start(t, "qemu-nbd", "-k", sock, "-t", "-e", "8", "-x", "disk", "-B", "b0", "-f", "qcow2", "-r", img)
	listening(t, sock)
	c := dialTest(t, sock, Options{Export: "disk", Contexts: []string{Allocation, DirtyBitmap + "b0", "nobody:knows"}, Connections: 4})
	if !c.ReadOnly() || c.Connections() != 4 || len(c.Contexts()) != 2 {
		t.Fatalf("read-only %v, %d connections, contexts %q", c.ReadOnly(), c.Connections(), c.Contexts())
	}
	checkRead(t, c, want)
	all, err := c.Status(t.Context(), 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	if a := all[Allocation]; len(a) != 32 || a[0] != (Extent{0, 1 << 20, Hole | Zero}) || a[1] != (Extent{1 << 20, 1 << 20, 0}) {
		t.Fatalf("allocation %v", a)
	}
	if d := all[DirtyBitmap+"b0"]; len(d) != 3 || d[1] != (Extent{5 << 20, 256 << 10, Dirty}) {
		t.Fatalf("dirty %v", d)
	}
	if x, err := c.Extents(t.Context(), DirtyBitmap+"b0", 5<<20+5, 10); err != nil || len(x) != 1 || x[0] != (Extent{5<<20 + 5, 10, Dirty}) {
		t.Fatalf("a part: %v %v", x, err)
	}
	if _, err := c.Extents(t.Context(), "nobody:knows", 0, 1); err == nil {
		t.Fatal("a context that is not there")
	}
	var e *Error
	if err := c.WriteAt(t.Context(), []byte("x"), 0); !errors.As(err, &e) {
		t.Fatalf("write to what is read-only: %v", err)
	}
	if _, err := Dial(t.Context(), "unix", sock, Options{Export: "other"}); !errors.Is(err, ErrNoExport) {
		t.Fatalf("unknown export: %v", err)
	}
}

func TestClientWrites(t *testing.T) {
	dir := t.TempDir()
	raw, sock := filepath.Join(dir, "raw"), filepath.Join(dir, "s")
	want := sparse(t, raw, 8)
	start(t, "qemu-nbd", "-k", sock, "-t", "-f", "raw", "--discard=unmap", raw)
	listening(t, sock)
	c := dialTest(t, sock, Options{})
	ctx := t.Context()
	p := bytes.Repeat([]byte("drover"), 500_000)
	for _, err := range []error{c.WriteAt(ctx, p, 12345), c.Zero(ctx, 1<<20, 5000, false), c.Zero(ctx, 7<<20, 1<<20, true), c.Trim(ctx, 3<<20, 0), c.Flush(ctx)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	copy(want[12345:], p)
	clear(want[1<<20:][:5000])
	clear(want[7<<20:])
	checkRead(t, c, want)
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the file is not what was written: %v", err)
	}
}

func TestClientOfNBDKit(t *testing.T) {
	dir := t.TempDir()
	raw, sock := filepath.Join(dir, "raw"), filepath.Join(dir, "s")
	want := sparse(t, raw, 16)
	for _, extra := range [][]string{nil, {"--no-sr"}, {"--filter=blocksize-policy"}} {
		t.Run(filepath.Join(extra...), func(t *testing.T) {
			sock := sock + filepath.Join(extra...)
			args := append([]string{"-f", "-U", sock, "-r"}, extra...)
			args = append(args, "file", raw)
			if len(extra) > 0 && extra[0] != "--no-sr" {
				args = append(args, "blocksize-minimum=512", "blocksize-maximum=1M", "blocksize-error-policy=error")
			}
			start(t, "nbdkit", args...)
			listening(t, sock)
			c := dialTest(t, sock, Options{Contexts: []string{Allocation}, Connections: 2, InFlight: 4})
			checkRead(t, c, want)
			if len(extra) > 0 && extra[0] == "--no-sr" {
				return
			}
			if x, err := c.Extents(t.Context(), Allocation, 0, c.Size()); err != nil || len(x) != 16 {
				t.Fatalf("%v %v", x, err)
			}
		})
	}
}

// TestClientCancel: a call that is given up returns at once, leaves its buffer alone, and others go on.
func TestClientCancel(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	start(t, "nbdkit", "-f", "-U", sock, "--filter=delay", "pattern", "64M", "rdelay=1")
	listening(t, sock)
	c := dialTest(t, sock, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p := make([]byte, 1<<20)
	if err := c.ReadAt(ctx, p, 4096); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, make([]byte, len(p))) {
		t.Fatal("the buffer of a call that was given up was written to")
	}
}

// TestClientGone: when the server dies all calls end with ErrGone.
func TestClientGone(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	need(t, "nbdkit")
	cmd := exec.Command("nbdkit", "-f", "-U", sock, "--filter=delay", "pattern", "64M", "rdelay=60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	listening(t, sock)
	c := dialTest(t, sock, Options{InFlight: 4})
	errs := make(chan error)
	for i := range 8 {
		go func() { errs <- c.ReadAt(t.Context(), make([]byte, 4096), int64(i)*4096) }()
	}
	time.Sleep(50 * time.Millisecond)
	cmd.Process.Kill()
	cmd.Wait()
	for range 8 {
		if err := <-errs; !errors.Is(err, ErrGone) {
			t.Fatalf("%v", err)
		}
	}
	if !errors.Is(c.Err(), ErrGone) {
		t.Fatalf("%v", c.Err())
	}
}
