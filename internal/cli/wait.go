package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

// waitFlags say whether a command waits for what it began.
type waitFlags struct {
	wait, no bool
	timeout  time.Duration
}

func (f *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.wait, "wait", true, "wait until it is done")
	cmd.Flags().BoolVar(&f.no, "no-wait", false, "return as soon as the manager has accepted it")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait (0: for ever)")
}

func (f *waitFlags) on() bool { return f.wait && !f.no }

// verdict is what a look at an object says: done, failed, or what it is doing.
type verdict struct {
	done bool
	err  error
	text string
	// part is how far it is, 0 to 1; less than 0 is unknown.
	part float64
}

func doing(text string) verdict { return verdict{text: text, part: -1} }

var errGone = errors.New("it was deleted meanwhile")

// waitFor watches one object until look says that it is done. o is nil when the object is gone.
func (a *App) waitFor(ctx context.Context, c *client.Client, k *kind, name string, timeout time.Duration, look func(o object) verdict) error {
	p := a.progress(k.name + " " + name)
	defer p.end()
	parent := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var last string
	err := a.watchOne(ctx, c, k, name, p, look, &last)
	switch {
	case err == nil:
		return nil
	case parent.Err() != nil:
		return parent.Err()
	case ctx.Err() != nil:
		text := fmt.Sprintf("%s %q: not there after %v", k.name, name, timeout)
		if last != "" {
			text += ": " + last
		}
		return &failure{code: exitUnavailable, err: errors.New(text), hint: "it goes on; look at it by `drover " + k.name + " show " + name + "`, or wait longer by --timeout"}
	}
	return err
}

func (a *App) watchOne(ctx context.Context, c *client.Client, k *kind, name string, p *progress, look func(o object) verdict, last *string) error {
	seen, done := false, false
	err := k.watch(ctx, c, &v1.WatchRequest{Filter: "meta.name = " + quote(name)}, func(ch change) error {
		var v verdict
		switch ch.kind {
		case v1.ChangeKind_CHANGE_KIND_RESET:
			seen = false
			return nil
		case v1.ChangeKind_CHANGE_KIND_SYNCED:
			if seen {
				return nil
			}
			v = look(nil)
		case v1.ChangeKind_CHANGE_KIND_DELETED:
			v = look(nil)
		default:
			if ch.object.GetMeta().GetName() != name {
				return nil
			}
			seen = true
			v = look(ch.object)
		}
		if v.err != nil {
			return v.err
		}
		if v.done {
			done = true
			return errDone
		}
		*last = v.text
		p.set(v.text, v.part)
		return nil
	})
	if err == nil && !done {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the manager ended the watch of %s %q; is it stopping?", k.name, name))
	}
	return err
}

// waitGone waits until the object with a uid is no more.
func (a *App) waitGone(ctx context.Context, c *client.Client, k *kind, name, uid string, timeout time.Duration) error {
	return a.waitFor(ctx, c, k, name, timeout, func(o object) verdict {
		if o == nil || uid != "" && o.GetMeta().GetUid() != uid {
			return verdict{done: true}
		}
		return doing("deleting")
	})
}

// waitVM waits until a VM's host has brought about generation and one of the phases.
func (a *App) waitVM(ctx context.Context, c *client.Client, name string, generation int64, timeout time.Duration, phases ...v1.VMPhase) (*v1.VM, error) {
	var got *v1.VM
	err := a.waitFor(ctx, c, vmKind(), name, timeout, func(o object) verdict {
		if o == nil {
			return verdict{err: &failure{code: exitNotFound, err: fmt.Errorf("vm %q: %w", name, errGone)}}
		}
		vm := o.(*v1.VM)
		st := vm.GetStatus()
		if st.GetObservedGeneration() < generation {
			return doing("waiting for host " + st.GetOwner())
		}
		for _, p := range phases {
			if st.GetPhase() == p {
				got = vm
				return verdict{done: true}
			}
		}
		switch st.GetPhase() {
		case v1.VMPhase_VM_PHASE_FAILED, v1.VMPhase_VM_PHASE_CRASHED, v1.VMPhase_VM_PHASE_IO_ERROR:
			return verdict{err: &failure{code: exitFailed, err: fmt.Errorf("vm %q: %s: %s", name, unit.Word(st.GetPhase()), st.GetMessage()),
				hint: "`drover event list --kind vm --name " + name + "` and `drover vm log " + name + "` say more"}}
		}
		text := unit.Word(st.GetPhase())
		if st.GetMessage() != "" {
			text += ": " + st.GetMessage()
		}
		return doing(text)
	})
	return got, err
}

// waitTask waits until a task has ended well.
func (a *App) waitTask(ctx context.Context, c *client.Client, name string, timeout time.Duration) (*v1.Task, error) {
	var got *v1.Task
	err := a.waitFor(ctx, c, taskKind(), name, timeout, func(o object) verdict {
		if o == nil {
			return verdict{err: &failure{code: exitNotFound, err: fmt.Errorf("task %q: not found; old tasks are forgotten", name)}}
		}
		t := o.(*v1.Task)
		st := t.GetStatus()
		switch st.GetState() {
		case v1.TaskState_TASK_STATE_SUCCEEDED:
			got = t
			return verdict{done: true}
		case v1.TaskState_TASK_STATE_FAILED, v1.TaskState_TASK_STATE_CANCELLED:
			text := st.GetMessage()
			if text == "" {
				text = "no reason was given"
			}
			return verdict{err: &failure{code: exitFailed, err: fmt.Errorf("%s of %s %q: %s: %s", t.GetSpec().GetKind(), t.GetSpec().GetTargetKind(), t.GetSpec().GetTarget(), unit.Word(st.GetState()), text),
				hint: st.GetError().GetRemedy()}}
		}
		return verdict{text: t.GetSpec().GetKind() + " " + st.GetStep(), part: st.GetProgress()}
	})
	return got, err
}
