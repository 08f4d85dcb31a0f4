package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/manifest"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// documents reads files ("-" is standard input) and orders the documents so that what others need comes first.
func (a *App) documents(files []string) ([]*manifest.Doc, error) {
	lookup := func(name string) (string, proto.Message, bool) {
		k := kindOf(strings.ToLower(name))
		if k == nil {
			return "", nil, false
		}
		return k.name, k.empty, true
	}
	if len(files) == 0 {
		return nil, usage("give at least one file by -f")
	}
	var docs []*manifest.Doc
	seen := map[string]*manifest.Doc{}
	for _, file := range files {
		got, err := a.parseFile(file, lookup)
		if err != nil {
			return nil, usageError{err: err}
		}
		for _, d := range got {
			if old := seen[d.Kind+"/"+d.Name]; old != nil {
				return nil, usage("%s: is in %s:%d already", d, old.File, old.Line)
			}
			seen[d.Kind+"/"+d.Name] = d
		}
		docs = append(docs, got...)
	}
	slices.SortStableFunc(docs, func(x, y *manifest.Doc) int { return cmp.Compare(kindOf(x.Kind).rank, kindOf(y.Kind).rank) })
	return docs, nil
}

func (a *App) parseFile(file string, lookup manifest.Lookup) ([]*manifest.Doc, error) {
	if file == "-" {
		return manifest.Parse("standard input", a.In, lookup)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return manifest.Parse(file, f, lookup)
}

func filesFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "file", "f", nil, "`FILE` with YAML or JSON documents, - for standard input (repeatable)")
	if err := cmd.MarkFlagFilename("file", "yaml", "yml", "json"); err != nil {
		panic(cmd.Name() + ": no flag file")
	}
}

// What apply did with an object.
const (
	applyCreated    = "created"
	applyConfigured = "configured"
	applyUnchanged  = "unchanged"
)

