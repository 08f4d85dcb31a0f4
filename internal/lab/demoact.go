package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"

	"connectrpc.com/connect"
)

// tinies runs the test guest on both sites.
func (d *demo) tinies() error {
	d.act("Small guests, one in each site")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	for _, site := range []string{"east", "west"} {
		if err := d.tinyIn(ctx, site); err != nil {
			return err
		}
	}
	_, west, err := d.guest(ctx, "tiny-west")
	if err != nil {
		return err
	}
	var said string
	_, err = d.step("inside of tiny-east: wget http://"+west+"/", func(func(string)) (err error) {
		said, err = d.exec(ctx, "tiny-east", "/bin/busybox", "wget", "-q", "-O", "-", "http://"+west+"/")
		return err
	})
	if err != nil {
		return err
	}
	var about struct{ Hostname, Go string }
	if err := json.Unmarshal([]byte(said), &about); err != nil {
		return fmt.Errorf("tiny-west answered %q: %w", said, err)
	}
	d.quote(said)
	rtt, err := d.exec(ctx, "tiny-east", "/bin/busybox", "ping", "-c", "3", "-q", west)
	if err != nil {
		return err
	}
	if _, line, ok := strings.Cut(rtt, "round-trip "); ok {
		d.say("over the WAN of %s each way: round trip %s", demoWAN.Delay, strings.TrimSpace(line))
	}
	return nil
}

func (d *demo) tinyIn(ctx context.Context, site string) error {
	name := "tiny-" + site
	began := d.clk.Now()
	var fresh bool
	var vm *v1.VM
	var addr, console string
	var running, printed, ready time.Duration
	_, err := d.step("VM "+name+": create, boot, until it answers by HTTP", func(note func(string)) (err error) {
		spec := &v1.VMSpec{
			KernelImage: "tiny", Cpus: 1, MemoryBytes: 128 << 20, Description: "test guest of the demo",
			Disks:     []*v1.DiskSpec{{Name: "data", SizeBytes: 64 << 20}},
			CloudInit: &v1.CloudInit{Enabled: true, Hostname: name},
		}
		if fresh, err = d.ensureVM(ctx, name, site, spec); err != nil {
			return err
		}
		note("starting")
		if vm, err = d.f.AwaitVM(ctx, name, Phase(v1.VMPhase_VM_PHASE_RUNNING)); err != nil {
			return err
		}
		running = d.clk.Now().Sub(began)
		c, err := d.f.OpenConsole(ctx, name)
		if err != nil {
			return err
		}
		defer c.Close()
		note("waiting for its console")
		if _, err := c.Until("drover-tiny: init"); err != nil {
			return err
		}
		printed = d.clk.Now().Sub(began)
		if console, err = c.Until("drover-tiny: ready"); err != nil {
			return err
		}
		line, err := c.Until("\n")
		if err != nil {
			return err
		}
		console += line
		note("waiting for its address")
		if addr, err = d.f.Address(ctx, vm, "eth0"); err != nil {
			return err
		}
		if _, err = d.f.Get(ctx, d.f.Router(site), "http://"+addr+"/"); err != nil {
			return err
		}
		ready = d.clk.Now().Sub(began)
		return nil
	})
	if err != nil {
		return err
	}
	if !fresh {
		d.say("it was there already, on host %s, at %s", vm.GetStatus().GetOwner(), addr)
		return nil
	}
	d.say("on host %s, at %s. Its console:", vm.GetStatus().GetOwner(), addr)
	d.quote("drover-tiny: init" + console)
	d.measured("VM "+name+": create to QEMU runs", running, "image fetched to the host, checked, placed")
	d.measured("VM "+name+": create to first console line", printed, "")
	d.measured("VM "+name+": create to HTTP answer", ready, "DHCP from the site's router")
	return nil
}

// exec runs a program in a guest, when its agent listens.
func (d *demo) exec(ctx context.Context, vm, path string, args ...string) (string, error) {
	var out *v1.ExecResponse
	err := retry(ctx, func() (err error) {
		out, err = d.f.API.VM.Exec(ctx, &v1.ExecRequest{Name: vm, Path: path, Args: args})
		return err
	})
	if err == nil && out.GetExitCode() != 0 {
		err = fmt.Errorf("%s in VM %s: exit code %d: %s", path, vm, out.GetExitCode(), out.GetStderr())
	}
	return string(out.GetStdout()), err
}

