package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pair is two TAPs, whose ends are held, with ports that send to each other.
type pair struct {
	devs []int
	ends []*os.File
}

func testPair(t testing.TB, n *hostnet.Net) *pair {
	t.Helper()
	p := &pair{}
	for _, id := range []string{"a", "b"} {
		p.devs = append(p.devs, testTAP(t, n, id))
		name := hostnet.Name("dt", id)
		must(t, n.SetTxQueue(name, 100_000))
		f, err := n.OpenTAP(name, false)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		p.ends = append(p.ends, f)
	}
	return p
}

func (p *pair) tables() *table.Tables {
	want := tables(p.devs, 20)
	for i, dev := range p.devs {
		row := want.Ports[uint32(dev)]
		row.MirrorIfindex = uint32(p.devs[1-i])
		want.Ports[uint32(dev)] = row
	}
	return want
}

func (p *pair) attach(t testing.TB, d *Datapath) {
	t.Helper()
	for _, dev := range p.devs {
		must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindPort}))
	}
}

// frame is from the first end to the second, with a number.
func (p *pair) frame(number uint32) []byte {
	f := make([]byte, 64)
	to, from := mac(1), mac(0)
	copy(f, to[:])
	copy(f[6:], from[:])
	f[12], f[13] = 0x88, 0xb6 // for experiments, IEEE 802
	binary.BigEndian.PutUint32(f[14:], number)
	return f
}

// stream sends 10,000 frames a second until stop is called, which returns how many were sent and how many of those did not come.
func (p *pair) stream(t *testing.T) (stop func() (sent, lost int)) {
	t.Helper()
	end := make(chan struct{})
	sent := make(chan int, 1)
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		start, n := time.Now(), 0
		for {
			select {
			case <-end:
				sent <- n
				return
			case now := <-tick.C:
				for ; n < int(now.Sub(start)*10/time.Millisecond); n++ {
					if _, err := p.ends[0].Write(p.frame(uint32(n))); err != nil {
						t.Errorf("frame %d: %v", n, err)
					}
				}
			}
		}
	}()
	seen := make(chan map[uint32]bool, 1)
	total := make(chan int, 1)
	go func() {
		got, buf, want := map[uint32]bool{}, make([]byte, 2048), -1
		for want < 0 || len(got) < want {
			select {
			case want = <-total:
				must(t, p.ends[1].SetReadDeadline(time.Now().Add(2*time.Second))) // for what is still on its way
				continue
			default:
			}
			if want < 0 {
				must(t, p.ends[1].SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			}
			n, err := p.ends[1].Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) && want < 0 {
				continue
			}
			if err != nil {
				break
			}
			if n == 64 && buf[12] == 0x88 && buf[13] == 0xb6 {
				number := binary.BigEndian.Uint32(buf[14:])
				if got[number] {
					t.Errorf("frame %d came twice", number)
				}
				got[number] = true
			}
		}
		seen <- got
	}()
	return func() (int, int) {
		close(end)
		n := <-sent
		total <- n
		return n, n - len(<-seen)
	}
}

// passes says whether a frame sent into the first end comes out of the second.
func (p *pair) passes(t testing.TB, number uint32) bool {
	t.Helper()
	must(t, p.ends[1].SetReadDeadline(time.Now().Add(time.Second)))
	_, err := p.ends[0].Write(p.frame(number))
	must(t, err)
	buf := make([]byte, 2048)
	for {
		n, err := p.ends[1].Read(buf)
		if err != nil {
			return false
		}
		if n == 64 && binary.BigEndian.Uint32(buf[14:]) == number {
			return true
		}
	}
}

