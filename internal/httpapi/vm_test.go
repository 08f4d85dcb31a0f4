package httpapi

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func mask(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }

// refusal fails the test unless err has that reason.
func refusal(t *testing.T, what string, err error, reason string) {
	t.Helper()
	if reasonOf(err) != reason {
		t.Errorf("%s: %v (%s), want %s", what, err, reasonOf(err), reason)
	}
}

// A VM's life with its host: made, started, paused, resumed, stopped, crashed and started again, deleted.
func TestLifeOfAVM(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	vms := r.vms()
	r.vm(t, "a")
	vm := r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	if vm.Status.Owner != "h1" || vm.Status.Epoch != 1 || vm.Status.Site != testSite || vm.Spec.Disks[0].Datastore != "ds-h1" {
		t.Errorf("placed as %v", vm)
	}
	do := func(what string, call func() (*v1.VM, error), want v1.VMPhase) *v1.VM {
		t.Helper()
		if _, err := call(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return r.await(t, "a", want.String(), isPhase(want))
	}
	ctx := t.Context()
	_, err := vms.Pause(ctx, &v1.VMActionRequest{Name: "a"})
	refusal(t, "pause what is off", err, "VM_OFF")
	start := func() (*v1.VM, error) { return vms.Start(ctx, &v1.StartVMRequest{Name: "a"}) }
	do("start", start, v1.VMPhase_VM_PHASE_RUNNING)
	do("pause", func() (*v1.VM, error) { return vms.Pause(ctx, &v1.VMActionRequest{Name: "a"}) }, v1.VMPhase_VM_PHASE_PAUSED)
	do("resume", func() (*v1.VM, error) { return vms.Resume(ctx, &v1.VMActionRequest{Name: "a"}) }, v1.VMPhase_VM_PHASE_RUNNING)
	_, err = vms.Delete(ctx, &v1.DeleteRequest{Name: "a"})
	refusal(t, "delete what runs", err, "VM_NOT_OFF")

	// The guest switches itself off: the wish follows. A report of an older generation changes no wish.
	vm = r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	off := h.reportOf(vm)
	off.GuestOff, off.Status.Phase = true, v1.VMPhase_VM_PHASE_OFF
	old := proto.CloneOf(off)
	old.Status.ObservedGeneration--
	for _, rep := range []*v1.VMReport{old, off} {
		if _, err := h.api.Report(ctx, &v1.ReportRequest{Vms: []*v1.VMReport{rep}}); err != nil {
			t.Fatal(err)
		}
		got, _ := vms.Get(ctx, &v1.GetRequest{Name: "a"})
		if want := rep == off; (got.Spec.Power == v1.Power_POWER_OFF) != want {
			t.Errorf("after a guest's end seen at generation %d of %d power is %v", rep.Status.ObservedGeneration, vm.Meta.Generation, got.Spec.Power)
		}
	}
	do("start", start, v1.VMPhase_VM_PHASE_RUNNING)

	// A crash: starting it again is a new wish, once.
	h.set(func() { h.status = func(rep *v1.VMReport) { rep.Status.Phase = v1.VMPhase_VM_PHASE_CRASHED } })
	vm, _ = vms.Get(ctx, &v1.GetRequest{Name: "a"})
	if err := h.report(ctx, vm); err != nil {
		t.Fatal(err)
	}
	vm = r.await(t, "a", "crashed", isPhase(v1.VMPhase_VM_PHASE_CRASHED))
	h.set(func() { h.mute = true })
	again, err := start()
	if err != nil || again.Meta.Generation != vm.Meta.Generation+1 {
		t.Errorf("start of a crashed VM: %v, generation %d after %d", err, again.GetMeta().GetGeneration(), vm.Meta.Generation)
	}
	if twice, err := start(); err != nil || twice.Meta.Generation != again.Meta.Generation {
		t.Errorf("start while it is on its way: %v, generation %d after %d", err, twice.GetMeta().GetGeneration(), again.Meta.Generation)
	}
	h.set(func() { h.mute, h.status = false, nil })
	if err := h.report(ctx, again); err != nil {
		t.Fatal(err)
	}
	stop, err := vms.Stop(ctx, &v1.StopVMRequest{Name: "a", Timeout: durationpb.New(time.Minute)})
	if err != nil || stop.Spec.StopGrace.AsDuration() != time.Minute {
		t.Errorf("stop: %v, %v", stop, err)
	}
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	if _, err := vms.Delete(ctx, &v1.DeleteRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a", "gone", isGone)
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Nics[0].Mac = vm.Spec.Nics[0].Mac }) // the address is free again
}

