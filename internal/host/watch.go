package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "drover/api/drover/v1"
)

// errResync ends a watch that should begin anew.
var errResync = errors.New("watch anew")

// watch keeps a stream of desired state open until ctx ends. Each stream begins with everything, so that a change that
// was missed is found at the next.
func (a *agent) watch(ctx context.Context) {
	wait := backoff{min: 200 * time.Millisecond, max: 10 * time.Second}
	for ctx.Err() == nil {
		synced, err := a.watchOnce(ctx)
		if synced {
			wait.reset()
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errResync) {
			a.log.Info("watching the manager anew")
		} else {
			a.log.Warn("watch of the manager ended; VMs run on as last told", "err", err)
		}
		a.reporter.needFull()
		select {
		case <-ctx.Done():
		case <-a.clk.After(wait.next()):
		}
	}
}

// resync makes the present watch begin anew.
func (a *agent) resync() {
	select {
	case a.anew <- struct{}{}:
	default:
	}
}

func (a *agent) watchOnce(ctx context.Context) (synced bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer func() { <-ended }()
	defer cancel(nil)
	go func() {
		defer close(ended)
		select {
		case <-a.anew:
			cancel(errResync)
		case <-ctx.Done():
		}
	}()
	stream, err := a.manager.Watch(ctx, &v1.AgentWatchRequest{})
	if err != nil {
		return false, fmt.Errorf("watch manager %s: %w", a.cfg.Manager, err)
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	if err := a.fabric.do(ctx, func(context.Context) error { a.fabric.regs.begin(); return nil }); err != nil {
		return false, err
	}
	in := intake{agent: a, ctx: ctx, seen: map[string]bool{}}
	for stream.Receive() {
		if err := in.take(stream.Msg()); err != nil {
			return in.synced, err
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return in.synced, cause
	}
	return in.synced, fmt.Errorf("watch manager %s: %w", a.cfg.Manager, errors.Join(stream.Err(), errors.New("stream ended")))
}

// intake applies one stream's changes.
type intake struct {
	agent  *agent
	ctx    context.Context // the stream's
	seen   map[string]bool
	synced bool
	failed error // of one VM, which must not keep the others from being told
}

func (in *intake) take(c *v1.AgentChange) error {
	switch c.GetKind() {
	case v1.ChangeKind_CHANGE_KIND_RESET:
		in.seen, in.synced, in.failed = map[string]bool{}, false, nil
		return nil
	case v1.ChangeKind_CHANGE_KIND_SYNCED:
		in.synced = true
		in.agent.world.keep(in.seen)
		if err := in.agent.world.save(); err != nil {
			return fmt.Errorf("keep desired state: %w", err)
		}
		in.agent.fabric.changed()
		in.agent.keepMachines(in.seen)
		in.agent.reporter.needFull()
		in.agent.pruneSoon()
		in.seen = map[string]bool{}
		return in.failed
	}
	switch o := c.GetObject().(type) {
	case *v1.AgentChange_Vm:
		in.seen["vm/"+o.Vm.GetMeta().GetUid()] = true
		err := in.agent.takeVM(o.Vm, c.GetKind() == v1.ChangeKind_CHANGE_KIND_DELETED)
		if err != nil {
			in.agent.log.Error("a VM could not be taken on; it is tried again", "vm", o.Vm.GetMeta().GetName(), "err", err)
			in.failed = errors.Join(in.failed, err)
		}
		if in.synced {
			return err
		}
		return nil
	case *v1.AgentChange_Datastore:
		in.seen["datastore/"+o.Datastore.GetMeta().GetName()] = true
	case *v1.AgentChange_Network:
		in.seen["network/"+o.Network.GetMeta().GetName()] = true
	case *v1.AgentChange_Profile:
		in.seen["profile/"+o.Profile.GetMeta().GetName()] = true
	case *v1.AgentChange_Peer:
		in.seen["peer/"+o.Peer.GetHost()] = true
	case *v1.AgentChange_Registrations:
		return in.agent.fabric.register(in.ctx, o.Registrations)
	case *v1.AgentChange_Image:
		in.seen["image/"+o.Image.GetMeta().GetName()] = true
	}
	in.agent.world.put(c)
	switch c.GetObject().(type) {
	case *v1.AgentChange_Network, *v1.AgentChange_Profile, *v1.AgentChange_Peer, *v1.AgentChange_Host:
		in.agent.fabric.changed()
	}
	in.agent.wakeWaiting()
	if c.GetImage() != nil && c.GetKind() == v1.ChangeKind_CHANGE_KIND_DELETED && in.synced {
		in.agent.pruneSoon()
	}
	if in.synced {
		return in.agent.world.save()
	}
	return nil
}
