package cli

import (
	"context"
	"fmt"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"github.com/spf13/cobra"
)

const restoreLong = `Restore a VM from a restore point: in place of the VM that it is of (which must be off), as a new VM with --as, or single disks with --disk. POINT is REPOSITORY/ID; REPOSITORY/VM or VM
is the newest of that VM.

With --instant the VM runs at once out of the repository while its disks fill behind it. What the guest writes lies on the datastore from the start and is kept, whatever
happens to the repository; when all blocks have come the VM is as if restored.

In place, the old disks go only when the new ones are whole.`

func (a *App) restoreCommand() *cobra.Command {
	var w waitFlags
	var limit bytesFlag
	var host, site string
	req := &v1.RestoreRequest{}
	cmd := &cobra.Command{
		Use: "restore POINT", Short: "Make a VM, or disks of it, what they were at a restore point", Long: restoreLong, Args: want("POINT"), ValidArgsFunction: a.firstArg(pointKind()),
		Example: `  drover restore web
  drover restore main/0123456789abcdef0123456789abcdef --as web-copy --start
  drover restore web --instant
  drover restore web --disk data
  drover restore web --disk data --into rescue`,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req.Point, req.BandwidthLimit = args[0], int64(limit)
			if host != "" || site != "" {
				req.Placement = &v1.PlacementSpec{Host: host, Site: site}
			}
			t, err := c.Backup.Restore(ctx, req)
			if err != nil {
				return err
			}
			if !w.on() {
				return a.printDone(taskKind(), t, "begun")
			}
			if req.Instant {
				return a.instant(ctx, c, t, w)
			}
			return a.taskDone(ctx, c, t, w, "restored")
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&req.Name, "as", "", "make a new VM of this name")
	fs.BoolVar(&req.Force, "force", false, "in place: cut the power of the VM if it runs")
	fs.StringSliceVar(&req.Disks, "disk", nil, "only this disk (repeatable)")
	fs.StringVar(&req.Vm, "into", "", "with --disk: add the disks to this VM")
	fs.BoolVar(&req.Instant, "instant", false, "run at once from the repository, fill the disks behind")
	fs.BoolVar(&req.Start, "start", false, "start it when it is restored")
	fs.BoolVar(&req.KeepMacs, "keep-macs", false, "a new VM: keep the MAC addresses")
	fs.BoolVar(&req.Memory, "memory", false, "go on from the memory in the point")
	fs.StringVar(&host, "host", "", "a new VM: host that it is placed on")
	fs.StringVar(&site, "site", "", "a new VM: site that it is placed in")
	fs.StringVar(&req.Datastore, "datastore", "", "a new VM: datastore of its disks")
	fs.StringToStringVar(&req.Networks, "nic", nil, "a new VM: network of a NIC, `NIC=NETWORK`; NIC= leaves it unconnected (repeatable)")
	fs.Var(&limit, "bandwidth", "most bytes a second (default: no limit)")
	register(cmd, "host", a.names(hostKind(), ""))
	register(cmd, "site", a.names(siteKind(), ""))
	register(cmd, "datastore", a.names(datastoreKind(), ""))
	register(cmd, "into", a.names(vmKind(), ""))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// instant waits until the VM of an instant restore runs; its disks go on filling.
func (a *App) instant(ctx context.Context, c *client.Client, t *v1.Task, w waitFlags) error {
	name := t.GetMeta().GetName()
	running := ""
	err := a.waitFor(ctx, c, taskKind(), name, w.timeout, func(o object) verdict {
		if o == nil {
			return verdict{err: errGone}
		}
		st := o.(*v1.Task).GetStatus()
		if vm := st.GetNotes()["running"]; vm != "" {
			running = vm
			return verdict{done: true}
		}
		switch st.GetState() {
		case v1.TaskState_TASK_STATE_SUCCEEDED:
			return verdict{done: true}
		case v1.TaskState_TASK_STATE_FAILED, v1.TaskState_TASK_STATE_CANCELLED:
			return verdict{err: fmt.Errorf("task %s: %s", name, st.GetMessage())}
		}
		return verdict{text: st.GetStep(), part: st.GetProgress()}
	})
	if err != nil {
		return err
	}
	if running == "" {
		return a.taskDone(ctx, c, t, w, "restored")
	}
	t, err = c.Task.Get(ctx, &v1.GetRequest{Name: name})
	if err != nil {
		return err
	}
	return a.printDone(taskKind(), t, fmt.Sprintf("runs VM %s; its disks fill behind it: drover task wait %s", strings.TrimSpace(running), name))
}
