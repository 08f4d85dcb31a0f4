package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
)

func (a *App) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Aliases: []string{"snap"}, Short: "Points that VMs can go back to", Example: "  drover snapshot create web before-upgrade --memory\n  drover snapshot list web"}
	cmd.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotShowCommand(), a.snapshotRevertCommand(), a.snapshotRmCommand())
	return cmd
}

func (a *App) snapshotCreateCommand() *cobra.Command {
	var w waitFlags
	var labels labelFlags
	spec := &v1.SnapshotSpec{}
	cmd := &cobra.Command{
		Use: "create VM NAME", Short: "Take a snapshot of a VM", Args: want("VM", "[NAME]"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Take a snapshot. With --memory the running guest's memory is kept, so that going back resumes it; without, going back is like after a power cut.",
		Example: "  drover snapshot create web before-upgrade\n  drover snapshot create web live --memory\n  drover snapshot create db clean --quiesce --description 'before the move'",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := partName("snapshot", args)
			if err != nil {
				return err
			}
			m, err := labels.labels(nil)
			if err != nil {
				return err
			}
			s, err := c.Snapshot.Create(ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: name, Labels: m}, Spec: spec}})
			if err != nil {
				return err
			}
			if !w.on() {
				return a.printDone(snapshotKind(), s, "being taken by task "+s.GetStatus().GetTask())
			}
			if err := a.finishTask(ctx, c, s.GetStatus().GetTask(), w); err != nil {
				return err
			}
			if s, err = c.Snapshot.Get(ctx, &v1.GetRequest{Name: name}); err != nil {
				return err
			}
			return a.printDone(snapshotKind(), s, "taken")
		}),
	}
	cmd.Flags().BoolVar(&spec.Memory, "memory", false, "keep the guest's memory")
	cmd.Flags().BoolVar(&spec.Quiesce, "quiesce", false, "freeze the guest's file systems for the moment, by its agent")
	cmd.Flags().StringVar(&spec.Description, "description", "", "a line for people")
	labels.add(cmd, false)
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// finishTask waits for a task and forgets it.
func (a *App) finishTask(ctx context.Context, c *client.Client, task string, w waitFlags) error {
	if task == "" {
		return nil
	}
	_, err := a.waitTask(ctx, c, task, w.timeout)
	return err
}

func (a *App) snapshotListCommand() *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list [VM]", Aliases: []string{"ls", "tree"}, Short: "Show the tree of snapshots of a VM, or of all VMs", Args: want("[VM]"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Show snapshots as trees: each below the one that it was made on top of. The star marks what the VM's present state descends from.",
		Example: "  drover snapshot list web\n  drover snapshot list web -o table",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			items, err := partsOf(ctx, c, snapshotKind(), args, f)
			if err != nil {
				return err
			}
			if a.output != "" || len(items) == 0 {
				return a.printList(snapshotKind(), items)
			}
			return a.printTree(a.Out, items)
		}),
	}
	f.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// printTree draws snapshots below their parents, by VM.
