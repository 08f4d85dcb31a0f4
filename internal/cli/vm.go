package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *App) vmCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "Virtual machines", Example: "  drover vm list\n  drover vm start web"}
	cmd.AddCommand(
		a.vmCreateCommand(), a.listCommand(vmKind(), "vm"), a.showCommand(vmKind()),
		a.vmStartCommand(), a.vmStopCommand(),
		a.vmActionCommand("reset", "Press the reset button; the guest isn't asked", "reset",
			func(ctx context.Context, c *client.Client, r *v1.VMActionRequest) (*v1.VM, error) {
				return c.VM.Reset(ctx, r)
			}),
		a.vmActionCommand("pause", "Stop a VM's processors, its memory stays", "paused",
			func(ctx context.Context, c *client.Client, r *v1.VMActionRequest) (*v1.VM, error) {
				return c.VM.Pause(ctx, r)
			}, v1.VMPhase_VM_PHASE_PAUSED),
		a.vmActionCommand("resume", "Let a paused VM go on", "resumed",
			func(ctx context.Context, c *client.Client, r *v1.VMActionRequest) (*v1.VM, error) {
				return c.VM.Resume(ctx, r)
			}, v1.VMPhase_VM_PHASE_RUNNING),
		a.vmConsoleCommand(), a.vmLogCommand(), a.vmVNCCommand(), a.vmExecCommand(), a.vmScreenshotCommand(),
		a.vmCloneCommand(), a.vmTemplateCommand(), a.vmSetCommand(), a.vmWaitCommand(),
		a.rmCommand(vmKind(), "Delete VMs and their disks", "also a VM that runs, or whose host is gone for good"),
		a.vmDiskCommand(), a.vmNICCommand(),
	)
	return cmd
}

