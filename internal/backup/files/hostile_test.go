package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/clock"
	"drover/internal/osimage/helperinit/wire"
)

// fakeHelper answers one request with what reply writes.
func fakeHelper(t testing.TB, reply func(f wire.Frame) []byte) *conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := wire.ReadFrame(theirs, nil)
			if err != nil {
				return
			}
			if b := reply(f); b != nil {
				if _, err := theirs.Write(b); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
		<-done
	})
	return newConn(ours, clock.Real())
}

func sessionOver(t testing.TB, c *conn) *Session {
	t.Helper()
	life, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	v := &vm{ports: make(chan *conn, 1), gone: make(chan struct{}), cancel: func() {}, said: &tail{max: 100}}
	v.ports <- c
	o, err := Options{Image: Image{Kernel: "x", Initrd: "x"}, UID: 1, Stall: 2 * time.Second}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &Session{o: o, point: testPoint(), life: life, end: end, starting: make(chan struct{}, 1), deaths: map[string]int{}, vm: v, volumes: []Volume{{Name: "v", id: "d0"}}}
}

func frames(fs ...wire.Frame) []byte {
	var b []byte
	for _, f := range fs {
		b = wire.AppendFrame(b, f)
	}
	return b
}

// A helper that lies is found out, and what it said goes nowhere.
func TestHostileHelper(t *testing.T) {
	ok := wire.End{}.Append(nil)
	file := func(size uint64) []byte { return wire.Entry{Name: "f", Kind: wire.File, Size: size}.Append(nil) }
	name := func(n string) []byte { return wire.Entry{Name: n, Kind: wire.File}.Append(nil) }
	for what, c := range map[string]struct {
		list bool
		say  []wire.Frame
	}{
		"a name with a slash":    {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("a/b")}}},
		"dot dot":                {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("..")}}},
		"an empty name":          {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("")}}},
		"a long name":            {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name(strings.Repeat("x", 2000))}}},
		"more than was asked":    {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("a")}, {Type: wire.TypeEntry, Payload: name("b")}, {Type: wire.TypeEntry, Payload: name("c")}}},
		"the same again":         {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("a")}, {Type: wire.TypeEntry, Payload: name("a")}}},
		"another request":        {true, []wire.Frame{{Type: wire.TypeEntry, Request: 99, Payload: name("a")}}},
		"a cut entry":            {true, []wire.Frame{{Type: wire.TypeEntry, Payload: name("a")[:5]}}},
		"data in a list":         {true, []wire.Frame{{Type: wire.TypeData, Payload: []byte("x")}}},
		"silence":                {true, nil},
		"more bytes than stated": {false, []wire.Frame{{Type: wire.TypeEntry, Payload: file(2)}, {Type: wire.TypeData, Payload: []byte("abc")}}},
		"a hole past the end":    {false, []wire.Frame{{Type: wire.TypeEntry, Payload: file(2)}, {Type: wire.TypeHole, Payload: wire.Hole(1 << 63)}}},
		"fewer bytes":            {false, []wire.Frame{{Type: wire.TypeEntry, Payload: file(2)}, {Type: wire.TypeData, Payload: []byte("a")}, {Type: wire.TypeEnd, Payload: ok}}},
		"a size below zero":      {false, []wire.Frame{{Type: wire.TypeEntry, Payload: file(1 << 63)}}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := sessionOver(t, fakeHelper(t, func(f wire.Frame) []byte {
				var out []byte
				for _, x := range c.say {
					if x.Request == 0 {
						x.Request = f.Request
					}
					out = append(out, frames(x)...)
				}
				return out
			}))
			var err error
			if c.list {
				_, err = s.List(t.Context(), Path{"v", "/"}, "", 2)
			} else {
				err = s.Read(t.Context(), Path{"v", "/f"}, io.Discard, func(Entry) error { return nil })
			}
			if !errors.Is(err, ErrHelper) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A cancelled request is ended by the helper, and the connection serves on.
func TestCancel(t *testing.T) {
	var last uint32
	c := fakeHelper(t, func(f wire.Frame) []byte {
		switch f.Type {
		case wire.TypeCancel:
			return frames(wire.Frame{Type: wire.TypeEnd, Request: f.Request, Payload: wire.End{Code: wire.Cancelled}.Append(nil)})
		case wire.TypeRead:
			last = f.Request
			return frames(wire.Frame{Type: wire.TypeEntry, Request: f.Request, Payload: wire.Entry{Name: "f", Kind: wire.File, Size: 1 << 40}.Append(nil)},
				wire.Frame{Type: wire.TypeData, Request: f.Request, Payload: []byte("abc")})
		}
		return frames(wire.Frame{Type: wire.TypeEnd, Request: f.Request, Payload: wire.End{}.Append(nil)})
	})
	s := sessionOver(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Read(ctx, Path{"v", "/f"}, writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }), func(Entry) error { return nil })
	if !errors.Is(err, context.Canceled) || last == 0 {
		t.Errorf("error %v", err)
	}
	if es, err := s.List(t.Context(), Path{"v", "/"}, "", 0); err != nil || len(es) != 0 {
		t.Errorf("afterwards: %v, %v", es, err)
	}
	full := errors.New("disk full")
	err = s.Read(t.Context(), Path{"v", "/f"}, writerFunc(func([]byte) (int, error) { return 0, full }), func(Entry) error { return nil })
	if !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func FuzzReplies(f *testing.F) {
	f.Add(frames(wire.Frame{Type: wire.TypeEntry, Request: 1, Payload: wire.Entry{Name: "a", Kind: wire.File, Size: 3}.Append(nil)},
		wire.Frame{Type: wire.TypeData, Request: 1, Payload: []byte("abc")}, wire.Frame{Type: wire.TypeEnd, Request: 1, Payload: wire.End{}.Append(nil)}))
	f.Add(frames(wire.Frame{Type: wire.TypeEnd, Request: 1, Payload: wire.End{Code: wire.Damaged, Message: "x"}.Append(nil)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []bool{true, false} {
			ours, theirs := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				wire.ReadFrame(theirs, nil)
				theirs.Write(b)
				theirs.Close()
			}()
			s := sessionOver(t, newConn(ours, clock.Real()))
			var got bytes.Buffer
			if read {
				var size int64
				err := s.Read(t.Context(), Path{"v", "/f"}, writerFunc(func(p []byte) (int, error) {
					if got.Len() > 1<<20 {
						return 0, io.ErrShortWrite
					}
					return got.Write(p)
				}), func(e Entry) error { size = e.Size; return nil })
				if err == nil && int64(got.Len()) != size {
					t.Errorf("%d bytes of %d without an error", got.Len(), size)
				}
			} else if es, err := s.List(t.Context(), Path{"v", "/"}, "", 5); err == nil && len(es) > 5 {
				t.Errorf("%d entries", len(es))
			}
			ours.Close()
			<-done
		}
	})
}

func FuzzShow(f *testing.F) {
	for _, s := range []string{"plain", "\xff", `a\x41`, `\x5cx41`, "é\n", `\\x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := Bytes(Show(s)); got != s {
			t.Errorf("%q became %q", s, got)
		}
		if strings.ContainsFunc(Show(s), control) || !strings.EqualFold(Show(s), strings.ToValidUTF8(Show(s), "")) {
			t.Errorf("%q is shown as %q", s, Show(s))
		}
	})
}

// An archive that wants out of its directory stays in it.
func TestUnpackHostile(t *testing.T) {
	outside := t.TempDir()
	for what, hs := range map[string][]tar.Header{
		"dot dot":             {{Name: "../x", Typeflag: tar.TypeReg}},
		"absolute":            {{Name: outside + "/x", Typeflag: tar.TypeReg}},
		"through a link":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"through a deep link": {{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "d/l/e/x", Typeflag: tar.TypeReg}},
		"over a link":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside + "/x"}, {Name: "l", Typeflag: tar.TypeReg}},
		"a link as directory": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777}},
		"hard link out":       {{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
		"hard link to a link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, {Name: "m", Typeflag: tar.TypeLink, Linkname: "l"}},
		"a local link":        {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d"}, {Name: "l/x", Typeflag: tar.TypeReg}},
	} {
		t.Run(what, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range hs {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := Unpack(t.Context(), &b, t.TempDir(), UnpackOptions{}); err == nil {
				t.Error("it was unpacked")
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("outside: %v", left)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "d/f", Typeflag: tar.TypeReg, Size: 0}} {
		w.WriteHeader(&h)
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		if err := os.Mkdir(filepath.Join(base, "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		Unpack(t.Context(), io.LimitReader(bytes.NewReader(b), 64<<10), filepath.Join(base, "in"), UnpackOptions{})
		if left, _ := os.ReadDir(base); len(left) != 1 {
			t.Errorf("outside: %v", left)
		}
	})
}

// Damaged and hostile file systems: right bytes or an error, and the next volume can be read whatever happened.
func TestDamagedFileSystems(t *testing.T) {
	src := t.TempDir()
	big := make([]byte, 1<<20)
	write(t, filepath.Join(src, "etc/hosts"), "127.0.0.1 localhost\n")
	write(t, filepath.Join(src, "big"), string(big))
	good := blank(t, 32<<20)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", src, good)
	images := []string{good}
	make1 := map[string]func(string){
		"ext4":  func(p string) { tool(t, "mke2fs", "-q", "-t", "ext4", "-d", src, p) },
		"xfs":   func(p string) { tool(t, "mkfs.xfs", "-q", "-p", xfsProto(t), p) },
		"btrfs": func(p string) { tool(t, "mkfs.btrfs", "-q", "--rootdir", src, p) },
		"vfat":  func(p string) { tool(t, "mkfs.vfat", p) },
		"ntfs":  func(p string) { tool(t, "mkntfs", "-q", "-F", "-f", p) },
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, fs := range []string{"ext4", "xfs", "btrfs", "vfat", "ntfs"} {
		whole := blank(t, 320<<20)
		if fs != "xfs" {
			os.Truncate(whole, 128<<20)
		}
		make1[fs](whole)
		for range 3 {
			b, err := os.ReadFile(whole)
			if err != nil {
				t.Fatal(err)
			}
			// Bytes are hit in the superblock, past what says which file system it is, and in what comes after.
			for range 40 {
				b[512+rnd.IntN(4096-512)] = byte(rnd.Uint32())
			}
			for range 400 {
				b[4096+rnd.IntN(1<<20)] = byte(rnd.Uint32())
			}
			bad := filepath.Join(t.TempDir(), "bad.img")
			if err := os.WriteFile(bad, b, 0o600); err != nil {
				t.Fatal(err)
			}
			images = append(images, bad)
		}
	}
	o := testOptions(t)
	o.Stall = 30 * time.Second
	s, err := Open(t.Context(), context.Background(), testPoint(images...), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	vs, err := s.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs[1:] {
		_, err := s.List(t.Context(), Path{v.Name, "/"}, "", 0)
		var n counter
		if err == nil {
			err = s.Tar(t.Context(), []Path{{v.Name, "/"}}, &n, func() error { return nil })
		}
		t.Logf("%s (%s): %d bytes, %v", v.Name, v.Filesystem, n, err)
		if got := content(t, s, "a:/etc/hosts"); got != "127.0.0.1 localhost\n" {
			t.Fatalf("after volume %s the good one gives %q", v.Name, got)
		}
	}
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// A helper that is killed is replaced; a volume that helpers die of is left alone.
func TestHelperIsReplaced(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "f"), "x")
	img := blank(t, 32<<20)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", src, img)
	s := open(t, img)
	for range maxDeaths {
		if got := content(t, s, "a:/f"); got != "x" {
			t.Fatalf("got %q", got)
		}
		v, err := s.helper(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := v.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-v.gone
	}
	s.mu.Lock()
	s.deaths["a"] = maxDeaths
	s.mu.Unlock()
	if _, err := s.List(t.Context(), Path{"a", "/"}, "", 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
}