// Reports of a VM that isn't the host's, or isn't any more, change nothing and are told as stale.
func TestStaleReports(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Placement = &v1.PlacementSpec{Host: "h1"} })
	vm := r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	reports := map[string]struct {
		h      *testHost
		change func(*v1.VMReport)
	}{
		"another host's":   {h2, func(*v1.VMReport) {}},
		"an older epoch":   {h1, func(x *v1.VMReport) { x.Epoch-- }},
		"a newer epoch":    {h1, func(x *v1.VMReport) { x.Epoch++ }},
		"another uid":      {h1, func(x *v1.VMReport) { x.Uid = resource.NewUID() }},
		"no such VM":       {h1, func(x *v1.VMReport) { x.Name = "b" }},
		"a bad name":       {h1, func(x *v1.VMReport) { x.Name = "../../x" }},
		"gone by another":  {h2, func(x *v1.VMReport) { x.Gone = true }},
		"gone, old epoch":  {h1, func(x *v1.VMReport) { x.Gone, x.Epoch = true, 0 }},
		"gone, other uid":  {h1, func(x *v1.VMReport) { x.Gone, x.Uid = true, "x" }},
		"gone, no such VM": {h1, func(x *v1.VMReport) { x.Gone, x.Name = true, "b" }},
	}
	for what, c := range reports {
		rep := h1.reportOf(vm)
		rep.Status.Phase = v1.VMPhase_VM_PHASE_RUNNING
		c.change(rep)
		res, err := c.h.api.Report(t.Context(), &v1.ReportRequest{Vms: []*v1.VMReport{rep}})
		if err != nil || len(res.Stale) != 1 || res.Stale[0] != rep.Name {
			t.Errorf("%s: %v, %v", what, res, err)
		}
		if got, err := r.vms().Get(t.Context(), &v1.GetRequest{Name: "a"}); err != nil || got.Meta.Revision != vm.Meta.Revision {
			t.Errorf("%s changed the VM: %v, %v", what, got, err)
		}
	}
	// What only the manager decides is not taken from the owner's report either.
	rep := h1.reportOf(vm)
	rep.Status.Owner, rep.Status.Epoch, rep.Status.Site, rep.Status.Busy, rep.Status.ObservedGeneration = "h2", 9, "elsewhere", "me", 1000
	if _, err := h1.api.Report(t.Context(), &v1.ReportRequest{Vms: []*v1.VMReport{rep}}); err != nil {
		t.Fatal(err)
	}
	got, _ := r.vms().Get(t.Context(), &v1.GetRequest{Name: "a"})
	if s := got.Status; s.Owner != "h1" || s.Epoch != 1 || s.Site != testSite || s.Busy != "" || s.ObservedGeneration > got.Meta.Generation {
		t.Errorf("a report made the status %v", s)
	}
	// A VM that its host has lost without being told is not forgotten.
	rep = h1.reportOf(vm)
	rep.Gone = true
	if _, err := h1.api.Report(t.Context(), &v1.ReportRequest{Vms: []*v1.VMReport{rep}}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "a", "failed", isPhase(v1.VMPhase_VM_PHASE_FAILED))
}