func (a *App) vmStartCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "start NAME…", Short: "Start VMs", Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(vmKind()),
		Example: "  drover vm start web\n  drover vm start web db --no-wait",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				vm, err := c.VM.Start(ctx, &v1.StartVMRequest{Name: name})
				if err != nil {
					return err
				}
				if !w.on() {
					return a.printDone(vmKind(), vm, "starting")
				}
				if vm, err = a.waitVM(ctx, c, name, vm.GetMeta().GetGeneration(), w.timeout, v1.VMPhase_VM_PHASE_RUNNING); err != nil {
					return err
				}
				return a.printDone(vmKind(), vm, "running on host "+vm.GetStatus().GetOwner())
			})
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) vmStopCommand() *cobra.Command {
	var w waitFlags
	var force bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "stop NAME…", Short: "Stop VMs: ask the guest, then cut the power", Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(vmKind()),
		Long:    "Stop VMs. The guest is asked by ACPI and by its agent; when it has not shut down in time, its power is cut.",
		Example: "  drover vm stop web\n  drover vm stop web --grace 5m\n  drover vm stop web --force",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if force && grace != 0 {
				return usage("--force cuts the power at once, so --grace says nothing")
			}
			return eachName(args, func(name string) error {
				req := &v1.StopVMRequest{Name: name, Force: force}
				if grace != 0 {
					req.Timeout = durationpb.New(grace)
				}
				vm, err := c.VM.Stop(ctx, req)
				if err != nil {
					return err
				}
				if !w.on() {
					return a.printDone(vmKind(), vm, "stopping")
				}
				if vm, err = a.waitVM(ctx, c, name, vm.GetMeta().GetGeneration(), w.timeout, v1.VMPhase_VM_PHASE_OFF); err != nil {
					return err
				}
				return a.printDone(vmKind(), vm, "off")
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "cut the power at once")
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long the guest may take (default: the VM's stop timeout)")
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// vmActionCommand is a command of one call for each VM. Without phases there is nothing to wait for.
func (a *App) vmActionCommand(name, short, done string, do func(context.Context, *client.Client, *v1.VMActionRequest) (*v1.VM, error), phases ...v1.VMPhase) *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: name + " NAME…", Short: short, Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(vmKind()),
		Example: "  drover vm " + name + " web",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				vm, err := do(ctx, c, &v1.VMActionRequest{Name: name})
				if err == nil && w.on() && len(phases) > 0 {
					vm, err = a.waitVM(ctx, c, name, vm.GetMeta().GetGeneration(), w.timeout, phases...)
				}
				if err != nil {
					return err
				}
				return a.printDone(vmKind(), vm, done)
			})
		}),
	}
	if len(phases) > 0 {
		w.add(cmd)
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *App) vmCloneCommand() *cobra.Command {
	var w waitFlags
	var linked, template, start bool
	var labels labelFlags
	cmd := &cobra.Command{
		Use: "clone VM[/SNAPSHOT] NAME", Short: "Make a VM from another one", Args: want("VM[/SNAPSHOT]", "NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long: `Make a VM from another one as it is, which must be off or a template, or as it was at a snapshot.
A linked clone shares the frozen layers of a template or a snapshot instead of copying them: it is made in no time.`,
		Example: "  drover vm clone web web-copy\n  drover vm clone golden worker1 --linked --start\n  drover vm clone web/before-upgrade web-test --linked",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			src := &v1.CloneSource{Vm: args[0], Linked: linked}
			if vm, _, ok := strings.Cut(args[0], "/"); ok {
				src.Vm, src.Snapshot = vm, args[0]
			}
			m, err := labels.labels(nil)
			if err != nil {
				return err
			}
			vm, err := c.VM.Clone(ctx, &v1.CloneVMRequest{Source: src, Name: args[1], Labels: m, Template: template, Start: start})
			if err != nil {
				return err
			}
			return a.settle(ctx, c, vm, w, start, "cloned from "+args[0])
		}),
	}
	cmd.Flags().BoolVar(&linked, "linked", false, "share the source's layers")
	cmd.Flags().BoolVar(&template, "template", false, "make the clone a template")
	cmd.Flags().BoolVar(&start, "start", false, "start the clone")
	labels.add(cmd, false)
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) vmTemplateCommand() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use: "template NAME", Short: "Make a VM a template, or a template a VM again", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "A template never runs; linked clones start from it. The VM must be off.",
		Example: "  drover vm template golden\n  drover vm template golden --undo",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			vm := &v1.VM{Meta: &v1.Meta{Name: args[0]}, Spec: &v1.VMSpec{Template: !undo}}
			got, err := c.VM.Update(ctx, &v1.UpdateVMRequest{Vm: vm, Mask: maskOf("spec.template")})
			if err != nil {
				return err
			}
			if undo {
				return a.printDone(vmKind(), got, "is no template any more")
			}
			return a.printDone(vmKind(), got, "is a template")
		}),
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "make it an ordinary VM again")
	a.outputFlag(cmd)
	return cmd
}

// What "vm wait" can wait for.
const (
	forRunning = "running"
	forOff     = "off"
	forPaused  = "paused"
	forAgent   = "agent"
	forAddress = "address"
	forGone    = "gone"
)

func (a *App) vmWaitCommand() *cobra.Command {
	var what string
	var timeout time.Duration
	all := []string{forRunning, forOff, forPaused, forAgent, forAddress, forGone}
	cmd := &cobra.Command{
		Use: "wait NAME…", Short: "Wait until VMs run, are off, have an address, …", Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(vmKind()),
		Long:    "Wait for something to be true of VMs. With --for address the address is printed.",
		Example: "  drover vm wait web --for address\n  drover vm wait web db --for off --timeout 2m",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error { return a.vmWait(ctx, c, name, what, timeout) })
		}),
	}
	cmd.Flags().Var(&choice{to: &what, of: all}, "for", "what to wait for: "+strings.Join(all, ", "))
	what = forRunning
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait (0: for ever)")
	register(cmd, "for", words(all...))
	return cmd
}

func (a *App) vmWait(ctx context.Context, c *client.Client, name, what string, timeout time.Duration) error {
	phase := map[string]v1.VMPhase{forRunning: v1.VMPhase_VM_PHASE_RUNNING, forOff: v1.VMPhase_VM_PHASE_OFF, forPaused: v1.VMPhase_VM_PHASE_PAUSED}[what]
	var address string
	err := a.waitFor(ctx, c, vmKind(), name, timeout, func(o object) verdict {
		if o == nil {
			if what == forGone {
				return verdict{done: true}
			}
			return verdict{err: &failure{code: exitNotFound, err: fmt.Errorf("vm %q: not found", name)}}
		}
		vm := o.(*v1.VM)
		st := vm.GetStatus()
		done := phase != 0 && st.GetPhase() == phase && st.GetObservedGeneration() >= vm.GetMeta().GetGeneration() ||
			what == forAgent && st.GetGuest().GetAgent()
		if what == forAddress {
			address = firstAddress(vm)
			done = address != ""
		}
		return verdict{done: done, text: unit.Word(st.GetPhase()) + ", waiting for " + what, part: -1}
	})
	if err == nil && what == forAddress {
		_, err = fmt.Fprintln(a.Out, address)
	}
	return err
}

var errNoReply = errors.New("the manager's answer is empty")
