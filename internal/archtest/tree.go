package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Module is the module's path.
const Module = "drover"

// Tree is the sources of a module.
type Tree struct {
	Files []*File // by path
	fset  *token.FileSet
}

// File is one source file. AST is nil for what is not Go.
type File struct {
	Path      string // slash-separated, from the module's root
	Lines     int
	Generated bool // bears the mark of generated files
	AST       *ast.File
	Imports   []Import
}

// Import is one import of a Go file. Name is what the file calls the package.
type Import struct {
	Path, Name string
	Line       int
}

// Violation is one place where a rule is broken.
type Violation struct {
	Rule string
	Path string
	Line int // 0 for the whole file or package
	Text string
}

func (v Violation) String() string {
	at := v.Path
	if v.Line > 0 {
		at = fmt.Sprintf("%s:%d", v.Path, v.Line)
	}
	return fmt.Sprintf("%s: %s: %s", at, v.Rule, v.Text)
}

// Dir is the package's directory.
func (f *File) Dir() string { return path.Dir(f.Path) }

// Test reports whether the file is part of a test.
func (f *File) Test() bool { return strings.HasSuffix(f.Path, "_test.go") }

// generatedMark is Go's convention (go.dev/s/generatedcode), in C and TypeScript too.
var generatedMark = regexp.MustCompile(`(?m)^(//|/\*) ?Code generated .* DO NOT EDIT\.`)

var sources = []string{".go", ".ts", ".tsx", ".c", ".h"}

// Load reads the sources under fsys. Directories that the go command ignores,
// and those of other tools' downloads and output, are left out.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{fset: token.NewFileSet()}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != "." && (name[0] == '.' || name[0] == '_' || slices.Contains([]string{"testdata", "vendor", "node_modules", "dist"}, name)) {
				return fs.SkipDir
			}
			return nil
		}
		if !slices.Contains(sources, path.Ext(p)) {
			return nil
		}
		f, err := t.read(fsys, p)
		if err != nil {
			return err
		}
		t.Files = append(t.Files, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load sources: %w", err)
	}
	return t, nil
}

func (t *Tree) read(fsys fs.FS, p string) (*File, error) {
	text, err := fs.ReadFile(fsys, p)
	if err != nil {
		return nil, err
	}
	f := &File{Path: p, Lines: strings.Count(string(text), "\n")}
	f.Generated = generatedMark.Match(text[:min(len(text), 4096)])
	if path.Ext(p) != ".go" {
		return f, nil
	}
	f.AST, err = parser.ParseFile(t.fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, spec := range f.AST.Imports {
		imp := Import{Path: strings.Trim(spec.Path.Value, `"`), Line: t.line(spec.Pos())}
		imp.Name = path.Base(imp.Path)
		if spec.Name != nil {
			imp.Name = spec.Name.Name
		}
		f.Imports = append(f.Imports, imp)
	}
	return f, nil
}

func (t *Tree) line(p token.Pos) int { return t.fset.Position(p).Line }

// uses returns the lines where a Go file uses one of a package's names, by
// the name that the file gives the package, and the names.
func (t *Tree) uses(f *File, pkg string, names ...string) []Violation {
	local := ""
	for _, imp := range f.Imports {
		if imp.Path == pkg {
			local = imp.Name
		}
	}
	var out []Violation
	if local == "" {
		return nil
	}
	if local == "." {
		return []Violation{{Path: f.Path, Text: "dot import of " + pkg}}
	}
	ast.Inspect(f.AST, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == local && slices.Contains(names, sel.Sel.Name) {
			out = append(out, Violation{Path: f.Path, Line: t.line(sel.Pos()), Text: pkg + "." + sel.Sel.Name})
		}
		return true
	})
	return out
}
