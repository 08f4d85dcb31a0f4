package archtest

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "draw the diagram in docs/ARCHITECTURE.md anew")

// loadModule reads the module that this package is in.
func loadModule(t *testing.T) (*Tree, string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	tree, err := Load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 10 {
		t.Fatalf("only %d source files found in %s", len(tree.Files), root)
	}
	t.Logf("%d files in %v", len(tree.Files), time.Since(start).Round(time.Millisecond))
	return tree, root
}

func TestRules(t *testing.T) {
	tree, _ := loadModule(t)
	for _, r := range Rules() {
		t.Run(r.Name, func(t *testing.T) {
			for _, v := range r.Check(tree, Allowed()) {
				t.Error(v)
			}
		})
	}
	for _, a := range Allowed() {
		if a.Reason == "" {
			t.Errorf("the exception of %s from %s has no reason", a.Path, a.Rule)
		}
	}
}

func TestDiagram(t *testing.T) {
	tree, root := loadModule(t)
	path := filepath.Join(root, "docs", "ARCHITECTURE.md")
	page, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Logf("%s is not there yet", path)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	want, err := insert(string(page), Diagram(tree))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if want == string(page) {
		return
	}
	if !*update {
		t.Fatalf("the diagram in %s is not that of the imports: run go test ./internal/archtest -update", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
