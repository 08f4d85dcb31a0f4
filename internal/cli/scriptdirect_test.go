package cli

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
)

// makeDisks writes raw disks into a script's directory: v1.raw, v2.raw in which one block of it is another, and data.raw with a hole.
func makeDisks(dir string) error {
	noise := rand.NewChaCha8([32]byte{1})
	block := func(n int) []byte {
		b := make([]byte, n<<10)
		_, _ = noise.Read(b) // never fails
		return b
	}
	v1 := block(2048)
	v2 := bytes.Clone(v1)
	copy(v2[65536:], block(4))
	data := append(block(256), make([]byte, 1<<20)...)
	for name, b := range map[string][]byte{"v1.raw": v1, "v2.raw": v2, "data.raw": append(data, block(100)...)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// damage is "damage DIRECTORY": it flips a bit in the midst of each pack.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage DIRECTORY")
	}
	n := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		n++
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o600)
	}))
	if n == 0 {
		ts.Fatalf("there is nothing to damage")
	}
}
