package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Layer is a row of packages. Its packages may import those of the rows before
// it, and each other unless Apart is set.
type Layer struct {
	Title    string
	Packages []string // from the module's root; each with what is below it
	Apart    bool
}

// layers is the order of the packages, the lowest first. Packages need not
// exist yet.
var layers = []Layer{
	{Title: "the API", Packages: []string{"api"}},
	{Title: "leaves: time, files, undo; tables of guests and hardware", Packages: []string{
		"internal/clock", "internal/vfs", "internal/unwind", "internal/guest", "internal/kernelimage"}},
	{Title: "the vocabulary", Packages: []string{"internal/resource", "internal/query", "internal/rpc"}},
	{Title: "state, history, people, certificates", Packages: []string{
		"internal/store", "internal/task", "internal/history", "internal/auth", "internal/pki"}},
	{Title: "pure decisions", Packages: []string{"internal/placement", "internal/zone"}},
	{Title: "talking to the hypervisor", Packages: []string{"internal/qmp", "internal/qga", "internal/accel", "internal/nbd"}},
	{Title: "machines and disks", Packages: []string{"internal/qemu", "internal/disk"}},
	{Title: "operating system images", Packages: []string{"internal/osimage"}},
	{Title: "links, datapath, threats, flows", Packages: []string{
		"internal/hostnet", "internal/vswitch", "internal/guard", "internal/flow"}},
	{Title: "migration", Packages: []string{"internal/migrate"}},
	{Title: "object storage, deduplication, backup", Packages: []string{"internal/blob", "internal/chunkstore", "internal/backup"}},
	{Title: "upgrade", Packages: []string{"internal/upgrade"}},
	{Title: "the two roles, which meet in the API alone", Apart: true, Packages: []string{"internal/manager", "internal/host"}},
	{Title: "surfaces", Packages: []string{"internal/httpapi", "internal/cli", "internal/webui", "web"}},
	{Title: "the lab", Packages: []string{"internal/lab"}},
	{Title: "the program, whole-system tests, benchmarks", Packages: []string{"cmd", "test", "bench", "bpf", "internal/archtest"}},
}

// place finds a directory's row and the package of the table that it is under.
func place(dir string) (row int, pkg string) {
	for p := dir; p != "." && p != "/"; p = path.Dir(p) {
		for i, l := range layers {
			if slices.Contains(l.Packages, p) {
				return i, p
			}
		}
	}
	return -1, ""
}

// local returns the directory of an import of this module.
func local(imp string) (dir string, ok bool) { return strings.CutPrefix(imp, Module+"/") }

// checkLayers finds imports that go up or sideways, and packages that have no
// place in the table. Tests may look up: they assemble what they test.
func checkLayers(t *Tree) []Violation {
	var out []Violation
	lost := map[string]bool{}
	for _, f := range t.Files {
		if f.AST == nil || f.Dir() == "." {
			continue
		}
		row, pkg := place(f.Dir())
		if row < 0 {
			if !lost[f.Dir()] {
				lost[f.Dir()] = true
				out = append(out, Violation{Path: f.Dir(), Text: "the package has no place in the table: add it to layers.go"})
			}
			continue
		}
		if f.Test() {
			continue
		}
		for _, imp := range f.Imports {
			dir, ok := local(imp.Path)
			if !ok {
				continue
			}
			to, target := place(dir)
			switch {
			case to > row:
				out = append(out, Violation{Path: f.Path, Line: imp.Line, Text: fmt.Sprintf("%s imports %s, which is above it", pkg, dir)})
			case to == row && target != pkg && layers[row].Apart:
				out = append(out, Violation{Path: f.Path, Line: imp.Line, Text: fmt.Sprintf("%s imports %s: they meet in the API alone", pkg, dir)})
			}
		}
	}
	return out
}

// world is something outside that one package alone talks to.
type world struct {
	name    string
	imports []string // path prefixes
	owner   string
	// tests binds test files too; else those may look at the world directly.
	tests bool
}

var worlds = []world{
	{name: "netlink and network namespaces", imports: []string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns"}, owner: "internal/hostnet"},
	{name: "eBPF", imports: []string{"github.com/cilium/ebpf"}, owner: "internal/vswitch"},
	{name: "etcd", imports: []string{"go.etcd.io/"}, owner: "internal/store", tests: true},
	{name: "S3", imports: []string{"github.com/minio/minio-go", "github.com/aws/"}, owner: "internal/blob", tests: true},
	{name: "SQL", imports: []string{"database/sql", "modernc.org/sqlite", "github.com/mattn/go-sqlite3"}, owner: "internal/history", tests: true},
}

func checkWorlds(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		_, pkg := place(f.Dir())
		for _, imp := range f.Imports {
			for _, w := range worlds {
				hit := slices.ContainsFunc(w.imports, func(p string) bool { return strings.HasPrefix(imp.Path, p) })
				if hit && pkg != w.owner && (w.tests || !f.Test()) {
					out = append(out, Violation{Path: f.Path, Line: imp.Line,
						Text: fmt.Sprintf("imports %s: %s is for %s alone", imp.Path, w.name, w.owner)})
				}
			}
		}
	}
	return out
}
