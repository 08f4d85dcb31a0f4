package httpapi

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of reasons in docs/api.md")

const (
	reasonsFile  = "../../docs/api.md"
	reasonsBegin = "<!-- reasons: begin -->\n"
	reasonsEnd   = "<!-- reasons: end -->"
)

var reasonLike = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$`)

// reasons are the reasons that errors of the manager's packages can have, with the packages: values of a field Reason, and
// second arguments of Faults.Add and first ones of a local bad().
func reasons(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, dir := range []string{"resource", "rpc", "task", "manager", "httpapi"} {
		files, err := filepath.Glob("../" + dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		note := func(e ast.Expr) {
			lit, ok := e.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return
			}
			if s, _ := strconv.Unquote(lit.Value); reasonLike.MatchString(s) && !slices.Contains(found[s], dir) {
				found[s] = append(found[s], dir)
			}
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.KeyValueExpr:
					if k, ok := n.Key.(*ast.Ident); ok && k.Name == "Reason" {
						note(n.Value)
					}
				case *ast.AssignStmt:
					for i, l := range n.Lhs {
						if s, ok := l.(*ast.SelectorExpr); ok && s.Sel.Name == "Reason" && len(n.Lhs) == len(n.Rhs) {
							note(n.Rhs[i])
						}
					}
				case *ast.CallExpr:
					switch f := n.Fun.(type) {
					case *ast.SelectorExpr:
						if f.Sel.Name == "Add" && len(n.Args) > 2 {
							note(n.Args[1])
						}
					case *ast.Ident:
						if f.Name == "bad" && len(n.Args) > 1 {
							note(n.Args[0])
						}
					}
				}
				return true
			})
		}
	}
	return found
}

// The table of reasons in docs/api.md is that of the code. Run with -update to write it.
func TestReasonsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("| reason | said by |\n|---|---|\n")
	all := reasons(t)
	for _, r := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r, strings.Join(all[r], ", "))
	}
	if len(all) < 50 {
		t.Fatalf("only %d reasons were found", len(all))
	}
	text, err := os.ReadFile(reasonsFile)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(text), reasonsBegin)
	have, tail, ok2 := strings.Cut(rest, reasonsEnd)
	if !ok1 || !ok2 {
		t.Fatal("docs/api.md has no marks for the table")
	}
	if have == b.String() {
		return
	}
	if !*update {
		t.Fatal("the table of reasons in docs/api.md is not that of the code; run: go test ./internal/httpapi -run Reasons -update")
	}
	if err := os.WriteFile(reasonsFile, []byte(head+reasonsBegin+b.String()+reasonsEnd+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
