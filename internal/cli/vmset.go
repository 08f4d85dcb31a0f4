package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// vmSetFlags are the flags of "vm set", apart from what is set at creation only.
type vmSetFlags struct {
	description, cmdline, os, restart, affinity, antiAffinity, userData string
	cpus, maxCPUs, startOrder                                           int32
	memory, maxMemory                                                   bytesFlag
	stopTimeout                                                         time.Duration
	cdroms, keys                                                        []string
	labels                                                              labelFlags
}

func (a *App) vmSetCommand() *cobra.Command {
	var f vmSetFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a VM", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long: `Change a VM. What can't change while it runs takes effect at its next start; "drover vm list" then says so.
Disks and NICs have commands of their own; everything else is in "drover apply".`,
		Example: "  drover vm set web --cpus 4 --memory 4G\n  drover vm set web --label env=prod --unlabel old\n  drover vm set old --cdrom cdrom0=drivers",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.VM.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.vmSet(ctx, c, cmd, &f, old)
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&f.description, "description", "", "a line for people")
	fs.Int32Var(&f.cpus, "cpus", 0, "virtual CPUs")
	fs.Int32Var(&f.maxCPUs, "max-cpus", 0, "CPUs that it can grow to while it runs")
	fs.Var(&f.memory, "memory", "memory, such as 1G")
	fs.Var(&f.maxMemory, "max-memory", "memory that it can grow to while it runs")
	fs.StringVar(&f.cmdline, "cmdline", "", "added to the kernel image's command line")
	fs.StringVar(&f.os, "os", "", "guest operating system")
	fs.StringVar(&f.restart, "restart", "", "when to start again by itself: on-crash, always or never")
	fs.Int32Var(&f.startOrder, "start-order", 0, "after a host's reboot: lowest first")
	fs.DurationVar(&f.stopTimeout, "stop-timeout", 0, "how long a stop may take before power is cut")
	fs.StringVar(&f.affinity, "affinity", "", "group of VMs that share a host")
	fs.StringVar(&f.antiAffinity, "anti-affinity", "", "group of VMs that never share a host")
	fs.StringVar(&f.userData, "user-data", "", "cloud-init user data, a `FILE`")
	fs.StringArrayVar(&f.keys, "ssh-key", nil, "SSH public keys instead of those that it has: a `FILE`, or a key itself (repeatable)")
	fs.StringArrayVar(&f.cdroms, "cdrom", nil, "put an image in a drive: `DRIVE=IMAGE`, or DRIVE= to take it out (repeatable)")
	f.labels.add(cmd, true)
	register(cmd, "restart", words(unit.Words(v1.RestartPolicy(0).Descriptor())...))
	a.outputFlag(cmd)
	return cmd
}

func (a *App) vmSet(ctx context.Context, c *client.Client, cmd *cobra.Command, f *vmSetFlags, old *v1.VM) (err error) {
	u := &updater{cmd: cmd}
	s := &v1.VMSpec{Placement: &v1.PlacementSpec{}, CloudInit: &v1.CloudInit{Enabled: true}}
	vm := &v1.VM{Meta: &v1.Meta{Name: old.GetMeta().GetName(), Revision: old.GetMeta().GetRevision()}, Spec: s}
	u.given("description", "spec.description")
	s.Description = f.description
	u.given("cpus", "spec.cpus")
	s.Cpus = f.cpus
	u.given("max-cpus", "spec.max_cpus")
	s.MaxCpus = f.maxCPUs
	u.given("memory", "spec.memory_bytes")
	s.MemoryBytes = int64(f.memory)
	u.given("max-memory", "spec.max_memory_bytes")
	s.MaxMemoryBytes = int64(f.maxMemory)
	u.given("cmdline", "spec.kernel_cmdline")
	s.KernelCmdline = f.cmdline
	u.given("os", "spec.os")
	s.Os = f.os
	u.given("start-order", "spec.start_order")
	s.StartOrder = f.startOrder
	u.given("affinity", "spec.placement.affinity_group")
	s.Placement.AffinityGroup = f.affinity
	u.given("anti-affinity", "spec.placement.anti_affinity_group")
	s.Placement.AntiAffinityGroup = f.antiAffinity
	if u.given("restart", "spec.restart_policy") {
		if s.RestartPolicy, err = flagEnum[v1.RestartPolicy]("restart", f.restart, s.RestartPolicy); err != nil {
			return err
		}
	}
	if u.given("stop-timeout", "spec.stop_timeout") {
		s.StopTimeout = durationpb.New(f.stopTimeout)
	}
	if u.given("user-data", "spec.cloud_init.user_data") {
		if s.CloudInit.UserData, err = a.readText("user-data", f.userData); err != nil {
			return err
		}
	}
	if u.given("ssh-key", "spec.cloud_init.ssh_authorized_keys") {
		for _, k := range f.keys {
			keys, err := readKeys(k)
			if err != nil {
				return err
			}
			s.CloudInit.SshAuthorizedKeys = append(s.CloudInit.SshAuthorizedKeys, keys...)
		}
	}
	if u.given("cdrom", "spec.cdroms") {
		if s.Cdroms, err = changeDrives(old.GetSpec().GetCdroms(), f.cdroms); err != nil {
			return err
		}
	}
	if vm.Meta.Labels, err = u.label(&f.labels, old.GetMeta().GetLabels()); err != nil {
		return err
	}
	return u.send(ctx, a, c, vmKind(), vm)
}

// changeDrives puts images into drives, DRIVE=IMAGE each.
func changeDrives(drives []*v1.CDROMSpec, changes []string) ([]*v1.CDROMSpec, error) {
	var out []*v1.CDROMSpec
	for _, d := range drives {
		out = append(out, &v1.CDROMSpec{Name: d.GetName(), Image: d.GetImage(), BootOrder: d.GetBootOrder()})
	}
	for _, ch := range changes {
		name, image, ok := strings.Cut(ch, "=")
		if !ok || name == "" {
			return nil, usage("--cdrom %q: give DRIVE=IMAGE", ch)
		}
		found := false
		for _, d := range out {
			if d.Name == name {
				d.Image, found = image, true
			}
		}
		if !found {
			return nil, usage("--cdrom %q: the VM has no drive %q; it has %s", ch, name, driveNames(out))
		}
	}
	return out, nil
}

func driveNames(ds []*v1.CDROMSpec) string {
	if len(ds) == 0 {
		return "none"
	}
	var names []string
	for _, d := range ds {
		names = append(names, fmt.Sprint(d.GetName()))
	}
	return strings.Join(names, ", ")
}
