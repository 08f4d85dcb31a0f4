package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Rule is one rule of the house.
type Rule struct {
	Name  string
	check func(*Tree) []Violation
}

// Rules are all of them.
func Rules() []Rule {
	return []Rule{
		{"layers", checkLayers},
		{"worlds", checkWorlds},
		{"pure", checkPure},
		{"size", checkSize},
		{"doc", checkDoc},
		{"sleep", checkSleep},
		{"background", checkBackground},
		{"init", checkInit},
		{"generated", checkGenerated},
	}
}

// Check applies a rule. Allowances for other rules are left alone; one for this
// rule that nothing needs, though its file is there, is a violation itself.
func (r Rule) Check(t *Tree, allowed []Allowance) []Violation {
	var out []Violation
	used := map[string]bool{}
	for _, v := range r.check(t) {
		v.Rule = r.Name
		if i := slices.IndexFunc(allowed, func(a Allowance) bool { return a.Rule == r.Name && a.Path == v.Path }); i >= 0 {
			used[v.Path] = true
			continue
		}
		out = append(out, v)
	}
	for _, a := range allowed {
		there := slices.ContainsFunc(t.Files, func(f *File) bool { return f.Path == a.Path || f.Dir() == a.Path })
		if a.Rule == r.Name && !used[a.Path] && there {
			out = append(out, Violation{Rule: r.Name, Path: a.Path, Text: "the exception in allow.go is not needed any more: remove it"})
		}
	}
	return out
}

var purePackages = []string{"internal/placement", "internal/zone", "internal/guest"}

// impure are imports that can do I/O, wait, share or draw lots; with a slash
// at the end, all below as well.
var impure = []string{
	"os", "os/", "io/ioutil", "net", "net/http", "net/http/", "net/rpc", "net/smtp", "syscall", "unsafe", "runtime", "runtime/",
	"sync", "sync/", "context", "log", "log/", "math/rand", "math/rand/", "crypto/rand", "database/", "plugin", "golang.org/x/sys/",
}

func checkPure(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		_, pkg := place(f.Dir())
		if f.AST == nil || f.Test() || !slices.Contains(purePackages, pkg) {
			continue
		}
		for _, imp := range f.Imports {
			if slices.ContainsFunc(impure, func(p string) bool {
				return imp.Path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(imp.Path, p)
			}) {
				out = append(out, Violation{Path: f.Path, Line: imp.Line, Text: "a pure package imports " + imp.Path})
			}
		}
		for _, v := range t.uses(f, "time", "Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick") {
			v.Text = "a pure package reads the clock: " + v.Text
			out = append(out, v)
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				out = append(out, Violation{Path: f.Path, Line: t.line(g.Pos()), Text: "a pure package starts a goroutine"})
			}
			return true
		})
	}
	return out
}

// maxLines is the length past which a hand-written file fails; aim at half.
const maxLines = 800

func checkSize(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if !f.Generated && f.Lines > maxLines {
			out = append(out, Violation{Path: f.Path, Text: fmt.Sprintf("%d lines: the limit is %d, the aim 400", f.Lines, maxLines)})
		}
	}
	return out
}

var docHeadings = []string{"Purpose", "Main types", "Invariants", "Lock order", "Not here"}

// checkDoc wants a doc.go in each internal package, with something under each
// heading.
func checkDoc(t *Tree) []Violation {
	var out []Violation
	docs, packages := map[string]*File{}, map[string]string{}
	var dirs []string
	for _, f := range t.Files {
		if f.AST == nil || f.Test() || !strings.HasPrefix(f.Path, "internal/") {
			continue
		}
		if packages[f.Dir()] == "" {
			dirs = append(dirs, f.Dir())
		}
		packages[f.Dir()] = f.AST.Name.Name
		if path.Base(f.Path) == "doc.go" {
			docs[f.Dir()] = f
		}
	}
	for _, dir := range dirs {
		f := docs[dir]
		if f == nil {
			out = append(out, Violation{Path: dir, Text: "no doc.go"})
			continue
		}
		text := f.AST.Doc.Text()
		if name := packages[dir]; !strings.HasPrefix(text, "Package "+name+" ") && !(name == "main" && strings.HasPrefix(text, "Command ")) {
			out = append(out, Violation{Path: f.Path, Text: fmt.Sprintf("the comment does not begin with %q", "Package "+name+" ")})
		}
		bodies := sections(text)
		for _, h := range docHeadings {
			if body, ok := bodies[h]; !ok {
				out = append(out, Violation{Path: f.Path, Text: fmt.Sprintf("no heading %q", "# "+h)})
			} else if body == "" {
				out = append(out, Violation{Path: f.Path, Text: fmt.Sprintf("nothing under %q", "# "+h)})
			}
		}
	}
	return out
}

// sections splits a doc comment at its headings ("# " at the line's start).
func sections(text string) map[string]string {
	out := map[string]string{}
	heading := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if h, ok := strings.CutPrefix(line, "# "); ok {
			heading = strings.TrimSpace(h)
			out[heading] = ""
			continue
		}
		out[heading] += line
	}
	return out
}

func checkSleep(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if f.AST == nil || f.Test() {
			continue
		}
		for _, v := range t.uses(f, "time", "Sleep") {
			v.Text = "time.Sleep: wait for the event, with a deadline"
			out = append(out, v)
		}
	}
	return out
}

func checkBackground(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if f.AST == nil || f.Test() || f.AST.Name.Name == "main" {
			continue
		}
		for _, v := range t.uses(f, "context", "Background", "TODO") {
			v.Text += ": take the caller's context; only main and tests make one"
			out = append(out, v)
		}
	}
	return out
}

func checkInit(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if f.AST == nil || f.Generated {
			continue
		}
		for _, d := range f.AST.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				out = append(out, Violation{Path: f.Path, Line: t.line(fn.Pos()), Text: "func init: hand things in where they are wired together"})
			}
		}
	}
	return out
}

// generatedName matches the names that generators give.
var generatedName = regexp.MustCompile(`(\.pb\.go|\.connect\.go|_bpfe[lb]\.go|_gen\.go|_string\.go|_pb\.ts|_connect\.ts|/vmlinux\.h)$`)

// checkGenerated wants the mark on generated files, and on nothing else, since
// the mark lifts other rules.
func checkGenerated(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		switch named := generatedName.MatchString(f.Path); {
		case named && !f.Generated:
			out = append(out, Violation{Path: f.Path, Text: `named as a generated file without "Code generated … DO NOT EDIT." near its top`})
		case !named && f.Generated:
			out = append(out, Violation{Path: f.Path, Text: "marked as generated without a generated file's name"})
		}
	}
	return out
}
