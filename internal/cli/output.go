package cli

import (
	"fmt"
	"slices"
	"strings"

	"drover/internal/cli/manifest"
	"drover/internal/cli/table"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

var outputs = []string{"table", "wide", "json", "yaml", "name"}

// outputFlag adds -o.
func (a *App) outputFlag(cmd *cobra.Command) {
	cmd.Flags().VarP(&choice{to: &a.output, of: outputs}, "output", "o", "how to print: "+strings.Join(outputs, ", "))
	a.output = ""
	register(cmd, "output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
}

// choice is a flag with a fixed set of values.
type choice struct {
	to *string
	of []string
}

func (c *choice) String() string {
	if c.to == nil {
		return ""
	}
	return *c.to
}
func (c *choice) Type() string { return "FORMAT" }
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("%q is none of %s", s, strings.Join(c.of, ", "))
	}
	*c.to = s
	return nil
}

// register sets the completion of a flag. It fails only for a flag that isn't there, a fault of the program.
func register(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(fmt.Sprintf("%s: completion of --%s: %v", cmd.Name(), flag, err))
	}
}

// people reports whether the output is for people rather than for programs.
func (a *App) people() bool { return a.output == "" || a.output == "table" || a.output == "wide" }

// table is objects in the columns of their kind.
func (a *App) table(k *kind, items []object) *table.Table {
	t := &table.Table{Right: map[int]bool{}}
	var cols []column
	for _, c := range k.columns {
		if c.wide && a.output != "wide" {
			continue
		}
		t.Right[len(cols)] = c.right
		cols = append(cols, c)
		t.Headers = append(t.Headers, c.head)
	}
	now := a.now()
	for _, o := range items {
		row := make([]table.Cell, len(cols))
		for i, c := range cols {
			row[i] = c.cell(now, o)
		}
		t.Add(row...)
	}
	return t
}

// printList prints a list of objects.
func (a *App) printList(k *kind, items []object) error {
	switch a.output {
	case "json":
		return manifest.JSONList(a.Out, k.name, messages(items))
	case "yaml":
		return manifest.YAML(a.Out, k.name, messages(items)...)
	case "name":
		return a.printNames(k, items)
	}
	if len(items) == 0 {
		a.say("no %s", k.plural)
		return nil
	}
	return a.table(k, items).Write(a.Out, a.coloured(a.Out))
}

func (a *App) printNames(k *kind, items []object) error {
	for _, o := range items {
		if _, err := fmt.Fprintf(a.Out, "%s/%s\n", k.name, o.GetMeta().GetName()); err != nil {
			return err
		}
	}
	return nil
}

// printOne prints one object: all of it for people, too.
func (a *App) printOne(k *kind, o object) error {
	switch a.output {
	case "json":
		return manifest.JSON(a.Out, k.name, o)
	case "yaml":
		return manifest.YAML(a.Out, k.name, o)
	case "name":
		return a.printNames(k, []object{o})
	case "wide", "table":
		return a.table(k, []object{o}).Write(a.Out, a.coloured(a.Out))
	}
	return a.describe(o)
}

// printDone says what was done to an object, or prints the object for programs.
func (a *App) printDone(k *kind, o object, done string) error {
	if !a.people() {
		return a.printOne(k, o)
	}
	_, err := fmt.Fprintf(a.Out, "%s/%s %s\n", k.name, table.Clean(o.GetMeta().GetName()), done)
	return err
}

func messages(items []object) []proto.Message {
	out := make([]proto.Message, len(items))
	for i, o := range items {
		out[i] = o
	}
	return out
}

// printMessage prints a message that is no resource, for programs.
func (a *App) printMessage(m proto.Message) error {
	if a.output == "yaml" {
		return manifest.YAML(a.Out, "", m)
	}
	return manifest.JSON(a.Out, "", m)
}
