package table

import (
	"strings"
	"testing"
	"unicode"
)

func TestLines(t *testing.T) {
	tb := Table{Headers: []string{"NAME", "SIZE", "NOTE"}, Right: map[int]bool{1: true}}
	tb.Add(Cell{"web", Green}, Text("512 MiB"), Text("a\x1b[2Jb\nc"))
	tb.Add(Text("日本"), Text("1 GiB"), Text(""))
	want := []string{
		"NAME      SIZE   NOTE",
		"web    512 MiB   a [2Jb c",
		"日本     1 GiB   -",
	}
	if got := tb.Lines(false); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got := tb.Lines(true)
	if !strings.HasPrefix(got[1], "\x1b[32mweb\x1b[0m    512") {
		t.Errorf("coloured line %q", got[1])
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"short", 5, "short"}, {"longer", 5, "long…"}, {"日本語", 5, "日本…"}, {"x", 0, ""}, {"xy", 1, "…"}} {
		if got := Cut(c.in, c.n); got != c.want {
			t.Errorf("Cut(%q, %d) = %q; want %q", c.in, c.n, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b]0;title\x07")
	f.Add("\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Clean(s) {
			if unicode.IsControl(r) {
				t.Fatalf("Clean(%q) left %U", s, r)
			}
		}
	})
}
