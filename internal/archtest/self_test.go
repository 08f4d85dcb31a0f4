package archtest

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// archive reads files in one: "-- path --" lines, each followed by a text.
func archive(text string) fstest.MapFS {
	out := fstest.MapFS{}
	name := ""
	for line := range strings.Lines(text) {
		if s, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(s, " --\n") {
			name = strings.TrimSuffix(s, " --\n")
			out[name] = &fstest.MapFile{}
		} else if name != "" {
			out[name].Data = append(out[name].Data, line...)
		}
	}
	return out
}

// TestRulesCanFail holds each rule against a small tree in which it is broken
// in every way, and kept in every way that looks close. The tree's file
// "want" lists exactly the violations.
func TestRulesCanFail(t *testing.T) {
	for _, r := range Rules() {
		t.Run(r.Name, func(t *testing.T) {
			text, err := os.ReadFile("testdata/" + r.Name + ".txt")
			if err != nil {
				t.Fatalf("the rule has no self-test: %v", err)
			}
			files := archive(string(text))
			if r.Name == "size" {
				lengthen(files)
			}
			tree, err := Load(files)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, v := range r.Check(tree, []Allowance{
				{Rule: r.Name, Path: "internal/qmp/allowed.go"},
				{Rule: r.Name, Path: "internal/qmp/stale.go"},
				{Rule: r.Name, Path: "internal/qmp/not_there.go"},
				{Rule: "another", Path: "internal/qmp/broken.go"},
			}) {
				got.WriteString(v.String() + "\n")
			}
			want := string(files["want"].Data)
			if want == "" {
				t.Fatal("the tree breaks nothing: it shows nothing")
			}
			if got.String() != want {
				t.Errorf("violations:\n%s\nwant:\n%s", got.String(), want)
			}
		})
	}
}

// lengthen makes a file of each "// lines N" line.
func lengthen(files fstest.MapFS) {
	for _, n := range []int{maxLines, maxLines + 1} {
		mark := "// " + map[int]string{maxLines: "at the limit", maxLines + 1: "past the limit"}[n] + "\n"
		for _, f := range files {
			if text := string(f.Data); strings.Contains(text, mark) {
				have := strings.Count(text, "\n")
				f.Data = append(f.Data, strings.Repeat("//\n", n-have)...)
			}
		}
	}
}

func TestDiagramOfATree(t *testing.T) {
	text, err := os.ReadFile("testdata/diagram.txt")
	if err != nil {
		t.Fatal(err)
	}
	files := archive(string(text))
	tree, err := Load(files)
	if err != nil {
		t.Fatal(err)
	}
	if got := Diagram(tree); got != string(files["want"].Data) {
		t.Errorf("diagram:\n%s\nwant:\n%s", got, files["want"].Data)
	}
}

func TestInsert(t *testing.T) {
	page := "a\n" + diagramBegin + "\nold\n" + diagramEnd + "\nb\n"
	got, err := insert(page, "new\n")
	if err != nil || got != "a\n"+diagramBegin+"\nnew\n"+diagramEnd+"\nb\n" {
		t.Errorf("%q, %v", got, err)
	}
	if again, err := insert(got, "new\n"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", diagramBegin, diagramEnd + diagramBegin, page + page} {
		if _, err := insert(bad, "x"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestLayersNameEachPackageOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range layers {
		for _, p := range l.Packages {
			if seen[p] {
				t.Errorf("%s stands in the table twice", p)
			}
			seen[p] = true
		}
	}
	for _, p := range append([]string{"internal/hostnet"}, purePackages...) {
		if !seen[p] {
			t.Errorf("a rule speaks of %s, which has no place in the table", p)
		}
	}
	for _, w := range worlds {
		if !seen[w.owner] {
			t.Errorf("%s belongs to %s, which has no place in the table", w.name, w.owner)
		}
	}
}
