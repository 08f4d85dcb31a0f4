package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/rpc"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// rigNames are the directories of the rigs: one for real guests, one for the fake ones.
var rigNames = []string{"real", "fake"}

// rig is a manager and a host, each in a process of its own, and clients of the API.
type rig struct {
	dir           string
	manager, host *process
	vms           droverv1connect.VMServiceClient
	events        droverv1connect.EventServiceClient
}

const base = "http://drover"

// settle bounds everything that should take seconds.
const settle = 2 * time.Minute

// newRig starts both roles and fills in a site, a network and the test guest's image. env is for the host. The context
// that it gives ends when a role does.
func newRig(parent context.Context, o *options, top, name string, env ...string) (_ context.Context, _ *rig, err error) {
	ctx, stop := context.WithCancelCause(parent)
	r := &rig{dir: filepath.Join(top, name)}
	defer func() {
		if err != nil {
			r.close()
			stop(err)
		}
	}()
	if err := os.MkdirAll(r.dir, 0o711); err != nil {
		return nil, nil, err
	}
	if r.manager, err = o.start(parent, "manager", roleConfig{State: filepath.Join(r.dir, "m")}); err != nil {
		return nil, nil, err
	}
	go r.manager.watch(stop)
	c := rpc.UnixClient(filepath.Join(r.dir, "m", "manager.sock"))
	sites := droverv1connect.NewSiteServiceClient(c, base, rpc.ClientOptions()...)
	hosts := droverv1connect.NewHostServiceClient(c, base, rpc.ClientOptions()...)
	r.vms = droverv1connect.NewVMServiceClient(c, base, rpc.ClientOptions()...)
	r.events = droverv1connect.NewEventServiceClient(c, base, rpc.ClientOptions()...)
	err = poll(ctx, "the manager answers", func() (bool, error) {
		res, err := c.Get(base + "/healthz")
		if err != nil {
			return false, nil
		}
		return true, res.Body.Close()
	})
	if err != nil {
		return nil, nil, err
	}
	if _, err = sites.Create(ctx, &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: "here"}}}); err != nil {
		return nil, nil, err
	}
	nets := droverv1connect.NewNetworkServiceClient(c, base, rpc.ClientOptions()...)
	if _, err = nets.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: "lan"}}}); err != nil {
		return nil, nil, err
	}
	if err = r.image(ctx, c, filepath.Join(top, "tiny.tar")); err != nil {
		return nil, nil, fmt.Errorf("upload the test guest: %w", err)
	}
	token, err := hosts.CreateJoinToken(ctx, &v1.CreateJoinTokenRequest{Host: "h1", Site: "here"})
	if err != nil {
		return nil, nil, err
	}
	r.host, err = o.start(parent, "host", roleConfig{State: filepath.Join(r.dir, "h"), Run: filepath.Join(r.dir, "r"), Manager: managerAddress, Join: token.Token}, env...)
	if err != nil {
		return nil, nil, err
	}
	go r.host.watch(stop)
	err = poll(ctx, "the host is ready", func() (bool, error) {
		h, err := hosts.Get(ctx, &v1.GetRequest{Name: "h1"})
		return err == nil && h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY && h.Status.Cpus > 0 && len(h.Status.Networks) > 0, nil
	})
	if err != nil {
		return nil, nil, err
	}
	// More virtual CPUs than placement allows by default on a small machine.
	_, err = hosts.Update(ctx, &v1.UpdateHostRequest{
		Host: &v1.Host{Meta: &v1.Meta{Name: "h1"}, Spec: &v1.HostSpec{CpuOvercommit: 64}}, Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.cpu_overcommit"}},
	})
	return ctx, r, err
}

// image uploads the kernel image and waits until it is ready.
func (r *rig) image(ctx context.Context, c *http.Client, path string) error {
	images := droverv1connect.NewImageServiceClient(c, base, rpc.ClientOptions()...)
	if _, err := images.Create(ctx, &v1.CreateImageRequest{Image: &v1.Image{Meta: &v1.Meta{Name: "tiny"}, Spec: &v1.ImageSpec{Kind: v1.ImageKind_IMAGE_KIND_KERNEL}}}); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, base+"/upload/images/tiny?offset=0&last=1", f)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT: %s", res.Status)
	}
	return poll(ctx, "the image is ready", func() (bool, error) {
		i, err := images.Get(ctx, &v1.GetRequest{Name: "tiny"})
		if err == nil && i.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_FAILED {
			err = errors.New(i.Status.Message)
		}
		return i.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_READY, err
	})
}

// close ends both roles; the namespaces' end takes the guests.
func (r *rig) close() {
	for _, p := range []*process{r.host, r.manager} {
		if p != nil {
			p.stop()
		}
	}
}

// poll asks ten times a second, for things that are no part of what is measured.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	limit := time.After(settle)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-limit:
			return fmt.Errorf("waited %v and it is not so: %s", settle, what)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// create makes a VM that is off, with a NIC, for the test guest.
func (r *rig) create(ctx context.Context, name string, change func(*v1.VMSpec)) (*v1.VM, error) {
	s := &v1.VMSpec{
		Power: v1.Power_POWER_OFF, KernelImage: "tiny", Cpus: 1, MemoryBytes: 128 << 20, RestartPolicy: v1.RestartPolicy_RESTART_POLICY_NEVER,
		Nics: []*v1.NICSpec{{Name: "n0", Network: "lan"}},
	}
	if change != nil {
		change(s)
	}
	return r.vms.Create(ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: s}})
}

// await waits for a VM's phase.
func (r *rig) await(ctx context.Context, name string, phase v1.VMPhase) error {
	return poll(ctx, "VM "+name+" is "+strings.ToLower(phase.String()), func() (bool, error) {
		vm, err := r.vms.Get(ctx, &v1.GetRequest{Name: name})
		if err == nil && vm.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_FAILED {
			err = fmt.Errorf("VM %s: %s", name, vm.Status.Message)
		}
		return vm.GetStatus().GetPhase() == phase, err
	})
}

// stop cuts a VM's power and waits until it is off.
func (r *rig) stop(ctx context.Context, name string) error {
	if _, err := r.vms.Stop(ctx, &v1.StopVMRequest{Name: name, Force: true}); err != nil {
		return err
	}
	return r.await(ctx, name, v1.VMPhase_VM_PHASE_OFF)
}
