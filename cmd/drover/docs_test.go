package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docFile = "../../docs/cli.md"

// TestDocs holds docs/cli.md to the command tree.
func TestDocs(t *testing.T) {
	got := reference(newApp().New())
	if *update {
		if err := os.WriteFile(docFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Fatalf("docs/cli.md is not current at line %d:\n  is     %s\n  should %s\nwrite it anew: go test ./cmd/drover -run TestDocs -update", i+1, w[i], g[i])
			}
		}
		t.Fatal("docs/cli.md is not current; write it anew: go test ./cmd/drover -run TestDocs -update")
	}
}

// reference is the command tree as a page.
func reference(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# The command line\n\nThis page is made from the command tree; `drover COMMAND --help` says the same.\n\n")
	b.WriteString("Where a command talks to: `--socket` or `--server` or `--context`; else the environment (`DROVER_SOCKET`, `DROVER_SERVER`, `DROVER_CONTEXT`);\nelse the context that `drover login` or `drover context use` chose; else the manager on this machine.\n\n")
	b.WriteString("Documents for `drover apply` are described in [apply.md](apply.md).\n\n## Global flags\n\n")
	flags(&b, root.PersistentFlags())
	for _, c := range root.Commands() {
		if c.Name() == "exit-codes" {
			fmt.Fprintf(&b, "## Exit codes\n\n```text\n%s\n```\n\n", c.Long)
		}
	}
	for _, c := range root.Commands() {
		page(&b, c, 2)
	}
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
}

func page(b *bytes.Buffer, c *cobra.Command, level int) {
	if c.Hidden || c.Name() == "help" || c.Name() == "exit-codes" {
		return
	}
	fmt.Fprintf(b, "%s %s\n\n", strings.Repeat("#", min(level, 4)), c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n\n", text)
	if c.Runnable() && (!c.HasSubCommands() || c.LocalNonPersistentFlags().HasAvailableFlags()) {
		fmt.Fprintf(b, "```text\n%s\n```\n\n", c.UseLine())
	}
	if c.Example != "" {
		fmt.Fprintf(b, "```sh\n%s\n```\n\n", undent(c.Example))
	}
	flags(b, c.LocalNonPersistentFlags())
	for _, sub := range c.Commands() {
		page(b, sub, level+1)
	}
}

func flags(b *bytes.Buffer, fs *pflag.FlagSet) {
	n := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if n++; n == 1 {
			b.WriteString("| flag | what |\n|---|---|\n")
		}
		value, text := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + value
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", name, strings.ReplaceAll(text, "|", "\\|"))
	})
	if n > 0 {
		b.WriteByte('\n')
	}
}

func undent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