// TestNoFrameLost restarts the datapath ten times under a stream of frames, replaces its code, then the layout of its maps.
func TestNoFrameLost(t *testing.T) {
	for name, builds := range map[string][3]build{
		"mini": {miniBuild(100, 1, 8), miniBuild(100, 2, 8), miniBuild(101, 3, 0)},
		"real": {realBuild(0, 8), realBuild(0, 8), current()},
	} {
		t.Run(name, func(t *testing.T) {
			n, dir := testNet(t, "stream"), filepath.Join(testBPF(t), "drover-t")
			p := testPair(t, n)
			want := p.tables()
			d, err := openIn(t, n, dir, builds[0])
			must(t, err)
			must(t, d.Apply(t.Context(), want))
			p.attach(t, d)
			again := func(b build) {
				t.Helper()
				must(t, d.Close())
				d, err = openIn(t, n, dir, b)
				must(t, err)
				p.attach(t, d)
				must(t, d.Apply(t.Context(), want))
				runs(t, d, p)
				holds(t, d, want)
			}
			stop := p.stream(t)
			for range 10 {
				again(builds[0])
			}
			again(builds[1])
			builds[2].converters = map[uint32]converter{0: readRoomy, 100: readRoomy}
			again(builds[2])
			sent, lost := stop()
			t.Logf("%d frames sent, %d lost", sent, lost)
			if sent < 500 || lost != 0 {
				t.Errorf("%d of %d frames lost over 10 restarts, a new build and a new layout; want none of at least 500", lost, sent)
			}
			must(t, d.Close())
		})
	}
}

// runs wants every link to have the program of d's build.
func runs(t testing.TB, d *Datapath, p *pair) {
	t.Helper()
	for _, dev := range p.devs {
		for _, out := range []bool{false, true} {
			a, err := d.openLink(pin{dev, out})
			must(t, err)
			if a == nil {
				t.Errorf("device %d has no link (out: %v)", dev, out)
				continue
			}
			a.link.Close()
			info, err := d.program(KindPort, out).Info()
			must(t, err)
			if id, _ := info.ID(); id != a.program {
				t.Errorf("device %d (out: %v) runs program %d, want %d", dev, out, a.program, id)
			}
		}
	}
}

var errCrash = errors.New("crash")

// TestUpgradeCrash ends an upgrade at each of its steps, and wants frames to pass then, and the next Open with its Apply to finish the work.
func TestUpgradeCrash(t *testing.T) {
	t.Parallel()
	n, bpf := testNet(t, "upgrade"), testBPF(t)
	p := testPair(t, n)
	number := uint32(0)
	for at := 1; ; at++ {
		dir := filepath.Join(bpf, fmt.Sprintf("drover-%d", at))
		old, err := openIn(t, n, dir, miniBuild(100, 1, 8))
		must(t, err)
		p.attach(t, old)
		must(t, old.Apply(t.Context(), p.tables()))
		lease := table.Binding{Ifindex: uint32(p.devs[0]), MAC: mac(0), Source: table.BindingProvisional, Expires: bootTime() + uint64(time.Minute)}
		given := lease
		given.Source = table.BindingDHCP
		must(t, old.objs.Bindings.Put(&table.BindingKey{Net: 7, IP: ip(700)}, &lease))
		must(t, old.objs.Bindings.Put(&table.BindingKey{Net: 7, IP: ip(701)}, &given))
		setCounters(t, old)
		must(t, old.Close())

		b := miniBuild(101, 2, 0)
		b.converters = map[uint32]converter{100: readRoomy}
		crashing, steps, where := b, 0, ""
		crashing.reached = func(step string) error {
			if steps++; steps == at {
				where = step
				return errCrash
			}
			return nil
		}
		d, err := openIn(t, n, dir, crashing)
		if err == nil {
			err = d.Apply(t.Context(), p.tables())
			must(t, d.Close())
		}
		if where != "" && !errors.Is(err, errCrash) {
			t.Fatalf("step %d (%s): %v, want the crash", at, where, err)
		}
		if number++; !p.passes(t, number) {
			t.Errorf("after a crash at step %d (%s) frames don't pass", at, where)
		}

		d, err = openIn(t, n, dir, b)
		must(t, err)
		if number++; !p.passes(t, number) {
			t.Errorf("after a crash at step %d (%s) and a new Open frames don't pass", at, where)
		}
		want := p.tables()
		got, err := d.Tables()
		must(t, err)
		if at < 3 && got.Bindings[table.BindingKey{Net: 7, IP: ip(701)}] != given {
			t.Errorf("after a crash at step %d (%s) Open did not copy the lease: %v", at, where, got.Bindings)
		}
		p.attach(t, d)
		must(t, d.Apply(t.Context(), want))
		want.Bindings[table.BindingKey{Net: 7, IP: ip(700)}] = lease
		holds(t, d, want)
		runs(t, d, p)
		wantCounters(t, d)
		if number++; !p.passes(t, number) {
			t.Errorf("after the upgrade (crash at step %d, %s) frames don't pass", at, where)
		}
		entries, err := os.ReadDir(dir)
		must(t, err)
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, []string{"links", "maps-101"}) {
			t.Errorf("after the upgrade (crash at step %d, %s) there is %v", at, where, left)
		}
		must(t, d.Remove())
		if where == "" {
			t.Logf("%d steps", at-1)
			if at < 20 {
				t.Errorf("only %d steps: the hooks are gone", at-1)
			}
			return
		}
	}
}

