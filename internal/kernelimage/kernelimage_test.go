package kernelimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() Content {
	return Content{
		Manifest: Manifest{Name: "tiny", Arch: "x86_64", KernelRelease: "6.1.0", KernelFormat: "elf", Packages: map[string]string{"b": "2", "a": "1"}},
		Cmdline:  "console=ttyS0 quiet", Kernel: []byte("\x7fELF kernel"), Initrd: bytes.Repeat([]byte("initrd"), 1000),
	}
}

func pack(t testing.TB, c Content) []byte {
	var b bytes.Buffer
	if err := Write(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTripAndSameBytes(t *testing.T) {
	c := sample()
	a, b := pack(t, c), pack(t, c)
	if !bytes.Equal(a, b) {
		t.Fatal("the same content gave different bytes")
	}
	dir := t.TempDir()
	x, err := Extract(context.Background(), bytes.NewReader(a), dir)
	if err != nil {
		t.Fatal(err)
	}
	kernel, _ := os.ReadFile(x.Kernel)
	initrd, _ := os.ReadFile(x.Initrd)
	if diff := cmp.Diff([]string{string(c.Kernel), string(c.Initrd), c.Cmdline}, []string{string(kernel), string(initrd), x.Cmdline}); diff != "" {
		t.Fatal(diff)
	}
	m, cmdline, err := ReadManifest(bytes.NewReader(a[:8192]))
	if err != nil || cmdline != c.Cmdline || m.KernelRelease != "6.1.0" {
		t.Fatalf("ReadManifest: %+v, %q, %v", m, cmdline, err)
	}
}

func TestRefuses(t *testing.T) {
	good := pack(t, sample())
	edit := func(old, with string) []byte { return bytes.Replace(good, []byte(old), []byte(with), 1) }
	var climb bytes.Buffer
	w := tar.NewWriter(&climb)
	w.WriteHeader(&tar.Header{Name: "../image.json", Size: 1, Mode: 0o644})
	w.Write([]byte("x"))
	w.Close()
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"empty":        {nil, "ends early"},
		"text":         {[]byte(strings.Repeat("no tar here ", 100)), "image.json"},
		"climbs":       {climb.Bytes(), "must stand"},
		"kernel bytes": {edit("ELF kernel", "ELF Kernel"), "SHA-256"},
		"initrd bytes": {edit("initrdinitrd", "initrdinitrD"), "SHA-256"},
		"newer":        {edit(`"version": 1`, `"version": 9`), "upgrade"},
		"size":         {edit(`"size": 11`, `"size": 12`), "says 12"},
		"huge size":    {edit(`"size": 11,`, `"size":1e15`), "image.json"},
		"format":       {edit("drover-kernel", "xrover-kernel"), "format"},
		"cut":          {good[:len(good)-4096], "ends early"},
		"more":         {extra(good), "unexpected member"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Extract(context.Background(), bytes.NewReader(c.in), dir)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want ErrInvalid with %q", err, c.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func extra(good []byte) []byte {
	var b bytes.Buffer
	b.Write(good[:len(good)-1024])
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "more", Mode: 0o644})
	w.Close()
	return b.Bytes()
}

func TestWriteRefusesBadCmdline(t *testing.T) {
	for _, bad := range []string{"a\nb", "a\x00", strings.Repeat("x", MaxCmdline+1), "ü"} {
		c := sample()
		c.Cmdline = bad
		if err := Write(&bytes.Buffer{}, c); !errors.Is(err, ErrInvalid) {
			t.Errorf("cmdline %.10q: %v", bad, err)
		}
	}
}

func TestExtractCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	if _, err := Extract(ctx, bytes.NewReader(pack(t, sample())), dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(pack(f, sample()))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		x, err := Extract(context.Background(), bytes.NewReader(in), dir)
		left, _ := os.ReadDir(dir)
		if err != nil && len(left) > 0 || err == nil && (len(left) != 2 || x.Manifest.Validate() != nil) {
			t.Fatalf("error %v with %d files", err, len(left))
		}
	})
}
