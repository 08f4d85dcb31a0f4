package vswitch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/unwind"
	"drover/internal/vswitch/table"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// tcShot is TC_ACT_SHOT of linux/pkt_cls.h.
const tcShot = 2

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testNet makes a namespace that goes with the test.
func testNet(t testing.TB, suffix string) *hostnet.Net {
	t.Helper()
	name := fmt.Sprintf("drovertest-%d-vs-%s", os.Getpid(), suffix)
	t.Cleanup(func() {
		if err := hostnet.DeleteNamespace(name); err != nil {
			t.Error(err)
		}
	})
	var u unwind.Stack
	must(t, hostnet.CreateNamespace(&u, name))
	n, err := hostnet.Open(name)
	must(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// testBPF mounts a bpffs that goes with the test.
func testBPF(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "bpf")
	must(t, os.Mkdir(at, 0o700))
	must(t, mount(at))
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// openIn opens a datapath for the devices of n.
func openIn(t testing.TB, n *hostnet.Net, dir string, b build) (*Datapath, error) {
	t.Helper()
	var d *Datapath
	err := n.Do(func() (err error) {
		d, err = open(t.Context(), Config{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, b)
		return err
	})
	return d, err
}

func testDatapath(t testing.TB, n *hostnet.Net, dir string) *Datapath {
	t.Helper()
	d, err := openIn(t, n, dir, current())
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// testTAP makes a TAP and returns its index.
func testTAP(t testing.TB, n *hostnet.Net, id string) int {
	t.Helper()
	name := hostnet.Name("dt", id)
	must(t, n.EnsureTAP(nil, hostnet.TAP{Name: name, Mark: hostnet.Mark{Kind: "test", ID: id}}))
	l, err := n.Link(name)
	must(t, err)
	return l.Index
}

func mac(i int) table.MAC { return table.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

func ip(i int) table.IP {
	return table.IPOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
}

// tables has ports on the devices, one after the other in network 7, and remote registrations.
func tables(devices []int, remote int) *table.Tables {
	t := table.New()
	t.Networks[7] = table.Network{Flags: table.NetworkOverlay, Members: uint32(len(devices)), MTU: 1500}
	t.Teams[0] = table.Team{Hash: uint32(table.TeamByMAC)}
	for i, ifindex := range devices {
		dev, slot := uint32(ifindex), uint32(i+1)
		t.Ports[dev] = table.Port{Slot: slot, Net: 7, MAC: mac(i), MTU: 1500, DSCP: table.Leave, CoS: table.Leave, Flags: table.PortMoreIPs | table.PortMoreMACs}
		t.FDB[table.FDBKey{Net: 7, MAC: mac(i)}] = table.FDBEntry{Target: dev, Place: table.PlaceLocal}
		t.Members[table.MemberKey{Net: 7, Row: uint32(i)}] = table.Member{Target: dev, Place: table.PlaceLocal}
		t.Bindings[table.BindingKey{Net: 7, IP: ip(i)}] = table.Binding{Ifindex: dev, MAC: mac(i), Source: table.BindingAssigned}
		t.MACs[table.MACKey{Ifindex: dev, MAC: mac(i + 1000)}] = 1
		t.Meters[slot] = table.Meter{Punt: table.Bucket{Rate: 200, Burst: 400}}
	}
	for i := range remote {
		t.FDB[table.FDBKey{Net: 7, MAC: mac(10000 + i)}] = table.FDBEntry{Target: 3, Place: table.PlaceTunnel}
		t.Bindings[table.BindingKey{Net: 7, IP: ip(10000 + i)}] = table.Binding{MAC: mac(10000 + i), Source: table.BindingRemote}
	}
	return t
}

// holds compares the maps to want; members by who is in, not by row, and ports with what the loader copies into them.
func holds(t testing.TB, d *Datapath, want *table.Tables) {
	t.Helper()
	got, err := d.Tables()
	must(t, err)
	w := *want
	w.Networks = maps.Clone(want.Networks)
	seats := map[uint32]map[table.Member]int{}
	for k, m := range got.Members {
		if seats[k.Net] == nil {
			seats[k.Net] = map[table.Member]int{}
		}
		seats[k.Net][m]++
		if k.Row >= got.Networks[k.Net].Members {
			t.Errorf("member in row %d of network %d, whose floods see %d rows", k.Row, k.Net, got.Networks[k.Net].Members)
		}
	}
	for k, m := range want.Members {
		if seats[k.Net][m]--; seats[k.Net][m] < 0 {
			t.Errorf("member %+v of network %d is not there", m, k.Net)
		}
	}
	if len(got.Members) != len(want.Members) {
		t.Errorf("%d members, want %d", len(got.Members), len(want.Members))
	}
	for net, n := range w.Networks {
		n.Members = got.Networks[net].Members
		w.Networks[net] = n
	}
	w.Members = got.Members
	w.Ports = map[uint32]table.Port{}
	for i, p := range want.Ports {
		w.Ports[i] = want.Row(p)
	}
	if diff := cmp.Diff(&w, got); diff != "" {
		t.Errorf("maps differ (-want +got):\n%.4000s", diff)
	}
}

func TestLife(t *testing.T) {
	n, dir := testNet(t, "life"), filepath.Join(testBPF(t), "drover-t")
	must(t, n.Do(Supported))
	start := time.Now()
	d, err := openIn(t, n, dir, current())
	must(t, err)
	t.Logf("first Open: %v", time.Since(start))
	a, b := testTAP(t, n, "a"), testTAP(t, n, "b")
	want := tables([]int{a, b}, 100)
	must(t, d.Apply(t.Context(), want))
	for _, dev := range []int{a, b} {
		start := time.Now()
		must(t, d.Attach(t.Context(), Device{Ifindex: dev, Name: "tap", Kind: KindPort}))
		t.Logf("Attach: %v", time.Since(start))
	}
	must(t, d.Attach(t.Context(), Device{Ifindex: a, Kind: KindPort})) // again: kept
	holds(t, d, want)
	must(t, d.Close())
	if err := d.Apply(t.Context(), want); !errors.Is(err, ErrClosed) {
		t.Errorf("Apply after Close: %v, want ErrClosed", err)
	}

	// What was made outlives the datapath, and the next Open finds it.
	start = time.Now()
	d, err = openIn(t, n, dir, current())
	must(t, err)
	t.Logf("second Open: %v", time.Since(start))
	holds(t, d, want)
	devs, err := d.Attached()
	must(t, err)
	wantDevs := []Device{{Ifindex: a, Name: hostnet.Name("dt", "a"), Kind: KindPort}, {Ifindex: b, Name: hostnet.Name("dt", "b"), Kind: KindPort}}
	if diff := cmp.Diff(wantDevs, devs); diff != "" {
		t.Errorf("Attached (-want +got):\n%s", diff)
	}

	// A device that goes takes its rows along.
	must(t, n.Delete(hostnet.Name("dt", "b"), hostnet.Mark{Kind: "test", ID: "b"}))
	devs, err = d.Attached()
	must(t, err)
	if diff := cmp.Diff([]Device{wantDevs[0], {Ifindex: b, Gone: true}}, devs); diff != "" {
		t.Errorf("Attached with a device gone (-want +got):\n%s", diff)
	}
	holds(t, d, without(tables([]int{a, b}, 100), b, 1))
	if pins, _ := d.pins(); len(pins) != 2 {
		t.Errorf("pins %v, want the two of device %d", pins, a)
	}
	must(t, d.Detach(a))
	must(t, d.Detach(a))
	must(t, d.Detach(99999))
	holds(t, d, without(without(tables([]int{a, b}, 100), b, 1), a, 0))
	if devs, _ := d.Attached(); len(devs) != 0 {
		t.Errorf("after Detach there is %v", devs)
	}
	must(t, d.Remove())
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove, %s: %v", dir, err)
	}
}

// without is t less all that names the device of tables(devices)[i], as Detach leaves it: meters and networks stay.
func without(t *table.Tables, dev, i int) *table.Tables {
	delete(t.Ports, uint32(dev))
	delete(t.FDB, table.FDBKey{Net: 7, MAC: mac(i)})
	delete(t.Members, table.MemberKey{Net: 7, Row: uint32(i)})
	delete(t.Bindings, table.BindingKey{Net: 7, IP: ip(i)})
	delete(t.MACs, table.MACKey{Ifindex: uint32(dev), MAC: mac(i + 1000)})
	return t
}

func TestTry(t *testing.T) {
	n := testNet(t, "try")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	dev := testTAP(t, n, "a")
	frame := make([]byte, 60)
	copy(frame, net.HardwareAddr{2, 0, 0, 0, 0, 9})
	// A port without a row passes nothing.
	if action, _, err := d.Try(KindPort, dev, frame); err != nil || action != tcShot {
		t.Errorf("Try on a port without a row = %d, %v; want it dropped", action, err)
	}
	// A device that is no uplink keeps its frames.
	action, out, err := d.Try(KindUplink, dev, frame)
	if err != nil || action == tcShot || len(out) != len(frame) {
		t.Errorf("Try on an uplink without a row = %d, %d bytes, %v; want it passed on", action, len(out), err)
	}
	if _, _, err := d.Try(KindPort, dev, frame[:13]); !errors.Is(err, ErrShortFrame) {
		t.Errorf("Try of 13 bytes: %v, want ErrShortFrame", err)
	}
	if _, _, err := d.Try(Kind(9), dev, frame); err == nil {
		t.Error("Try of a kind that is none was taken")
	}
}

func TestMountBPF(t *testing.T) {
	dir := t.TempDir()
	system, private := filepath.Join(dir, "missing", "bpf"), filepath.Join(dir, "run", "bpf")
	t.Cleanup(func() { _ = unix.Unmount(private, unix.MNT_DETACH) })
	for range 2 {
		got, err := mountBPF(system, private)
		if err != nil || got != private {
			t.Fatalf("mountBPF = %s, %v; want %s", got, err, private)
		}
	}
	must(t, os.MkdirAll(system, 0o700))
	// Pins may be in the private one already: it stays.
	if got, err := mountBPF(system, private); err != nil || got != private {
		t.Fatalf("mountBPF = %s, %v; want the private one of before", got, err)
	}
	must(t, unix.Unmount(private, 0))
	t.Cleanup(func() { _ = unix.Unmount(system, unix.MNT_DETACH) })
	var wait sync.WaitGroup
	for range 16 { // agents that start at the same time
		wait.Go(func() {
			if got, err := mountBPF(system, private); err != nil || got != system {
				t.Errorf("mountBPF = %s, %v; want %s", got, err, system)
			}
		})
	}
	wait.Wait()
	must(t, unix.Unmount(system, 0))
	if err := isBPF(system); err == nil {
		t.Error("more than one bpffs was mounted: each hides what is pinned in the one before")
	}
}

func TestRefusedConfig(t *testing.T) {
	for _, dir := range []string{"", "relative", "/", t.TempDir() + "/x"} {
		if d, err := Open(t.Context(), Config{Dir: dir}); err == nil {
			d.Close()
			t.Errorf("directory %q was taken: it is in no bpffs", dir)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := Open(ctx, Config{Dir: filepath.Join(testBPF(t), "x")}); !errors.Is(err, context.Canceled) {
		if d != nil {
			d.Close()
		}
		t.Errorf("Open with an ended context: %v", err)
	}
}
