package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Each NIC adapter is driven by a real guest, which gets an address by it and answers.
func TestAdapters(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1", "east-2"))
	image := r.tiny(true)
	drivers := map[v1.NICAdapter]string{
		v1.NICAdapter_NIC_ADAPTER_VIRTIO: "virtio_net", v1.NICAdapter_NIC_ADAPTER_VMXNET3: "vmxnet3", v1.NICAdapter_NIC_ADAPTER_E1000: "e1000",
		v1.NICAdapter_NIC_ADAPTER_E1000E: "e1000e", v1.NICAdapter_NIC_ADAPTER_PCNET: "pcnet32", v1.NICAdapter_NIC_ADAPTER_RTL8139: "8139cp",
	}
	for adapter, driver := range drivers {
		spec := guest(image)
		spec.MemoryBytes = 192 << 20
		spec.Nics[0].Adapter = adapter
		r.create("vm-"+strings.ReplaceAll(driver, "_", "-"), spec)
	}
	for adapter, driver := range drivers {
		name := "vm-" + strings.ReplaceAll(driver, "_", "-")
		url := r.ready(name)
		a := r.about("east", url)
		if n := a.NICs["eth0"]; n.Driver != driver || n.MAC != r.get(name).GetSpec().GetNics()[0].GetMac() {
			t.Errorf("%s: the guest has %+v, want driver %s", adapter, a.NICs, driver)
		}
		if !strings.Contains(strings.Join(a.Addresses, " "), strings.TrimPrefix(url, "http://")) {
			t.Errorf("%s: it answers at %s, and tells %v", adapter, url, a.Addresses)
		}
	}
	r.nothing()
}

// disks is what the guest sees, by device name.
func (r *rig) disks(url string) map[string]struct{ Size int64 } {
	r.t.Helper()
	out := map[string]struct{ Size int64 }{}
	body := r.ask("east", url+"/disk/list")
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		r.t.Fatalf("disks: %v: %s", err, body)
	}
	return out
}

// until waits for the guest to see its disks so.
func (r *rig) until(url, what string, ok func(map[string]struct{ Size int64 }) bool) {
	r.t.Helper()
	r.eventually(func() error {
		if d := r.disks(url); !ok(d) {
			return fmt.Errorf("the guest sees %v, want %s", d, what)
		}
		return nil
	})
}

// block has the guest write or verify a pattern on a disk.
func (r *rig) block(op, url, query string) {
	r.t.Helper()
	if got := r.ask("east", url+"/disk/"+op+"?"+query); !strings.Contains(got, `"ok":true`) {
		r.t.Errorf("%s %s: %s", op, query, got)
	}
}

// Disks and NICs come, grow and go while the guest runs.
func TestHotChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	spec := guest(r.tiny(false))
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 64 << 20}}
	r.create("web", spec)
	url := r.ready("web")
	pid := r.pid(r.get("web"))
	r.until(url, "one disk", func(d map[string]struct{ Size int64 }) bool { return len(d) == 1 && d["vda"].Size == 64<<20 })
	r.block("write", url, "dev=vda&seed=1&size=4194304")

	for name, bus := range map[string]v1.DiskBus{"blk": v1.DiskBus_DISK_BUS_VIRTIO_BLK, "scsi": v1.DiskBus_DISK_BUS_VIRTIO_SCSI} {
		_, err := r.API.Disk.Create(t.Context(), &v1.CreateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: "web/" + name}, Spec: &v1.DiskSpec{SizeBytes: 32 << 20, Bus: bus}}})
		r.must(err)
	}
	r.until(url, "three disks", func(d map[string]struct{ Size int64 }) bool {
		return d["vdb"].Size == 32<<20 && d["sda"].Size == 32<<20
	})
	for _, dev := range []string{"vdb", "sda"} {
		r.block("write", url, "dev="+dev+"&seed=2")
		r.block("verify", url, "dev="+dev+"&seed=2")
	}
	for _, name := range []string{"web/blk", "web/scsi"} {
		_, err := r.API.Disk.Update(t.Context(), &v1.UpdateDiskRequest{Disk: &v1.Disk{Meta: &v1.Meta{Name: name}, Spec: &v1.DiskSpec{SizeBytes: 48 << 20}},
			Mask: &fieldmaskpb.FieldMask{Paths: []string{"spec.size_bytes"}}})
		r.must(err)
	}
	r.until(url, "the disk grown", func(d map[string]struct{ Size int64 }) bool { return d["vdb"].Size == 48<<20 })
	r.block("verify", url, "dev=vdb&seed=2&size=33554432")
	for _, name := range []string{"web/blk", "web/scsi"} {
		_, err := r.API.Disk.Delete(t.Context(), &v1.DeleteRequest{Name: name})
		r.must(err)
	}
	r.until(url, "one disk again", func(d map[string]struct{ Size int64 }) bool { return len(d) == 1 })

	nic, err := r.API.NIC.Create(t.Context(), &v1.CreateNICRequest{Nic: &v1.NIC{Meta: &v1.Meta{Name: "web/second"}, Spec: &v1.NICSpec{Network: lab.NetworkName}}})
	r.must(err)
	vm := r.running("web")
	addr, err := r.Address(r.wait(), vm, "second")
	r.must(err)
	if a := r.about("east", "http://"+addr); a.NICs["eth1"].MAC != nic.GetSpec().GetMac() {
		t.Errorf("the guest sees %v, want a second NIC with %s", a.NICs, nic.GetSpec().GetMac())
	}
	_, err = r.API.NIC.Delete(t.Context(), &v1.DeleteRequest{Name: "web/second"})
	r.must(err)
	r.eventually(func() error {
		if a := r.about("east", url); len(a.NICs) != 1 {
			return fmt.Errorf("the guest sees %v", a.NICs)
		}
		return nil
	})
	vm = r.running("web")
	if len(vm.GetStatus().GetRestartRequired()) > 0 || r.pid(vm) != pid {
		t.Errorf("not all of it was done while the guest ran: %v", vm.GetStatus())
	}
	r.block("verify", url, "dev=vda&seed=1&size=4194304")
	r.nothing()
}
