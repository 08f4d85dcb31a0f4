package osimage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMissingPackageSaysHow(t *testing.T) {
	b, err := newBuild(Options{CacheDir: t.TempDir()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.candidates(t.Context(), "bash", "drover-has-no-such-package")
	var m *MissingError
	if !errors.As(err, &m) || !strings.Contains(err.Error(), "drover-has-no-such-package") || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("error %v", err)
	}
	if _, err := b.candidate(t.Context(), "-o=Dir=/x"); err == nil {
		t.Error("an option passed as a package's name")
	}
}

func TestMissingToolSaysHow(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := needTools("sgdisk")
	if err == nil || !strings.Contains(err.Error(), "apt-get install gdisk") {
		t.Errorf("error %v", err)
	}
}

func TestCacheReusesAndCancelLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	r := &recipe{Kind: "kernel", Name: "x", Ext: ".tar", Packages: map[string]string{"a": "1"}}
	made := 0
	run := func(ctx context.Context, r *recipe, f func(string) error) (*Result, error) {
		b, err := newBuild(Options{CacheDir: dir}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return b.run(ctx, r, func(_ context.Context, out string) error {
			made++
			return errors.Join(os.WriteFile(out, []byte("image"), 0o644), f(out))
		})
	}
	ok := func(string) error { return nil }
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := run(ctx, r, func(string) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled build: %v", err)
	}
	for _, d := range []string{"work", "images"} {
		left, _ := filepath.Glob(filepath.Join(dir, d, "[^.]*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	a, err := run(t.Context(), r, ok)
	if err != nil || a.Cached || a.Size != 5 {
		t.Fatalf("first build: %+v, %v", a, err)
	}
	b, err := run(t.Context(), r, ok)
	if err != nil || !b.Cached || b.SHA256 != a.SHA256 || b.Path != a.Path {
		t.Errorf("second build: %+v, %v", b, err)
	}
	c, err := run(t.Context(), &recipe{Kind: "kernel", Name: "x", Ext: ".tar", Packages: map[string]string{"a": "2"}}, ok)
	if err != nil || c.Cached || c.Path == a.Path {
		t.Errorf("build with a newer package: %+v, %v", c, err)
	}
	if made != 3 {
		t.Errorf("built %d times, want 3", made)
	}
}

func TestTinyIsReproducible(t *testing.T) {
	var sums []string
	for range 2 {
		o := testOptions(t)
		o.Rebuild = true
		o.CacheDir = t.TempDir()
		r, err := BuildTiny(t.Context(), Tiny{}, o)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, r.SHA256)
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds of the same inputs differ: %v", sums)
	}
}

func TestCancelDuringBuild(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := BuildTiny(ctx, Tiny{}, Options{CacheDir: dir, Progress: func(s Step) {
		if s.Name == "compile the init" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	for _, d := range []string{"work", "images"} {
		left, _ := filepath.Glob(filepath.Join(dir, d, "[^.]*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestUnsign(t *testing.T) {
	mod := []byte("module body")
	sig := append(bytes.Repeat([]byte{7}, 20), 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 20)
	signed := append(append(append([]byte{}, mod...), sig...), "~Module signature appended~\n"...)
	if got := unsign(signed); !bytes.Equal(got, mod) {
		t.Errorf("unsign gave %q", got)
	}
	for _, b := range [][]byte{mod, []byte("~Module signature appended~\n"), append([]byte("\xff\xff\xff\xff"), "~Module signature appended~\n"...)} {
		if got := unsign(b); !bytes.Equal(got, b) {
			t.Errorf("unsign changed %q to %q", b, got)
		}
	}
}
