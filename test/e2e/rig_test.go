package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"
	"drover/internal/osimage"

	"google.golang.org/protobuf/types/known/durationpb"
)

// patience bounds one wait for something that takes seconds: guests run without KVM on processors that others use, too.
const patience = 2 * time.Minute

// rig is a fleet with the calls that tests make.
type rig struct {
	*lab.Fleet
	t   *testing.T
	ctx context.Context
}

func newRig(t *testing.T, c lab.FleetConfig) *rig {
	t.Helper()
	c.Drover = drover
	began := time.Now()
	f := lab.NewFleet(t, c)
	t.Logf("lab %s with %d hosts is up after %v", f.Name(), len(f.Topology().Hosts("")), time.Since(began).Round(time.Millisecond))
	return &rig{Fleet: f, t: t, ctx: t.Context()}
}

// small is a lab with one site and its hosts.
func small(hosts ...string) lab.FleetConfig {
	s := lab.Site{Name: "east"}
	for _, h := range hosts {
		s.Hosts = append(s.Hosts, lab.Host{Name: h})
	}
	return lab.FleetConfig{Config: lab.Config{Sites: []lab.Site{s}}}
}

// wait is the context of one wait.
func (r *rig) wait() context.Context {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// tiny has the test guest's image; full is the one with drivers for every NIC.
func (r *rig) tiny(full bool) string {
	r.t.Helper()
	name, kernel := "tiny", "cloud"
	if full {
		name, kernel = "tiny-full", "full"
	}
	res, err := osimage.BuildTiny(r.ctx, osimage.Tiny{Kernel: kernel}, osimage.Options{})
	r.must(err)
	r.must(r.PutImage(r.wait(), name, res.Path))
	return name
}

// guest is the spec of a tiny guest with a NIC.
func guest(image string) *v1.VMSpec {
	return &v1.VMSpec{
		KernelImage: image, MemoryBytes: 128 << 20, Cpus: 1, Power: v1.Power_POWER_ON,
		Nics: []*v1.NICSpec{{Name: "eth0", Network: lab.NetworkName}},
	}
}

func (r *rig) create(name string, spec *v1.VMSpec) *v1.VM {
	r.t.Helper()
	vm, err := r.API.VM.Create(r.ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: spec}})
	r.must(err)
	return vm
}

func (r *rig) get(name string) *v1.VM {
	r.t.Helper()
	vm, err := r.API.VM.Get(r.ctx, &v1.GetRequest{Name: name})
	r.must(err)
	return vm
}

func (r *rig) await(name string, ok func(*v1.VM) bool) *v1.VM {
	r.t.Helper()
	vm, err := r.AwaitVM(r.wait(), name, ok)
	r.must(err)
	return vm
}

func (r *rig) running(name string) *v1.VM {
	r.t.Helper()
	return r.await(name, lab.Phase(v1.VMPhase_VM_PHASE_RUNNING))
}

// ready waits until the guest has an address and answers, and returns the URL of its server.
func (r *rig) ready(name string) string {
	r.t.Helper()
	vm := r.running(name)
	addr, err := r.Address(r.wait(), vm, "eth0")
	r.must(err)
	url := "http://" + addr
	r.ask(vm.GetStatus().GetSite(), url+"/")
	return url
}

// ask asks a guest from a site's router.
func (r *rig) ask(site, url string) string {
	r.t.Helper()
	body, err := r.Get(r.wait(), r.Router(site), url)
	r.must(err)
	return body
}

// about is what the tiny guest tells at /.
type about struct {
	Hostname  string
	Addresses []string
	NICs      map[string]struct{ MAC, Driver string }
	CPUs      int
	Memory    int64
	Counter   int
}

func (r *rig) about(site, url string) about {
	r.t.Helper()
	var a about
	body := r.ask(site, url+"/")
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		r.t.Fatalf("%s: %v: %s", url, err, body)
	}
	return a
}

// sees reads a VM's console until it says a text.
func (r *rig) sees(vm, text string) string {
	r.t.Helper()
	c, err := r.OpenConsole(r.wait(), vm)
	r.must(err)
	defer c.Close()
	said, err := c.Until(text)
	r.must(err)
	return said
}

func (r *rig) stop(name string, force bool) *v1.VM {
	r.t.Helper()
	req := &v1.StopVMRequest{Name: name, Force: force}
	if !force {
		req.Timeout = durationpb.New(patience)
	}
	_, err := r.API.VM.Stop(r.ctx, req)
	r.must(err)
	return r.await(name, lab.Phase(v1.VMPhase_VM_PHASE_OFF))
}

func (r *rig) start(name string) *v1.VM {
	r.t.Helper()
	_, err := r.API.VM.Start(r.ctx, &v1.StartVMRequest{Name: name})
	r.must(err)
	return r.running(name)
}

func (r *rig) delete(names ...string) {
	r.t.Helper()
	for _, n := range names {
		_, err := r.API.VM.Delete(r.ctx, &v1.DeleteRequest{Name: n, Force: true})
		r.must(err)
	}
	for _, n := range names {
		_, err := r.AwaitVM(r.wait(), n, lab.Gone)
		r.must(err)
	}
}

// nothing checks that no VM is left, and nothing of one.
func (r *rig) nothing() {
	r.t.Helper()
	r.NoVMs(r.wait(), r.t)
}

// exec runs a program in the guest.
func (r *rig) exec(vm, path string, args ...string) string {
	r.t.Helper()
	var out *v1.ExecResponse
	r.eventually(func() error {
		var err error
		out, err = r.API.VM.Exec(r.ctx, &v1.ExecRequest{Name: vm, Path: path, Args: args})
		return err
	})
	if out.GetExitCode() != 0 {
		r.t.Fatalf("%s %v in VM %s: exit %d: %s%s", path, args, vm, out.GetExitCode(), out.GetStdout(), out.GetStderr())
	}
	return string(out.GetStdout())
}

// eventually repeats what nobody tells the end of.
func (r *rig) eventually(try func() error) {
	r.t.Helper()
	ctx := r.wait()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			r.t.Fatal(err)
		case <-tick.C:
		}
	}
}

// events are the reasons of what happened to a VM, newest first.
func (r *rig) events(vm string) string {
	r.t.Helper()
	list, err := r.API.Event.List(r.ctx, &v1.ListEventsRequest{Kind: "vm", Name: vm})
	r.must(err)
	var out []string
	for _, e := range list.GetEvents() {
		out = append(out, e.GetReason())
	}
	return strings.Join(out, " ")
}

// pid is the process that runs a VM; it fails unless there is exactly one, on the VM's owner.
func (r *rig) pid(vm *v1.VM) int {
	r.t.Helper()
	all, err := r.QEMUs()
	r.must(err)
	pid := 0
	for _, q := range all {
		if q.UID != vm.GetMeta().GetUid() {
			continue
		}
		if pid != 0 || q.Host != vm.GetStatus().GetOwner() {
			r.t.Fatalf("VM %s of host %s runs as %+v", vm.GetMeta().GetName(), vm.GetStatus().GetOwner(), all)
		}
		pid = q.PID
	}
	if pid == 0 {
		r.t.Fatalf("no QEMU runs VM %s", vm.GetMeta().GetName())
	}
	return pid
}
