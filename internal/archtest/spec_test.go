package archtest

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// testName is a test, benchmark or fuzz target as documents name it.
var testName = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9_]*)`")

// TestSpecificationNamesTestsThatExist keeps docs/SPECIFICATION.md from promising what no test holds any more.
func TestSpecificationNamesTestsThatExist(t *testing.T) {
	tree, root := loadModule(t)
	have := map[string]bool{}
	for _, f := range tree.Files {
		if f.AST == nil || !f.Test() {
			continue
		}
		for _, d := range f.AST.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				have[fn.Name.Name] = true
			}
		}
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "SPECIFICATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := testName.FindAllStringSubmatch(string(page), -1)
	if len(named) < 20 {
		t.Fatalf("only %d tests are named: has the form of the page changed?", len(named))
	}
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/SPECIFICATION.md names %s, which is no test", m[1])
		}
	}
}
