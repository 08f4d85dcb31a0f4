package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"github.com/spf13/cobra"
)

// listFlags are those of every list.
type listFlags struct {
	filter, order string
	limit         int
}

func (f *listFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.filter, "filter", "", `only what matches, such as 'status.phase = "RUNNING" AND meta.labels.env = "prod"'`)
	cmd.Flags().StringVar(&f.order, "order-by", "", `field paths, such as "meta.create_time desc" (default meta.name)`)
	cmd.Flags().IntVar(&f.limit, "limit", 0, "at most so many (0: all)")
}

func (f *listFlags) check() error {
	if f.limit < 0 {
		return usage("--limit %d: must not be negative", f.limit)
	}
	return nil
}

func (a *App) listCommand(k *kind, example string) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + k.plural, Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover " + example + " list\n  drover " + example + " list -o json --order-by 'meta.create_time desc' --limit 10",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			items, _, err := k.all(ctx, c, &v1.ListRequest{Filter: f.filter, OrderBy: f.order}, f.limit)
			if err != nil {
				return err
			}
			return a.printList(k, items)
		}),
	}
	f.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) showCommand(k *kind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show NAME…", Short: "Show all of a " + k.name, Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(k),
		Example: "  drover " + k.name + " show NAME\n  drover " + k.name + " show NAME -o yaml",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			for _, name := range args {
				o, err := k.get(ctx, c, name)
				if err != nil {
					return err
				}
				if err := a.printOne(k, o); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	a.outputFlag(cmd)
	return cmd
}

// rmCommand deletes objects of a kind, all that can be, and fails if one could not. forceHelp is empty if there is no --force.
func (a *App) rmCommand(k *kind, short, forceHelp string) *cobra.Command {
	var force bool
	var w waitFlags
	cmd := &cobra.Command{
		Use: "rm NAME…", Aliases: []string{"delete"}, Short: short, Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(k),
		Example: "  drover " + k.name + " rm NAME",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				o, err := k.delete(ctx, c, &v1.DeleteRequest{Name: name, Force: force})
				if err != nil {
					return err
				}
				if w.on() && k.watch != nil {
					if err := a.waitGone(ctx, c, k, name, o.GetMeta().GetUid(), w.timeout); err != nil {
						return err
					}
					return a.printDone(k, o, "deleted")
				}
				if o.GetMeta().GetDeleteTime() != nil {
					return a.printDone(k, o, "is being deleted")
				}
				return a.printDone(k, o, "deleted")
			})
		}),
	}
	if forceHelp != "" {
		cmd.Flags().BoolVar(&force, "force", false, forceHelp)
	}
	if k.watch != nil {
		w.add(cmd)
	}
	a.outputFlag(cmd)
	return cmd
}

// eachName does something for each name and goes on after a failure. Several failures are told as one.
func eachName(names []string, f func(string) error) error {
	if len(names) == 1 {
		return f(names[0])
	}
	var failed []error
	for _, n := range names {
		if err := f(n); err != nil {
			if errors.Is(err, context.Canceled) {
				return err
			}
			failed = append(failed, fmt.Errorf("%s: %w", n, err))
		}
	}
	if len(failed) == 1 {
		return failed[0]
	}
	return errors.Join(failed...)
}

// labelFlags add labels to what a command makes or changes.
type labelFlags struct{ set, unset []string }

func (f *labelFlags) add(cmd *cobra.Command, change bool) {
	cmd.Flags().StringArrayVar(&f.set, "label", nil, "label `KEY=VALUE` (repeatable)")
	if change {
		cmd.Flags().StringArrayVar(&f.unset, "unlabel", nil, "label `KEY` to remove (repeatable)")
	}
}

// labels are the given ones over old ones.
func (f *labelFlags) labels(old map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range old {
		out[k] = v
	}
	for _, s := range f.set {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usage("--label %q: give KEY=VALUE", s)
		}
		out[k] = v
	}
	for _, k := range f.unset {
		delete(out, k)
	}
	return out, nil
}

// updater collects the changes of a set command.
type updater struct {
	cmd   *cobra.Command
	paths []string
}

// given reports whether a flag was given, and notes its path.
func (u *updater) given(flag, path string) bool {
	if !u.cmd.Flags().Changed(flag) {
		return false
	}
	u.paths = append(u.paths, path)
	return true
}

// label notes changed labels and returns them.
func (u *updater) label(f *labelFlags, old map[string]string) (map[string]string, error) {
	if len(f.set)+len(f.unset) == 0 {
		return old, nil
	}
	u.paths = append(u.paths, "meta.labels")
	return f.labels(old)
}

// send updates an object by what was collected. o carries name and revision.
func (u *updater) send(ctx context.Context, a *App, c *client.Client, k *kind, o object) error {
	if len(u.paths) == 0 {
		return usageError{fmt.Errorf("%s: nothing to change; give at least one flag", shortPath(u.cmd)), u.cmd}
	}
	got, err := k.update(ctx, c, o, maskOf(u.paths...), false)
	if err != nil {
		return err
	}
	return a.printDone(k, got, "changed")
}
