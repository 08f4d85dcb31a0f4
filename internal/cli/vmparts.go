package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
)

// partName is "VM/PART" from one or two arguments.
func partName(what string, args []string) (string, error) {
	name := strings.Join(args, "/")
	if vm, part, ok := strings.Cut(name, "/"); !ok || vm == "" || part == "" || strings.Contains(part, "/") {
		return "", usage("%s %q: give VM and %s, or VM/%s", what, name, strings.ToUpper(what), strings.ToUpper(what))
	}
	return name, nil
}

// partList lists the parts of one VM, or of all.
func (a *App) partList(k *kind) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list [VM]", Aliases: []string{"ls"}, Short: "List " + k.plural + " of a VM, or of all VMs", Args: want("[VM]"), ValidArgsFunction: a.firstArg(vmKind()),
		Example: "  drover vm " + k.name + " list web",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			items, err := partsOf(ctx, c, k, args, f)
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

// partsOf lists parts, those of one VM if args names it. That there is no such VM is an error.
func partsOf(ctx context.Context, c *client.Client, k *kind, args []string, f listFlags) ([]object, error) {
	filter := f.filter
	if len(args) > 0 {
		if _, err := c.VM.Get(ctx, &v1.GetRequest{Name: args[0]}); err != nil {
			return nil, err
		}
		// ":" is "contains"; what only contains it elsewhere is left out below.
		own := "meta.name : " + quote(args[0]+"/")
		if filter != "" {
			own += " AND (" + filter + ")"
		}
		filter = own
	}
	items, _, err := k.all(ctx, c, &v1.ListRequest{Filter: filter, OrderBy: f.order}, 0)
	if err != nil {
		return nil, err
	}
	if len(args) > 0 {
		items = slices.DeleteFunc(items, func(o object) bool { return !strings.HasPrefix(o.GetMeta().GetName(), args[0]+"/") })
	}
	if f.limit > 0 && len(items) > f.limit {
		items = items[:f.limit]
	}
	return items, nil
}

func (a *App) partRm(k *kind, short string) *cobra.Command {
	var w waitFlags
	upper := strings.ToUpper(k.name)
	cmd := &cobra.Command{
		Use: "rm VM " + upper, Aliases: []string{"delete", "remove"}, Short: short, Args: want("VM", "["+upper+"]"), ValidArgsFunction: a.partArg(k),
		Example: "  drover vm " + k.name + " rm web " + k.name + "1",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := partName(k.name, args)
			if err != nil {
				return err
			}
			o, err := k.delete(ctx, c, &v1.DeleteRequest{Name: name})
			if err != nil {
				return err
			}
			if w.on() {
				if err := a.waitVMSettled(ctx, c, name, w); err != nil {
					return err
				}
			}
			return a.printDone(k, o, "removed")
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// waitVMSettled waits until the host of a part's VM has done what the VM's spec says now.
func (a *App) waitVMSettled(ctx context.Context, c *client.Client, part string, w waitFlags) error {
	name, _, _ := strings.Cut(part, "/")
	vm, err := c.VM.Get(ctx, &v1.GetRequest{Name: name})
	if err != nil {
		return err
	}
	generation := vm.GetMeta().GetGeneration()
	return a.waitFor(ctx, c, vmKind(), name, w.timeout, func(o object) verdict {
		if o == nil {
			return verdict{err: &failure{code: exitNotFound, err: fmt.Errorf("vm %q: %w", name, errGone)}}
		}
		st := o.(*v1.VM).GetStatus()
		switch {
		case st.GetObservedGeneration() >= generation:
			return verdict{done: true}
		case st.GetMessage() != "":
			return doing(st.GetMessage())
		}
		return doing("waiting for host " + st.GetOwner())
	})
}

func (a *App) vmDiskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "Disks of VMs, also while they run", Example: "  drover vm disk list web\n  drover vm disk add web data 20G"}
	cmd.AddCommand(a.diskAddCommand(), a.diskGrowCommand(), a.partRm(diskKind(), "Remove a disk and what is on it"), a.partList(diskKind()))
	return cmd
}

