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

// testTAP makes a TAP with an address, if it is not there, and opens it.
func testTAP(t *testing.T, n *hostnet.Net, name string, vnetHdr bool, host netip.Prefix) *os.File {
	t.Helper()
	var u unwind.Stack
	if err := n.EnsureTAP(&u, hostnet.TAP{Name: name, Mark: hostnet.Mark{Kind: "test", ID: name}, VNetHdr: vnetHdr}); err != nil {
		t.Fatal(err)
	}
	f, err := n.OpenTAP(name, vnetHdr)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.EnsureAddress(&u, name, host); err != nil {
		t.Fatal(err)
	}
	return f
}

func testNet(t *testing.T) *hostnet.Net {
	t.Helper()
	name := namespaceName(os.Getpid())
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

var nicDrivers = map[guest.Adapter]string{
	guest.VirtioNet: "virtio_net", guest.VMXNET3: "vmxnet3", guest.E1000: "e1000", guest.E1000E: "e1000e", guest.PCNet: "pcnet32", guest.RTL8139: "8139cp",
}

// wire is a NIC of a test: its TAP, and what it is called in the guest.
type wire struct {
	NIC
	row guest.AdapterRow
	tap string
	net int // 10.77.net.1 is the host, .2 the guest
	dev string
}

// bring finds the NIC in the guest by its MAC and gives it its address.
func (w *wire) bring(t *testing.T, sh *shell) {
	t.Helper()
	w.dev = sh.run(t, fmt.Sprintf(`for i in $(seq 600); do d=$(grep -l %s /sys/class/net/*/address 2>/dev/null | cut -d/ -f5); [ "$d" ] && break; usleep 50000; done; echo "$d"`, w.MAC))
	if w.dev == "" {
		t.Fatalf("%s: the guest has no interface with its MAC", w.Adapter)
	}
	if got := sh.run(t, "basename $(readlink /sys/class/net/"+w.dev+"/device/driver)"); got != nicDrivers[w.Adapter] {
		t.Errorf("%s: driver %s", w.Adapter, got)
	}
	sh.run(t, fmt.Sprintf("ip addr add 10.77.%d.2/24 dev %s; ip link set %s up", w.net, w.dev, w.dev))
}

// answers pings the host until it answers.
func (w *wire) answers(t *testing.T, sh *shell) {
	t.Helper()
	if out, err := sh.try(t, fmt.Sprintf("for i in $(seq 30); do ping -q -c 1 -W 1 10.77.%d.1 >/dev/null 2>&1 && break; done && [ $i -lt 30 ]", w.net)); err != nil {
		t.Errorf("%s: no answer: %v %s", w.Adapter, err, out)
	}
}

func (w *wire) carrier(t *testing.T, sh *shell, want string) {
	t.Helper()
	sh.eventually(t, "cat /sys/class/net/"+w.dev+"/carrier", want)
}

// TestAdapters pings through each adapter: there from the start, after its cable was pulled and put back, and plugged into and out of a running
// guest.
func TestAdapters(t *testing.T) {
	n := testNet(t)
	r := newRig(t, guest.Q35, "virtio_pci", "virtio_net", "vmxnet3", "e1000", "e1000e", "pcnet32", "8139cp")
	hw, err := guest.Lookup(guest.Q35, 1)
	if err != nil {
		t.Fatal(err)
	}
	taps := map[string][]*os.File{}
	var wires []*wire
	open := func(w *wire) *os.File {
		return testTAP(t, n, w.tap, w.row.Offload, netip.MustParsePrefix(fmt.Sprintf("10.77.%d.1/24", w.net)))
	}
	for i, a := range guest.Adapters() {
		w := &wire{row: hw.Adapters[a], net: i, tap: fmt.Sprintf("dqn%d", i),
			NIC: NIC{ID: fmt.Sprintf("n%d", i), Slot: i, Adapter: a, MAC: fmt.Sprintf("52:54:00:77:00:%02x", i+1)}}
		wires = append(wires, w)
		r.spec.NICs = append(r.spec.NICs, w.NIC)
		taps[w.ID] = []*os.File{open(w)}
	}
	p := r.start(t, Attach{TAPs: taps})
	for _, fs := range taps {
		fs[0].Close() // QEMU has its own now
	}
	sh := boot(t, p)
	ctx := testContext(t)
	each := func(name string, do func(t *testing.T, w *wire)) {
		t.Run(name, func(t *testing.T) {
			for _, w := range wires {
				t.Run(string(w.Adapter), func(t *testing.T) { do(t, w) })
			}
		})
	}
	each("cold", func(t *testing.T, w *wire) {
		w.bring(t, sh)
		w.answers(t, sh)
	})
	each("unplugged cable", func(t *testing.T, w *wire) {
		if err := p.SetLink(ctx, w.ID, false); err != nil {
			t.Fatal(err)
		}
		if w.row.Link {
			w.carrier(t, sh, "0")
		} else if out, err := sh.try(t, fmt.Sprintf("ping -q -c 1 -W 1 10.77.%d.1", w.net)); err == nil {
			t.Errorf("an answer through an unplugged cable: %s", out)
		}
	})
	each("plugged cable", func(t *testing.T, w *wire) {
		if err := p.SetLink(ctx, w.ID, true); err != nil {
			t.Fatal(err)
		}
		w.carrier(t, sh, "1")
		w.answers(t, sh)
		sh.run(t, "ip link set "+w.dev+" down")
	})
	each("hot", func(t *testing.T, w *wire) {
		if !w.row.Hotplug {
			return
		}
		if err := p.RemoveNIC(ctx, w.ID); err != nil {
			t.Fatal(err)
		}
		w.MAC = fmt.Sprintf("52:54:00:78:00:%02x", w.net+1)
		f := open(w) // QEMU has closed its end, or this would be EBUSY
		defer f.Close()
		if err := p.AddNIC(ctx, w.NIC, []*os.File{f}); err != nil {
			t.Fatal(err)
		}
		w.bring(t, sh)
		w.answers(t, sh)
		if err := p.RemoveNIC(ctx, w.ID); err != nil {
			t.Fatal(err)
		}
	})
	if len(p.Spec().NICs) != 0 {
		t.Errorf("NICs left: %v", p.Spec().NICs)
	}
}