// snapshot takes a running guest back in time.
func (d *demo) snapshot() error {
	d.act("Back in time")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	const name = "tiny-east/before"
	if err := d.dropSnapshot(ctx, name); err != nil { // of a run that was cut off
		return err
	}
	_, addr, err := d.guest(ctx, "tiny-east")
	if err != nil {
		return err
	}
	count := func() (string, error) {
		n, err := d.f.Get(ctx, d.f.Router("east"), "http://"+addr+"/counter")
		return strings.TrimSpace(n), err
	}
	first, err := count()
	if err != nil {
		return err
	}
	d.say("tiny-east counts its visitors in memory: this is number %s", first)
	took, err := d.step("snapshot with memory, while it runs", func(func(string)) error {
		s, err := d.f.API.Snapshot.Create(ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: name}, Spec: &v1.SnapshotSpec{Memory: true}}})
		if err != nil {
			return err
		}
		return d.f.AwaitTask(ctx, s.GetStatus().GetTask())
	})
	if err != nil {
		return err
	}
	d.measured("snapshot of tiny-east with 128 MiB of memory", took, "")
	var last string
	for range 10 {
		if last, err = count(); err != nil {
			return err
		}
	}
	d.say("ten more visitors: number %s", last)
	took, err = d.step("revert to the snapshot", func(func(string)) error {
		t, err := d.f.API.Snapshot.Revert(ctx, &v1.RevertRequest{Name: name})
		if err != nil {
			return err
		}
		if err := d.f.AwaitTask(ctx, t.GetMeta().GetName()); err != nil {
			return err
		}
		_, err = d.f.AwaitVM(ctx, "tiny-east", Phase(v1.VMPhase_VM_PHASE_RUNNING))
		return err
	})
	if err != nil {
		return err
	}
	again, err := count()
	if err != nil {
		return err
	}
	d.measured("revert of tiny-east, to running", took, "")
	d.say("the next visitor is number %s: the guest never knew of the ten", again)
	return d.dropSnapshot(ctx, name)
}

// dropSnapshot deletes a snapshot if it is there.
func (d *demo) dropSnapshot(ctx context.Context, name string) error {
	s, err := d.f.API.Snapshot.Delete(ctx, &v1.DeleteRequest{Name: name})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return d.f.AwaitTask(ctx, s.GetStatus().GetTask())
}

// debians runs a whole Debian on both sites.
func (d *demo) debians() error {
	d.act("Debian, one in each site")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	began := d.clk.Now()
	fresh := map[string]bool{}
	for _, site := range []string{"east", "west"} {
		name := "debian-" + site
		made, err := d.ensureVM(ctx, name, site, &v1.VMSpec{
			Cpus: 1, MemoryBytes: 512 << 20, Description: "Debian 12 of the demo",
			Disks:     []*v1.DiskSpec{{Name: "root", Image: "debian-12", SizeBytes: 4 << 30}},
			CloudInit: &v1.CloudInit{Enabled: true, Hostname: name, User: "demo", SshAuthorizedKeys: []string{d.public}},
		})
		if err != nil {
			return err
		}
		fresh[name] = made
	}
	for _, site := range []string{"east", "west"} {
		name := "debian-" + site
		var vm *v1.VM
		_, err := d.step("VM "+name+": boot, cloud-init, guest agent", func(note func(string)) (err error) {
			vm, err = d.bootDebian(ctx, name, note)
			return err
		})
		if err != nil {
			return err
		}
		took := d.clk.Now().Sub(began)
		var addrs []string
		for _, n := range vm.GetStatus().GetNics() {
			addrs = append(addrs, n.GetAddresses()...)
		}
		d.say("on host %s; its guest agent tells: %s, kernel %s, addresses %s", vm.GetStatus().GetOwner(), vm.GetStatus().GetGuest().GetOs(),
			vm.GetStatus().GetGuest().GetKernel(), strings.Join(addrs, " "))
		if fresh[name] {
			d.measured("VM "+name+": create to guest agent and address", took, "both Debians boot at once")
		}
	}
	_, west, err := d.guest(ctx, "tiny-west")
	if err != nil {
		return err
	}
	var said string
	_, err = d.step("inside of debian-east: curl http://"+west+"/", func(func(string)) (err error) {
		said, err = d.exec(ctx, "debian-east", "/usr/bin/curl", "-sS", "http://"+west+"/")
		return err
	})
	d.quote(said)
	return err
}

// bootDebian waits until a guest's agent has told its address. What its console says goes to note.
func (d *demo) bootDebian(ctx context.Context, name string, note func(string)) (*v1.VM, error) {
	if _, err := d.f.AwaitVM(ctx, name, func(vm *v1.VM) bool {
		note(describe(vm))
		return Phase(v1.VMPhase_VM_PHASE_RUNNING)(vm)
	}); err != nil {
		return nil, err
	}
	watch, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := d.f.OpenConsole(watch, name)
		if err != nil {
			return // the wait below tells what is wrong
		}
		defer c.Close()
		for err == nil {
			var line string
			if line, err = c.Until("\n"); err == nil && strings.TrimSpace(line) != "" {
				note(line)
			}
		}
	}()
	vm, err := d.f.AwaitVM(ctx, name, func(vm *v1.VM) bool {
		for _, n := range vm.GetStatus().GetNics() {
			if len(n.GetAddresses()) > 0 {
				return true
			}
		}
		return false
	})
	stop()
	<-done
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w; see its console: drover vm console %s", err, name)
	}
	return vm, err
}
