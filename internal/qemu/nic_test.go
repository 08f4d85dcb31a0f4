package qemu

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"drover/internal/guest"
	"drover/internal/hostnet"
	"drover/internal/unwind"
)

// testTAP makes a TAP with 10.77.0.1 in a namespace of its own.
func testTAP(t *testing.T, n *hostnet.Net, name string, vnetHdr bool) *os.File {
	t.Helper()
	var u unwind.Stack
	if err := n.EnsureTAP(&u, hostnet.TAP{Name: name, Mark: hostnet.Mark{Kind: "test", ID: name}, VNetHdr: vnetHdr}); err != nil {
		t.Fatal(err)
	}
	f, err := n.OpenTAP(name, vnetHdr)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func testNet(t *testing.T) *hostnet.Net {
	t.Helper()
	name := fmt.Sprintf("droverqemu-%d-%d", os.Getpid(), os.Getuid())
	t.Cleanup(func() {
		if err := hostnet.DeleteNamespace(name); err != nil {
			t.Error(err)
		}
	})
	var u unwind.Stack
	if err := hostnet.CreateNamespace(&u, name); err != nil {
		t.Fatal(err)
	}
	n, err := hostnet.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// TestAdapters pings through each adapter: plugged at the start, and plugged into and out of a running guest.
func TestAdapters(t *testing.T) {
	n := testNet(t)
	r := newRig(t, guest.Q35, "virtio_pci", "virtio_net", "vmxnet3", "e1000", "e1000e", "pcnet32", "8139cp")
	drivers := map[guest.Adapter]string{
		guest.VirtioNet: "virtio_net", guest.VMXNET3: "vmxnet3", guest.E1000: "e1000", guest.E1000E: "e1000e", guest.PCNet: "pcnet32", guest.RTL8139: "8139cp",
	}
	hw, err := guest.Lookup(guest.Q35, 1)
	if err != nil {
		t.Fatal(err)
	}
	taps := map[string][]*os.File{}
	nicOf := func(i int, a guest.Adapter) NIC {
		return NIC{ID: fmt.Sprintf("n%d", i), Slot: i, Adapter: a, MAC: fmt.Sprintf("52:54:00:77:00:%02x", i+1)}
	}
	for i, a := range guest.Adapters() {
		nic := nicOf(i, a)
		r.spec.NICs = append(r.spec.NICs, nic)
		f := testTAP(t, n, "dq"+nic.ID, hw.Adapters[a].Offload)
		defer f.Close()
		taps[nic.ID] = []*os.File{f}
	}
	p := r.start(t, Attach{TAPs: taps})
	for _, fs := range taps {
		fs[0].Close() // QEMU has its own now
	}
	sh := boot(t, p)
	ctx := testContext(t)
	ping := func(i int, nic NIC, tap string) {
		t.Helper()
		host := netip.MustParsePrefix(fmt.Sprintf("10.77.%d.1/24", i))
		var u unwind.Stack
		if err := n.EnsureAddress(&u, tap, host); err != nil {
			t.Fatal(err)
		}
		find := fmt.Sprintf(`for i in $(seq 300); do d=$(grep -l %s /sys/class/net/*/address | cut -d/ -f5); [ "$d" ] && break; sleep 0.1; done; echo "$d"`, nic.MAC)
		dev := sh.run(t, find)
		if dev == "" {
			t.Fatalf("%s: the guest has no interface with its MAC", nic.Adapter)
		}
		if got := sh.run(t, "basename $(readlink /sys/class/net/"+dev+"/device/driver)"); got != drivers[nic.Adapter] {
			t.Errorf("%s: driver %s", nic.Adapter, got)
		}
		sh.run(t, fmt.Sprintf("ip addr add 10.77.%d.2/24 dev %s; ip link set %s up", i, dev, dev))
		if out, err := sh.try(t, fmt.Sprintf("ping -c 20 -i 0.2 -A -W 2 10.77.%d.1 | grep -E 'bytes from' | head -1 | grep .", i)); err != nil {
			t.Errorf("%s: no answer: %v %s", nic.Adapter, err, out)
		}
		if err := p.SetLink(ctx, nic.ID, false); err != nil {
			t.Error(err)
		}
		if hw.Adapters[nic.Adapter].Link {
			sh.eventually(t, "cat /sys/class/net/"+dev+"/carrier", "0")
		} else if out, err := sh.try(t, fmt.Sprintf("ping -c 1 -W 1 10.77.%d.1", i)); err == nil {
			t.Errorf("%s: an answer through an unplugged cable: %s", nic.Adapter, out)
		}
		if err := p.SetLink(ctx, nic.ID, true); err != nil {
			t.Error(err)
		}
		sh.eventually(t, "cat /sys/class/net/"+dev+"/carrier", "1")
		sh.run(t, "ip link set "+dev+" down; ip addr flush dev "+dev)
	}
	for i, a := range guest.Adapters() {
		t.Run(string(a), func(t *testing.T) {
			nic := nicOf(i, a)
			ping(i, nic, "dq"+nic.ID)
			if !hw.Adapters[a].Hotplug {
				return
			}
			if err := p.RemoveNIC(ctx, nic.ID); err != nil {
				t.Fatal(err)
			}
			hot := nicOf(i, a)
			hot.MAC = fmt.Sprintf("52:54:00:78:00:%02x", i+1)
			// QEMU has closed its end, or this would be EBUSY.
			f := testTAP(t, n, "dq"+nic.ID, hw.Adapters[a].Offload)
			defer f.Close()
			if err := p.AddNIC(ctx, hot, []*os.File{f}); err != nil {
				t.Fatal(err)
			}
			ping(i, hot, "dq"+nic.ID)
			if err := p.RemoveNIC(ctx, hot.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
	if len(p.Spec().NICs) != 0 {
		t.Errorf("NICs left: %v", p.Spec().NICs)
	}
}