func (a *App) printTree(w io.Writer, items []object) error {
	children := map[string][]*v1.Snapshot{}
	known := map[string]bool{}
	var vms []string
	for _, o := range items {
		known[o.GetMeta().GetName()] = true
	}
	for _, o := range items {
		s := o.(*v1.Snapshot)
		vm, _, _ := strings.Cut(s.GetMeta().GetName(), "/")
		parent := s.GetStatus().GetParent()
		if !known[parent] {
			parent = vm // a root, or one whose parent is filtered out
		}
		children[parent] = append(children[parent], s)
		if !slices.Contains(vms, vm) {
			vms = append(vms, vm)
		}
	}
	slices.Sort(vms)
	for _, c := range children {
		slices.SortFunc(c, func(x, y *v1.Snapshot) int {
			return cmp.Or(x.GetMeta().GetCreateTime().AsTime().Compare(y.GetMeta().GetCreateTime().AsTime()), strings.Compare(x.GetMeta().GetName(), y.GetMeta().GetName()))
		})
	}
	t := &table.Table{Headers: []string{"SNAPSHOT", "STATE", "MEMORY", "AGE", "DESCRIPTION"}}
	drawn := map[string]bool{}
	var draw func(parent, indent string)
	draw = func(parent, indent string) {
		for i, s := range children[parent] {
			name := s.GetMeta().GetName()
			if drawn[name] {
				continue // a circle can't be, but must not hang the terminal either
			}
			drawn[name] = true
			branch, below := "├─ ", "│  "
			if i == len(children[parent])-1 {
				branch, below = "└─ ", "   "
			}
			_, short, _ := strings.Cut(name, "/")
			cell := table.Text(indent + branch + short)
			if s.GetStatus().GetCurrent() {
				cell = table.Cell{Text: cell.Text + " *", Colour: table.Bold}
			}
			memory := "no"
			if s.GetSpec().GetMemory() {
				memory = unit.Size(s.GetStatus().GetMemorySizeBytes())
			}
			t.Add(cell, snapshotState(s), table.Text(memory), table.Text(unit.Age(a.now(), s.GetMeta().GetCreateTime())), table.Text(s.GetSpec().GetDescription()))
			draw(name, indent+below)
		}
	}
	for _, vm := range vms {
		t.Add(table.Cell{Text: vm, Colour: table.Bold}, table.Text(" "), table.Text(" "), table.Text(" "), table.Text(" "))
		draw(vm, "")
	}
	return t.Write(w, a.coloured(w))
}

func (a *App) snapshotShowCommand() *cobra.Command {
	cmd := a.showCommand(snapshotKind())
	cmd.Use, cmd.Args, cmd.ValidArgsFunction = "show VM NAME", want("VM", "[NAME]"), a.partArg(snapshotKind())
	cmd.Example = "  drover snapshot show web before-upgrade\n  drover snapshot show web/before-upgrade -o yaml"
	show := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := partName("snapshot", args)
		if err != nil {
			return err
		}
		return show(cmd, []string{name})
	}
	return cmd
}

func (a *App) snapshotRevertCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "revert VM NAME", Short: "Take a VM back to a snapshot", Args: want("VM", "[NAME]"), ValidArgsFunction: a.partArg(snapshotKind()),
		Long:    "Take a VM back to a snapshot. What it wrote since its current snapshot is lost; take one first to keep it.",
		Example: "  drover snapshot revert web before-upgrade",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := partName("snapshot", args)
			if err != nil {
				return err
			}
			t, err := c.Snapshot.Revert(ctx, &v1.RevertRequest{Name: name})
			if err != nil {
				return err
			}
			if !w.on() {
				return a.printDone(taskKind(), t, "takes the VM back")
			}
			if err := a.finishTask(ctx, c, t.GetMeta().GetName(), w); err != nil {
				return err
			}
			s, err := c.Snapshot.Get(ctx, &v1.GetRequest{Name: name})
			if err != nil {
				return err
			}
			vm, _, _ := strings.Cut(name, "/")
			return a.printDone(snapshotKind(), s, fmt.Sprintf("is the state of %s again", vm))
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) snapshotRmCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "rm VM NAME", Aliases: []string{"delete"}, Short: "Delete a snapshot; the VM's state and other snapshots stay", Args: want("VM", "[NAME]"), ValidArgsFunction: a.partArg(snapshotKind()),
		Example: "  drover snapshot rm web before-upgrade",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := partName("snapshot", args)
			if err != nil {
				return err
			}
			s, err := c.Snapshot.Delete(ctx, &v1.DeleteRequest{Name: name})
			if err != nil {
				return err
			}
			if !w.on() {
				return a.printDone(snapshotKind(), s, "is being deleted")
			}
			if err := a.finishTask(ctx, c, s.GetStatus().GetTask(), w); err != nil {
				return err
			}
			if err := a.waitGone(ctx, c, snapshotKind(), name, s.GetMeta().GetUid(), w.timeout); err != nil {
				return err
			}
			return a.printDone(snapshotKind(), s, "deleted")
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}