func (a *App) applyCommand() *cobra.Command {
	var files []string
	var dry bool
	var w waitFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make objects be as files say: create what is missing, change what differs", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Read documents with kind, meta and spec, and create or change the objects that they name. Fields that a document doesn't name stay as
they are; a field set to null is cleared. Of disks and NICs, those of the same name are changed and those that are not in the document are removed.
Files are checked as a whole before anything is changed. Everything is made in the order in which things need each other.`,
		Example: "  drover apply -f web.yaml\n  drover apply -f web.yaml --dry-run\n  drover get vm web -o yaml | sed 's/cpus: 1/cpus: 2/' | drover apply -f -",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			docs, err := a.documents(files)
			if err != nil {
				return err
			}
			for _, d := range docs {
				if k := kindOf(d.Kind); k.create == nil && k.update == nil {
					return usage("%s: objects of this kind can't be applied", d)
				}
			}
			var failed []error
			p := &plan{docs: docs, dry: dry, wait: w}
			for _, d := range docs {
				if err := a.applyOne(ctx, c, d, p); err != nil {
					if ctx.Err() != nil {
						return err
					}
					failed = append(failed, fmt.Errorf("%s:%d: %w", d.File, d.Line, err))
				}
			}
			if len(failed) == 1 {
				return failed[0]
			}
			return errors.Join(failed...)
		}),
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check everything, change nothing; objects that need others from the same files can't all be checked")
	w.add(cmd)
	cmd.Flags().VarP(&choice{to: &a.output, of: []string{"table", "name"}}, "output", "o", "how to print: table, name")
	return cmd
}

// plan is one run of apply.
type plan struct {
	docs []*manifest.Doc
	dry  bool
	wait waitFlags
	// made are the documents whose objects were, or in a dry run would be, created.
	made []*manifest.Doc
}

// lacks is the document that would have been created if this weren't a dry run, and whose object an error misses.
func (p *plan) lacks(err error) *manifest.Doc {
	if !p.dry {
		return nil
	}
	for _, d := range p.made {
		if strings.Contains(err.Error(), d.Kind+" named "+fmt.Sprintf("%q", d.Name)) {
			return d
		}
	}
	return nil
}

func (a *App) applyOne(ctx context.Context, c *client.Client, d *manifest.Doc, p *plan) error {
	k := kindOf(d.Kind)
	current, err := k.get(ctx, c, d.Name)
	if missing(err) {
		return a.applyNew(ctx, c, k, d, p)
	}
	if err != nil {
		return err
	}
	merged, err := d.Merge(current)
	if err != nil {
		return err
	}
	paths := manifest.Changed(current, merged)
	if len(paths) == 0 {
		return a.printDone(k, current, applyUnchanged)
	}
	if k.update == nil {
		return &failure{code: exitPrecondition, err: fmt.Errorf("%s %q exists, and %s can't be changed", k.name, d.Name, strings.Join(paths, ", "))}
	}
	got, err := k.update(ctx, c, merged.(object), maskOf(paths...), p.dry)
	if err != nil {
		return err
	}
	return a.printDone(k, got, dryWord(applyConfigured, p.dry)+" ("+strings.Join(paths, ", ")+")")
}

func (a *App) applyNew(ctx context.Context, c *client.Client, k *kind, d *manifest.Doc, p *plan) error {
	if k.create == nil {
		return &failure{code: exitNotFound, err: fmt.Errorf("%s %q: not found, and can't be made by apply", k.name, d.Name)}
	}
	m, err := d.Merge(nil)
	if err != nil {
		return err
	}
	made, err := k.create(ctx, c, m.(object), p.dry)
	if err != nil {
		if need := p.lacks(err); need != nil {
			return a.printDone(k, m.(object), dryWord(applyCreated, true)+", after "+need.Kind+"/"+need.Name+"; the rest of it can't be checked before")
		}
		return err
	}
	p.made = append(p.made, d)
	if img, ok := made.(*v1.Image); ok && !p.dry && p.wait.on() && img.GetSpec().GetUrl() != "" && hasKind(p.docs, "vm") {
		// VMs of the same files may start from it.
		if err := a.finishTask(ctx, c, img.GetStatus().GetTask(), p.wait); err != nil {
			return err
		}
	}
	return a.printDone(k, made, dryWord(applyCreated, p.dry))
}

func hasKind(docs []*manifest.Doc, kind string) bool {
	return slices.ContainsFunc(docs, func(d *manifest.Doc) bool { return d.Kind == kind })
}

func dryWord(word string, dry bool) string {
	if dry {
		return "would be " + word
	}
	return word
}

// missing reports whether an error says that an object isn't there.
func missing(err error) bool {
	var f *failure
	return isCode(err, connect.CodeNotFound) || errors.As(err, &f) && f.code == exitNotFound
}

func (a *App) deleteCommand() *cobra.Command {
	var files []string
	var force bool
	var w waitFlags
	cmd := &cobra.Command{
		Use: "delete -f FILE", Short: "Delete the objects that files name", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Delete the objects that documents name, in the opposite order of apply. What isn't there is passed over.",
		Example: "  drover delete -f web.yaml\n  drover delete -f web.yaml --force",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			docs, err := a.documents(files)
			if err != nil {
				return err
			}
			slices.Reverse(docs)
			var failed []error
			for _, d := range docs {
				if err := a.deleteOne(ctx, c, d, force, w); err != nil {
					if ctx.Err() != nil {
						return err
					}
					failed = append(failed, fmt.Errorf("%s:%d: %w", d.File, d.Line, err))
				}
			}
			if len(failed) == 1 {
				return failed[0]
			}
			return errors.Join(failed...)
		}),
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVar(&force, "force", false, "also VMs that run")
	w.add(cmd)
	cmd.Flags().VarP(&choice{to: &a.output, of: []string{"table", "name"}}, "output", "o", "how to print: table, name")
	return cmd
}

func (a *App) deleteOne(ctx context.Context, c *client.Client, d *manifest.Doc, force bool, w waitFlags) error {
	k := kindOf(d.Kind)
	if k.delete == nil {
		return usage("%s: objects of this kind can't be deleted", d)
	}
	o, err := k.delete(ctx, c, &v1.DeleteRequest{Name: d.Name, Force: force && d.Kind == "vm"})
	if missing(err) {
		m, merr := d.Merge(nil)
		if merr != nil {
			return merr
		}
		return a.printDone(k, m.(object), "not found")
	}
	if err != nil {
		return err
	}
	if w.on() && k.watch != nil {
		if err := a.waitGone(ctx, c, k, d.Name, o.GetMeta().GetUid(), w.timeout); err != nil {
			return err
		}
	}
	return a.printDone(k, o, "deleted")
}

func (a *App) getCommand() *cobra.Command {
	var f listFlags
	var spec bool
	cmd := &cobra.Command{
		Use: "get KIND [NAME…]", Short: "Print objects of any kind; -o yaml is what apply reads", Args: want("KIND", "[NAME…]"), ValidArgsFunction: a.getArgs,
		Example: "  drover get vm\n  drover get vm web -o yaml --spec-only > web.yaml\n  drover get host -o json",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			k := kindOf(strings.ToLower(args[0]))
			if k == nil {
				return usage("there is no kind %q; there are %s", args[0], strings.Join(kindNames(), ", "))
			}
			if err := f.check(); err != nil {
				return err
			}
			if len(args) == 1 {
				items, _, err := k.all(ctx, c, &v1.ListRequest{Filter: f.filter, OrderBy: f.order}, f.limit)
				if err != nil {
					return err
				}
				return a.printList(k, specs(items, spec))
			}
			var items []object
			for _, name := range args[1:] {
				o, err := k.get(ctx, c, name)
				if err != nil {
					return err
				}
				items = append(items, o)
			}
			items = specs(items, spec)
			if len(items) == 1 && !a.people() {
				return a.printOne(k, items[0])
			}
			return a.printList(k, items)
		}),
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&spec, "spec-only", false, "leave out status and what only the manager sets")
	a.outputFlag(cmd)
	return cmd
}

func specs(items []object, on bool) []object {
	if on {
		for i, o := range items {
			o = manifest.SpecOnly(o).(object)
			if vm, ok := o.(*v1.VM); ok && vm.GetSpec() != nil {
				vm.Spec.StopGrace = nil // of one stop, not a wish
			}
			items[i] = o
		}
	}
	return items
}

func (a *App) getArgs(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return kindNames(), cobra.ShellCompDirectiveNoFileComp
	}
	if k := kindOf(args[0]); k != nil {
		return a.everyArg(k)(cmd, args[1:], typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