// setCounters sets what slot 1 of a roomy build counts to what wantCounts wants.
func setCounters(t testing.TB, d *Datapath) {
	t.Helper()
	cpus, err := ebpf.PossibleCPU()
	must(t, err)
	slot, traffic, drops := uint32(1), make([]table.Traffic, cpus), make([]roomy, cpus)
	traffic[0].OutPackets = 1
	traffic[cpus-1] = table.Traffic{InPackets: 3, InBytes: 300}
	drops[0].Packets, drops[cpus-1].Packets, drops[0].Room = 1, 1, 77
	must(t, d.objs.Counters.Put(&slot, traffic))
	must(t, d.objs.Drops.Put(&table.DropKey{Slot: slot, Reason: table.DropMTU}, drops))
}

func wantCounters(t testing.TB, d *Datapath) {
	t.Helper()
	got, err := d.Counters([]uint32{1, table.MaxPorts})
	must(t, err)
	want := map[uint32]Counters{1: {Traffic: table.Traffic{InPackets: 3, InBytes: 300, OutPackets: 1}, Drops: map[table.Reason]table.DropCount{table.DropMTU: {Packets: 2}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// TestRollback goes back to a build of before that knows nothing of the maps it finds, but reads those that have rows of the same size.
func TestRollback(t *testing.T) {
	n, dir := testNet(t, "rollback"), filepath.Join(testBPF(t), "drover-t")
	p := testPair(t, n)
	want := p.tables()
	key, slot := table.BindingKey{Net: 7, IP: ip(700)}, uint32(1)
	for i, b := range []build{miniBuild(100, 1, 0), miniBuild(101, 2, 8), miniBuild(100, 1, 0)} {
		d, err := openIn(t, n, dir, b)
		must(t, err)
		p.attach(t, d)
		must(t, d.Apply(t.Context(), p.tables()))
		holds(t, d, want)
		cpus, err := ebpf.PossibleCPU()
		must(t, err)
		traffic := make([]table.Traffic, cpus)
		if i == 1 {
			traffic[0].InPackets = 5
			must(t, d.objs.Counters.Put(&slot, traffic))
			want.Bindings[key] = table.Binding{Ifindex: uint32(p.devs[0]), MAC: mac(0), Source: table.BindingProvisional, Expires: bootTime() + uint64(time.Minute)}
			lease := want.Bindings[key]
			must(t, d.objs.Bindings.Put(&key, &lease))
		}
		if i == 2 {
			c, err := d.Counters([]uint32{slot})
			must(t, err)
			if n := c[slot].InPackets; n != 5 {
				t.Errorf("after the rollback slot 1 counts %d, want 5", n)
			}
		}
		runs(t, d, p)
		if !p.passes(t, uint32(i)+1) {
			t.Errorf("build %d passes nothing", i)
		}
		must(t, d.Close())
	}
}

// TestRollbackEarly goes back before the later build was in force: what it had copied is older than what is counted.
func TestRollbackEarly(t *testing.T) {
	n, dir := testNet(t, "early"), filepath.Join(testBPF(t), "drover-t")
	p := testPair(t, n)
	old := miniBuild(100, 1, 0)
	d, err := openIn(t, n, dir, old)
	must(t, err)
	p.attach(t, d)
	must(t, d.Apply(t.Context(), p.tables()))
	cpus, err := ebpf.PossibleCPU()
	must(t, err)
	slot, traffic := uint32(2), make([]table.Traffic, cpus)
	count := func(n uint64) {
		t.Helper()
		traffic[0].InPackets = n
		must(t, d.objs.Counters.Put(&slot, traffic))
	}
	count(4)
	for _, b := range []build{miniBuild(101, 2, 0), old} {
		must(t, d.Close())
		d, err = openIn(t, n, dir, b)
		must(t, err)
		c, err := d.Counters([]uint32{slot})
		must(t, err)
		if c[slot].InPackets != 4 {
			t.Errorf("layout %d: slot 2 counts %d, want 4", b.layout, c[slot].InPackets)
		}
	}
	count(9)
	must(t, d.Apply(t.Context(), p.tables()))
	c, err := d.Counters([]uint32{slot})
	must(t, err)
	if c[slot].InPackets != 9 {
		t.Errorf("slot 2 counts %d, want 9: what the later build knew was older", c[slot].InPackets)
	}
	runs(t, d, p)
	must(t, d.Close())
}

// TestSameLayoutOtherShape wants words, and the old datapath untouched, when somebody forgot to raise the layout.
func TestSameLayoutOtherShape(t *testing.T) {
	n, dir := testNet(t, "shape"), filepath.Join(testBPF(t), "drover-t")
	p := testPair(t, n)
	d, err := openIn(t, n, dir, miniBuild(100, 1, 0))
	must(t, err)
	p.attach(t, d)
	must(t, d.Apply(t.Context(), p.tables()))
	must(t, d.Close())
	if d, err := openIn(t, n, dir, miniBuild(100, 1, 8)); !errors.Is(err, ebpf.ErrMapIncompatible) {
		if d != nil {
			d.Close()
		}
		t.Errorf("Open with another shape of the same layout: %v", err)
	}
	if !p.passes(t, 1) {
		t.Error("frames don't pass any more")
	}
}

// TestIfindexAgain wants a device that got the index of one that is gone to be taken for what it is.
func TestIfindexAgain(t *testing.T) {
	n, dir := testNet(t, "again"), filepath.Join(testBPF(t), "drover-t")
	d, err := openIn(t, n, dir, miniBuild(100, 1, 0))
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	dev := testTAP(t, n, "a")
	must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindPort}))
	must(t, d.Apply(t.Context(), tables([]int{dev}, 0)))
	must(t, n.Delete(hostnet.Name("dt", "a"), hostnet.Mark{Kind: "test", ID: "a"}))
	must(t, n.Do(func() error { return addLink("again", dev) }))
	devs, err := d.Attached()
	must(t, err)
	if len(devs) != 1 || !devs[0].Gone {
		t.Errorf("Attached = %v, want device %d gone: the link is the old one's", devs, dev)
	}
	got, err := d.Tables()
	must(t, err)
	if len(got.Ports) != 0 || len(got.FDB) != 0 {
		t.Errorf("the new device has the old one's rows: %v, %v", got.Ports, got.FDB)
	}
	must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindUplink}))
	devs, err = d.Attached()
	must(t, err)
	if len(devs) != 1 || devs[0] != (Device{Ifindex: dev, Name: "again", Kind: KindUplink}) {
		t.Errorf("Attached = %v, want uplink %d", devs, dev)
	}
	// And from uplink to port.
	must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindPort}))
	runs(t, d, &pair{devs: []int{dev}})
	must(t, d.Attach(t.Context(), Device{Ifindex: dev, Kind: KindTunnel}))
	if pins, _ := d.pins(); len(pins) != 1 {
		t.Errorf("a tunnel device with links %v, want one", pins)
	}
	if err := d.Attach(t.Context(), Device{Ifindex: 4321, Kind: KindPort}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Attach to no device: %v, want ENODEV", err)
	}
}
