package chunkstore

import (
	"bytes"
	"flag"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

// stopped is a clock that stands still.
type stopped struct{}

func (stopped) Now() time.Time                         { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
func (stopped) NewTimer(d time.Duration) *time.Timer   { return time.NewTimer(d) }
func (stopped) After(d time.Duration) <-chan time.Time { return time.After(d) }

// goldens are the kinds of repositories there are.
var goldens = map[string]CreateOptions{
	"encrypted": {BlockSize: 4096, Passphrase: "golden"},
	"plain":     {BlockSize: 4096, Unencrypted: true},
	"sha256":    {BlockSize: 4096, Hash: keys.SHA256, Passphrase: "golden"},
}

// goldenDisks are two days of a disk: holes, blocks that do and do not get smaller, repeated ones, a short last one.
func goldenDisks() (one, two []byte) {
	one = image(42, 300*4096+100)
	clear(one[20*4096 : 280*4096])
	two = bytes.Clone(one)
	copy(two[4096:], "the next day")
	clear(two[8*4096 : 9*4096])
	return one, two
}

// writeGolden makes a repository, always with the same bytes.
func writeGolden(t *testing.T, o CreateOptions) *blob.Memory {
	t.Helper()
	st := blob.NewMemory()
	o.Cost = cheap
	o.Open = OpenOptions{Random: rand.NewChaCha8([32]byte{1}), Clock: stopped{}, Version: "golden"}
	r, _, err := Create(t.Context(), st, o)
	if err != nil {
		t.Fatal(err)
	}
	one, two := goldenDisks()
	day := func(id byte, data []byte, parent *ledger.Disk) {
		s, err := r.Begin(t.Context(), BeginOptions{Purpose: "golden"})
		if err != nil {
			t.Fatal(err)
		}
		w, err := s.Disk(t.Context(), DiskOptions{Name: "vda", Size: int64(len(data)), Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(data); off += 4096 {
			if err := w.Put(t.Context(), int64(off/4096), data[off:min(off+4096, len(data))]); err != nil {
				t.Fatal(err)
			}
		}
		d, _, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, err := s.Describe(t.Context(), []byte(`{"vm":"web"}`))
		if err != nil {
			t.Fatal(err)
		}
		p := &ledger.Point{Id: bytes.Repeat([]byte{id}, 16), VmUid: "uid", Vm: "web", Disks: []*ledger.Disk{d}, Description: text, Labels: map[string]string{"a": "1", "b": "2"}}
		if err := s.Commit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	day(1, one, nil)
	day(2, two, r.Points()[0].Disks[0])
	if err := r.Keep(t.Context(), PointID(bytes.Repeat([]byte{2}, 16)), true, map[string]string{"a": ""}); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return st
}

func objects(t *testing.T, st blob.Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for info, err := range st.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := st.Get(t.Context(), info.Name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Name] = b
	}
	return all
}

func readGolden(t *testing.T, name string) map[string][]byte {
	t.Helper()
	root := filepath.Join("testdata", name)
	all := map[string][]byte{}
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		all[filepath.ToSlash(rel)] = b
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWriterMakesTheGoldenFiles fails when the format changes: then it needs a new version, or the change is a mistake.
func TestWriterMakesTheGoldenFiles(t *testing.T) {
	for name, o := range goldens {
		t.Run(name, func(t *testing.T) {
			got := objects(t, writeGolden(t, o))
			if *update {
				if err := os.RemoveAll(filepath.Join("testdata", name)); err != nil {
					t.Fatal(err)
				}
				for k, b := range got {
					path := filepath.Join("testdata", name, filepath.FromSlash(k))
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, b, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			want := readGolden(t, name)
			if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
				t.Fatalf("objects\n%s\nwant\n%s", strings.Join(g, "\n"), strings.Join(w, "\n"))
			}
			for k := range want {
				if !bytes.Equal(got[k], want[k]) {
					t.Errorf("%s differs", k)
				}
			}
		})
	}
}

// TestReaderReadsTheGoldenFiles holds for as long as version 1 is read.
func TestReaderReadsTheGoldenFiles(t *testing.T) {
	one, two := goldenDisks()
	for name := range goldens {
		t.Run(name, func(t *testing.T) {
			st := blob.NewMemory()
			for k, b := range readGolden(t, name) {
				if err := st.Put(t.Context(), k, b); err != nil {
					t.Fatal(err)
				}
			}
			r, err := Open(t.Context(), st, OpenOptions{Passphrase: "golden"})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			a, b := PointID(bytes.Repeat([]byte{1}, 16)), PointID(bytes.Repeat([]byte{2}, 16))
			same(t, r, a, one)
			same(t, r, b, two)
			p, _ := r.Point(b)
			if r.Kept(a) || !r.Kept(b) || p.Labels["a"] != "" || p.Labels["b"] != "2" {
				t.Errorf("kept %v %v, labels %v", r.Kept(a), r.Kept(b), p.Labels)
			}
		})
	}
}
