package archtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The marks between which the diagram stands in docs/ARCHITECTURE.md.
const (
	diagramBegin = "<!-- packages:begin -->"
	diagramEnd   = "<!-- packages:end -->"
)

// Diagram draws the packages in their layers, highest first, as a Mermaid flow
// chart. An arrow is an import; one that other arrows imply is left out, and so
// are tests.
func Diagram(t *Tree) string {
	graph := imports(t)
	var b strings.Builder
	b.WriteString("```mermaid\nflowchart TB\n")
	for i, l := range slices.Backward(layers) {
		var here []string
		for _, p := range l.Packages {
			if graph[p] != nil && p != "internal/archtest" {
				here = append(here, p)
			}
		}
		if len(here) == 0 {
			continue
		}
		fmt.Fprintf(&b, "  subgraph L%d[\"%s\"]\n", i, l.Title)
		for _, p := range here {
			fmt.Fprintf(&b, "    %s[\"%s\"]\n", node(p), strings.TrimPrefix(p, "internal/"))
		}
		b.WriteString("  end\n")
	}
	for _, from := range slices.Sorted(maps.Keys(graph)) {
		for _, to := range slices.Sorted(maps.Keys(graph[from])) {
			if !implied(graph, from, to) {
				fmt.Fprintf(&b, "  %s --> %s\n", node(from), node(to))
			}
		}
	}
	b.WriteString("```\n")
	return b.String()
}

// node is a Mermaid identifier; "end" and the like are words of its own.
func node(pkg string) string {
	return "p_" + strings.NewReplacer("internal/", "", "/", "_").Replace(pkg)
}

// imports is the graph of the table's packages that exist.
func imports(t *Tree) map[string]map[string]bool {
	graph := map[string]map[string]bool{}
	for _, f := range t.Files {
		_, from := place(f.Dir())
		if f.AST == nil || f.Test() || from == "" {
			continue
		}
		if graph[from] == nil {
			graph[from] = map[string]bool{}
		}
		for _, imp := range f.Imports {
			if dir, ok := local(imp.Path); ok {
				if _, to := place(dir); to != "" && to != from {
					graph[from][to] = true
				}
			}
		}
	}
	return graph
}

// implied reports whether another import of from leads to to.
func implied(graph map[string]map[string]bool, from, to string) bool {
	seen := map[string]bool{from: true}
	var reach func(string) bool
	reach = func(p string) bool {
		if p == to {
			return true
		}
		if seen[p] {
			return false
		}
		seen[p] = true
		for next := range graph[p] {
			if reach(next) {
				return true
			}
		}
		return false
	}
	for via := range graph[from] {
		if via != to && reach(via) {
			return true
		}
	}
	return false
}

// insert returns the page with the diagram between its marks.
func insert(page, diagram string) (string, error) {
	before, rest, ok1 := strings.Cut(page, diagramBegin)
	_, after, ok2 := strings.Cut(rest, diagramEnd)
	if !ok1 || !ok2 || strings.Contains(after, diagramBegin) {
		return "", errors.New("the page has not exactly one " + diagramBegin + " with " + diagramEnd + " after it")
	}
	return before + diagramBegin + "\n" + diagram + diagramEnd + after, nil
}