func (a *App) diskAddCommand() *cobra.Command {
	var w waitFlags
	var spec string
	cmd := &cobra.Command{
		Use: "add VM NAME [SIZE]", Short: "Add a disk to a VM", Args: want("VM", "NAME", "[SIZE]"), ValidArgsFunction: a.firstArg(vmKind()),
		Example: "  drover vm disk add web data 20G\n  drover vm disk add web data --spec size=20G,bus=virtio-scsi,datastore=fast\n  drover vm disk add web seed --spec image=debian",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			d := &v1.DiskSpec{}
			var err error
			if spec != "" {
				if d, err = parseDisk("spec", spec); err != nil {
					return err
				}
			}
			if d.Name != "" && d.Name != args[1] {
				return usage("--spec names the disk %q, the argument %q", d.Name, args[1])
			}
			d.Name = args[1]
			if len(args) == 3 {
				if d.SizeBytes != 0 {
					return usage("the size is given twice")
				}
				if d.SizeBytes, err = unit.ParseSize(args[2]); err != nil {
					return usageError{err: err}
				}
			}
			if d.SizeBytes == 0 && d.Image == "" {
				return usage("disk %s: give a size, or --spec image=NAME", d.Name)
			}
			name, err := partName("disk", args[:2])
			if err != nil {
				return err
			}
			made, err := c.Disk.Create(ctx, &v1.CreateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: name}, Spec: d}})
			if err != nil {
				return err
			}
			if w.on() {
				if err := a.waitVMSettled(ctx, c, name, w); err != nil {
					return err
				}
			}
			return a.printDone(diskKind(), made, "added")
		}),
	}
	cmd.Flags().StringVar(&spec, "spec", "", "KEY=VALUE,… of "+diskKeys)
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) diskGrowCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "grow VM DISK SIZE", Short: "Make a disk larger; +SIZE adds to what it has", Args: want("VM", "DISK", "SIZE"), ValidArgsFunction: a.partArg(diskKind()),
		Long:    "Make a disk larger. The guest sees it at once; its file systems grow when it does that itself.",
		Example: "  drover vm disk grow web root 20G\n  drover vm disk grow web root +5G",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := partName("disk", args[:2])
			if err != nil {
				return err
			}
			more, plus := strings.CutPrefix(args[2], "+")
			size, err := unit.ParseSize(more)
			if err != nil {
				return usageError{err: err}
			}
			d, err := c.Disk.Get(ctx, &v1.GetRequest{Name: name})
			if err != nil {
				return err
			}
			old := max(d.GetSpec().GetSizeBytes(), d.GetStatus().GetSizeBytes())
			if plus {
				if size > 1<<62-old {
					return usage("%s is too much", args[2])
				}
				size += old
			}
			if size < old {
				return &failure{code: exitUsage, err: fmt.Errorf("disk %q has %s already: disks grow and never shrink", name, unit.Size(old))}
			}
			got, err := c.Disk.Update(ctx, &v1.UpdateDiskRequest{Mask: maskOf("spec.size_bytes"),
				Disk: &v1.Disk{Meta: &v1.Meta{Name: name}, Spec: &v1.DiskSpec{SizeBytes: size}}})
			if err != nil {
				return err
			}
			if w.on() {
				if err := a.waitVMSettled(ctx, c, name, w); err != nil {
					return err
				}
			}
			return a.printDone(diskKind(), got, "has "+unit.Size(size)+" now")
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) vmNICCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "nic", Short: "Network adapters of VMs, also while they run", Example: "  drover vm nic list web\n  drover vm nic add web lan"}
	cmd.AddCommand(a.nicAddCommand(), a.nicSetCommand(), a.partRm(nicKind(), "Remove a NIC"), a.partList(nicKind()))
	return cmd
}

func (a *App) nicAddCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "add VM NETWORK|SPEC", Short: "Add a NIC to a VM", Args: want("VM", "NETWORK|SPEC"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Add a NIC. SPEC is KEY=VALUE,… of " + nicKeys + ".",
		Example: "  drover vm nic add web lan\n  drover vm nic add web network=lan,adapter=e1000,mac=52:54:00:12:34:56",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			n, err := parseNIC("nic", args[1])
			if err != nil {
				return usageError{err: errors.New(strings.TrimPrefix(err.Error(), "--nic "))}
			}
			if n.Name == "" {
				vm, err := c.VM.Get(ctx, &v1.GetRequest{Name: args[0]})
				if err != nil {
					return err
				}
				var taken []string
				for _, o := range vm.GetSpec().GetNics() {
					taken = append(taken, o.GetName())
				}
				n.Name = freeName(taken, "nic", "")
			}
			name := args[0] + "/" + n.Name
			made, err := c.NIC.Create(ctx, &v1.CreateNICRequest{Nic: &v1.NIC{Meta: &v1.Meta{Name: name}, Spec: n}})
			if err != nil {
				return err
			}
			if w.on() {
				if err := a.waitVMSettled(ctx, c, name, w); err != nil {
					return err
				}
			}
			return a.printDone(nicKind(), made, "added, "+made.GetSpec().GetMac())
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) nicSetCommand() *cobra.Command {
	var w waitFlags
	var network, profile, link string
	cmd := &cobra.Command{
		Use: "set VM NIC", Short: "Put a NIC on another network, or pull its cable", Args: want("VM", "[NIC]"), ValidArgsFunction: a.partArg(nicKind()),
		Example: "  drover vm nic set web nic0 --network dmz --profile secure\n  drover vm nic set web nic0 --link down",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			name, err := partName("nic", args)
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			n := &v1.NICSpec{Network: network, Profile: profile}
			u.given("network", "spec.network")
			u.given("profile", "spec.profile")
			if u.given("link", "spec.link_down") {
				if n.LinkDown, err = parseLink(link); err != nil {
					return usage("--link: %v", err)
				}
			}
			if err := u.send(ctx, a, c, nicKind(), &v1.NIC{Meta: &v1.Meta{Name: name}, Spec: n}); err != nil || !w.on() {
				return err
			}
			return a.waitVMSettled(ctx, c, name, w)
		}),
	}
	cmd.Flags().StringVar(&network, "network", "", "network to be on")
	cmd.Flags().StringVar(&profile, "profile", "", "port profile to follow (\"\": the network's)")
	cmd.Flags().StringVar(&link, "link", "", "cable: up or down")
	register(cmd, "profile", a.names(profileKind(), ""))
	register(cmd, "network", a.names(networkKind(), ""))
	register(cmd, "link", words("up", "down"))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}