// A hundred at once ask for one name: one gets it, and the others are told that it is taken. Nothing of theirs stays.
func TestOneNameOnce(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vms := r.vms()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, macs := 0, map[string]bool{}
	for i := range 100 {
		mac := fmt.Sprintf("52:54:01:00:00:%02x", i)
		wg.Go(func() {
			vm, err := vms.Create(t.Context(), &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "one"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n", Network: testNetwork, Mac: mac}}}}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
				macs[vm.Spec.Nics[0].Mac] = true
			} else if reasonOf(err) != "NAME_TAKEN" {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Fatalf("%d won", won)
	}
	// The losers' addresses are free, the winner's is not.
	for i := range 100 {
		mac := fmt.Sprintf("52:54:01:00:00:%02x", i)
		_, err := vms.Create(t.Context(), &v1.CreateVMRequest{ValidateOnly: true, Vm: &v1.VM{Meta: &v1.Meta{Name: "two"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n", Network: testNetwork, Mac: mac}}}}})
		if taken := err != nil; taken != macs[mac] {
			t.Errorf("address %s: %v", mac, err)
		}
	}
}

// Memory is given away once, however many ask at the same time.
func TestAdmissionIsExact(t *testing.T) {
	r := start(t)
	r.join(t, "h1") // 64 GiB, of which 512 MiB stay its own
	vms := r.vms()
	for i := range 12 {
		r.vm(t, fmt.Sprintf("vm-%d", i), func(x *v1.VM) { x.Spec.MemoryBytes = 10 * gib })
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	on := 0
	for i := range 12 {
		wg.Go(func() {
			ctx, stop := context.WithTimeout(t.Context(), time.Duration(1+i%4)*20*time.Second)
			defer stop()
			_, err := vms.Start(ctx, &v1.StartVMRequest{Name: fmt.Sprintf("vm-%d", i)})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				on++
			} else if reasonOf(err) != "NO_ROOM" {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	if on != 6 {
		t.Errorf("%d VMs of 10 GiB were started in 63.5 GiB", on)
	}
	// One that is on already is not counted twice: not when it grows, not when it is started again after a crash.
	l, _ := vms.List(t.Context(), &v1.ListRequest{Filter: "spec.power = POWER_ON"})
	name := l.Vms[0].Meta.Name
	if _, err := vms.Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: &v1.VMSpec{MemoryBytes: 13 * gib}}, Mask: mask("spec.memory_bytes")}); err != nil {
		t.Errorf("grow by 3 GiB of 3.5: %v", err)
	}
	_, err := vms.Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: &v1.VMSpec{MemoryBytes: 14 * gib}}, Mask: mask("spec.memory_bytes")})
	refusal(t, "grow beyond the host", err, "NO_ROOM")
}

func TestMACs(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vms := r.vms()
	a, b := r.vm(t, "a"), r.vm(t, "b")
	mac := a.Spec.Nics[0].Mac
	create := func(mac string) error {
		_, err := vms.Create(t.Context(), &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "c"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n", Network: testNetwork, Mac: mac}}}}})
		return err
	}
	refusal(t, "a's address", create(mac), "MAC_TAKEN")
	refusal(t, "a's address in other letters", create(strings.ToUpper(strings.ReplaceAll(mac, ":", "-"))), "MAC_TAKEN")
	if err := create("02:00:00:00:00:01"); err != nil {
		t.Fatal(err)
	}
	set := func(name, mac string) error {
		_, err := vms.Update(t.Context(), &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n0", Network: testNetwork, Mac: mac}}}}, Mask: mask("spec.nics")})
		return err
	}
	r.await(t, "b", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	refusal(t, "take a's by an update", set("b", mac), "MAC_TAKEN")
	if got, _ := vms.Get(t.Context(), &v1.GetRequest{Name: "b"}); got.Spec.Nics[0].Mac != b.Spec.Nics[0].Mac {
		t.Errorf("a refused update changed the address to %s", got.Spec.Nics[0].Mac)
	}
	if err := set("a", "02:00:00:00:00:02"); err != nil {
		t.Fatal(err)
	}
	if err := set("b", mac); err != nil {
		t.Errorf("take what a has given back: %v", err)
	}
	if err := set("b", ""); err != nil {
		t.Fatal(err)
	}
	if got, _ := vms.Get(t.Context(), &v1.GetRequest{Name: "b"}); got.Spec.Nics[0].Mac != mac {
		t.Errorf("an update that says nothing of the address changed it to %s", got.Spec.Nics[0].Mac)
	}
	if _, err := vms.Delete(t.Context(), &v1.DeleteRequest{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "b", "gone", isGone)
	if err := set("a", mac); err != nil {
		t.Errorf("take what a deleted VM had: %v", err)
	}
}

func TestUpdates(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vms := r.vms()
	r.vm(t, "a", func(x *v1.VM) { x.Meta.Labels = map[string]string{"env": "prod", "tier": "1"} })
	vm := r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	ctx := t.Context()
	update := func(patch *v1.VM, paths ...string) (*v1.VM, error) {
		t.Helper()
		patch.Meta = proto.CloneOf(patch.Meta)
		if patch.Meta == nil {
			patch.Meta = &v1.Meta{}
		}
		patch.Meta.Name = "a"
		req := &v1.UpdateVMRequest{Vm: patch, Mask: mask(paths...)}
		before, _ := vms.Get(ctx, &v1.GetRequest{Name: "a"})
		trial := proto.CloneOf(req)
		trial.ValidateOnly = true
		_, terr := vms.Update(ctx, trial)
		if after, _ := vms.Get(ctx, &v1.GetRequest{Name: "a"}); after.Meta.Generation != before.Meta.Generation || !proto.Equal(before.Spec, after.Spec) || fmt.Sprint(before.Meta.Labels) != fmt.Sprint(after.Meta.Labels) {
			t.Errorf("validate_only changed %v to %v", before, after)
		}
		got, err := vms.Update(ctx, req)
		if reasonOf(terr) != reasonOf(err) {
			t.Errorf("validate_only said %v, and the update %v", terr, err)
		}
		return got, err
	}
	got, err := update(&v1.VM{Spec: &v1.VMSpec{Cpus: 4, MemoryBytes: 1 << 30, Description: "x"}}, "spec.cpus")
	if err != nil || got.Spec.Cpus != 4 || got.Spec.MemoryBytes != vm.Spec.MemoryBytes || got.Spec.Description != "" || got.Meta.Generation != vm.Meta.Generation+1 {
		t.Errorf("mask of one field: %v, %v", got, err)
	}
	if same, err := update(&v1.VM{Spec: &v1.VMSpec{Cpus: 4}}, "spec.cpus"); err != nil || same.Meta.Generation != got.Meta.Generation {
		t.Errorf("a change of nothing: %v, %v", same, err)
	}
	got, err = update(&v1.VM{Meta: &v1.Meta{Labels: map[string]string{"env": "test"}}}, "meta.labels.env")
	if err != nil || got.Meta.Labels["env"] != "test" || got.Meta.Labels["tier"] != "1" {
		t.Errorf("one label: %v, %v", got.GetMeta(), err)
	}
	_, err = update(&v1.VM{Meta: &v1.Meta{Labels: map[string]string{"env": "x"}}})
	refusal(t, "no mask and no spec", err, "SPEC_MISSING")
	_, err = update(&v1.VM{}, "spec")
	refusal(t, "a mask of the spec and no spec", err, "SPEC_MISSING")
	for _, p := range []string{"status.owner", "status", "meta.name", "meta.uid", "meta", "*", "", "spec.", "spec.nothing", "spec.disks.size_bytes", "meta.labelsx"} {
		if _, err := update(&v1.VM{Spec: &v1.VMSpec{}}, p); errorOf(err) != resource.Invalid {
			t.Errorf("mask %q: %v", p, err)
		}
	}
	_, err = update(&v1.VM{Meta: &v1.Meta{Revision: 1}, Spec: &v1.VMSpec{Cpus: 2}}, "spec.cpus")
	refusal(t, "an old revision", err, "REVISION_CONFLICT")
	for what, c := range map[string]struct {
		spec   *v1.VMSpec
		path   string
		reason string
	}{
		"unknown power":      {&v1.VMSpec{Power: 77}, "spec.power", "VALUE_UNKNOWN"},
		"unknown restart":    {&v1.VMSpec{RestartPolicy: -1}, "spec.restart_policy", "VALUE_UNKNOWN"},
		"unknown firmware":   {&v1.VMSpec{Hardware: &v1.Hardware{Firmware: 9}}, "spec.hardware.firmware", "VALUE_UNKNOWN"},
		"unknown machine":    {&v1.VMSpec{Hardware: &v1.Hardware{Machine: 9}}, "spec.hardware.machine", "VALUE_UNKNOWN"},
		"other hardware":     {&v1.VMSpec{Hardware: &v1.Hardware{Version: 99}}, "spec.hardware.version", "HARDWARE_UNKNOWN"},
		"smaller disk":       {&v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 512}}}, "spec.disks", "OUT_OF_RANGE"},
		"moved disk":         {&v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "root", Datastore: "other"}}}, "spec.disks", "FIELD_IMMUTABLE"},
		"another host":       {&v1.VMSpec{Placement: &v1.PlacementSpec{Host: "h9"}}, "spec.placement", "CANNOT_MOVE"},
		"a clone afterwards": {&v1.VMSpec{CloneFrom: &v1.CloneSource{Vm: "b"}}, "spec.clone_from", "FIELD_IMMUTABLE"},
		"a negative grace":   {&v1.VMSpec{StopGrace: durationpb.New(-1)}, "spec.stop_grace", "OUT_OF_RANGE"},
	} {
		_, err := update(&v1.VM{Spec: c.spec}, c.path)
		refusal(t, what, err, c.reason)
	}
	// A whole document that leaves out what the manager gave changes nothing, power included.
	if _, err := vms.Start(ctx, &v1.StartVMRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	vm = r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	whole := &v1.VM{Meta: &v1.Meta{Labels: vm.Meta.Labels}, Spec: &v1.VMSpec{Cpus: 4, MemoryBytes: 64 << 20, Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 1 << 20}}, Nics: []*v1.NICSpec{{Name: "n0", Network: testNetwork}}}}
	got, err = update(whole)
	if err != nil || !proto.Equal(got.Spec, vm.Spec) {
		t.Errorf("the same document again: %v\n%v\nwas\n%v", err, got.GetSpec(), vm.Spec)
	}
}

// Templates stay what linked clones stand on.
func TestTemplates(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vms := r.vms()
	ctx := t.Context()
	r.vm(t, "tpl", func(x *v1.VM) { x.Spec.Template = true })
	r.await(t, "tpl", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	_, err := vms.Start(ctx, &v1.StartVMRequest{Name: "tpl"})
	refusal(t, "start a template", err, "IS_TEMPLATE")
	src := &v1.CloneSource{Vm: "tpl", Linked: true}
	c, err := vms.Clone(ctx, &v1.CloneVMRequest{Source: src, Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	tpl, _ := vms.Get(ctx, &v1.GetRequest{Name: "tpl"})
	if c.Spec.Nics[0].Mac == tpl.Spec.Nics[0].Mac || c.Status.Owner != "h1" || c.Spec.Template {
		t.Errorf("clone: %v", c)
	}
	untemplate := func() error {
		_, err := vms.Update(ctx, &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "tpl"}, Spec: &v1.VMSpec{}}, Mask: mask("spec.template")})
		return err
	}
	refusal(t, "make it a VM with a clone on it", untemplate(), "HAS_CLONES")
	_, err = vms.Update(ctx, &v1.UpdateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "tpl"}, Spec: &v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 2 << 20}}}}, Mask: mask("spec.disks")})
	refusal(t, "grow its disk", err, "IS_TEMPLATE")
	_, err = vms.Delete(ctx, &v1.DeleteRequest{Name: "tpl", Force: true})
	refusal(t, "delete it", err, "HAS_CLONES")
	r.await(t, "c", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	_, err = vms.Clone(ctx, &v1.CloneVMRequest{Source: &v1.CloneSource{Vm: "c", Linked: true}, Name: "d"})
	refusal(t, "link to what changes", err, "NOT_A_TEMPLATE")
	if _, err := vms.Delete(ctx, &v1.DeleteRequest{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "c", "gone", isGone)
	if err := untemplate(); err != nil {
		t.Errorf("make it a VM: %v", err)
	}
}

// Clones are made and templates deleted at the same time: never is there a clone of what is gone.
func TestCloneOrDelete(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	vms := r.vms()
	for i := range 10 {
		name := fmt.Sprintf("t%d", i)
		r.vm(t, name, func(x *v1.VM) { x.Spec.Template = true })
		r.await(t, name, "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
		var wg sync.WaitGroup
		var cloned, deleted error
		wg.Go(func() {
			_, cloned = vms.Clone(t.Context(), &v1.CloneVMRequest{Source: &v1.CloneSource{Vm: name, Linked: true}, Name: name + "-c"})
		})
		wg.Go(func() { _, deleted = vms.Delete(t.Context(), &v1.DeleteRequest{Name: name}) })
		wg.Wait()
		if (cloned == nil) == (deleted == nil) {
			t.Errorf("clone: %v; delete: %v; want just one of them", cloned, deleted)
		}
	}
}
