package model_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"drover/internal/hostnet"
	"drover/internal/unwind"
	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of slots that configurations use; arrays are made this long.
const slots = 32

// Devices of the test's namespace: veths whose peers nobody listens to, so that copies that are really sent go nowhere.
const (
	devicePorts   = 6 // with rows in ports; one more has none
	deviceUplinks = 2
)

// kernel is the datapath itself, with maps of its own that nobody pins.
type kernel struct {
	c       *ebpf.Collection
	rings   map[string]*ringbuf.Reader
	loaded  *table.Tables
	ports   []uint32 // ifindex; the last has no row
	uplinks []uint32
	tunnel  uint32
	run     map[string]*runner
	record  ringbuf.Record
}

// row is a map's key or value as the kernel has it.
func row[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

// inKernel calls fn with a datapath, on a thread in a namespace of its own.
func inKernel(t testing.TB, fn func(*kernel)) {
	t.Helper()
	n, k := openKernel(t)
	if err := n.Do(func() error { fn(k); return nil }); err != nil {
		t.Fatal(err)
	}
}

// openKernel makes a datapath that goes with the test. Frames must be run on a thread in its namespace.
func openKernel(t testing.TB) (*hostnet.Net, *kernel) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it loads programs and makes a network namespace")
	}
	name := fmt.Sprintf("drovertest-%d-model", os.Getpid())
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
	var k *kernel
	if err := n.Do(func() (err error) { k, err = newKernel(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.close)
	return n, k
}

func newKernel() (*kernel, error) {
	k := &kernel{rings: map[string]*ringbuf.Reader{}, loaded: table.New(), run: map[string]*runner{}}
	for i := range devicePorts + 1 + deviceUplinks + 1 {
		name, peer := fmt.Sprintf("d%d", i), fmt.Sprintf("p%d", i)
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 9000}, PeerName: peer}); err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		var index uint32
		for _, n := range []string{peer, name} {
			l, err := netlink.LinkByName(n)
			if err != nil {
				return nil, err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return nil, err
			}
			index = uint32(l.Attrs().Index)
		}
		switch {
		case i <= devicePorts:
			k.ports = append(k.ports, index)
		case i <= devicePorts+deviceUplinks:
			k.uplinks = append(k.uplinks, index)
		default:
			k.tunnel = index
		}
	}
	spec, err := ebpf.LoadCollectionSpec("../datapath_bpfel.o")
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		switch m.Type {
		case ebpf.Array, ebpf.PerCPUArray:
			m.MaxEntries = min(m.MaxEntries, slots)
		}
	}
	if k.c, err = ebpf.NewCollection(spec); err != nil {
		return nil, err
	}
	for _, name := range []string{"events", "punts", "captures"} {
		if k.rings[name], err = ringbuf.NewReader(k.c.Maps[name]); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"port_in", "uplink_in"} {
		k.run[name] = newRunner(k.c.Programs[name].FD())
	}
	return k, nil
}

func (k *kernel) close() {
	for _, r := range k.rings {
		r.Close()
	}
	k.c.Close()
}

// sync brings one hash map to want.
func sync[K comparable, V comparable](m *ebpf.Map, have, want map[K]V) error {
	for key := range have {
		if _, ok := want[key]; !ok {
			if err := m.Delete(row(&key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
	}
	for key, v := range want {
		if old, ok := have[key]; !ok || old != v {
			if err := m.Put(row(&key), row(&v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// rowsOf are the rows of ports as the loader writes them.
func rowsOf(t *table.Tables) map[uint32]table.Port {
	out := map[uint32]table.Port{}
	for i, p := range t.Ports {
		out[i] = t.Row(p)
	}
	return out
}

// load makes t the configuration, with counters, rates and leases as if nothing had happened.
func (k *kernel) load(t *table.Tables) error {
	m, old := k.c.Maps, k.loaded
	// Leases that frames left are not in what was loaded.
	for key := range k.bindings() {
		if err := m["bindings"].Delete(row(&key)); err != nil {
			return err
		}
	}
	err := errors.Join(
		sync(m["ports"], rowsOf(old), rowsOf(t)), sync(m["fdb"], old.FDB, t.FDB), sync(m["networks"], old.Networks, t.Networks),
		sync(m["members"], old.Members, t.Members), sync(m["groups"], old.Groups, t.Groups), sync(m["bindings"], nil, t.Bindings),
		sync(m["macs"], old.MACs, t.MACs), sync(m["trunks"], old.Trunks, t.Trunks), sync(m["uplinks"], old.Uplinks, t.Uplinks),
		sync(m["uplink_vlans"], old.UplinkVLANs, t.UplinkVLANs), sync(m["vteps"], old.VTEPs, t.VTEPs), sync(m["vtep_sources"], old.VTEPSources, t.VTEPSources))
	if err != nil {
		return err
	}
	cpus := ebpf.MustPossibleCPU()
	for i := range uint32(slots) {
		meter, team, last := t.Meters[i], t.Teams[i], table.BindingKey{}
		if err := errors.Join(m["meters"].Put(row(&i), row(&meter)), m["teams"].Put(row(&i), row(&team)), m["provisional"].Put(row(&i), row(&last)),
			m["counters"].Put(i, make([]table.Traffic, cpus))); err != nil {
			return err
		}
	}
	for key := range k.drops() {
		if err := m["drops"].Delete(row(&key)); err != nil {
			return err
		}
	}
	for _, ring := range []string{"events", "punts", "captures"} {
		k.drain(ring, func([]byte) {})
	}
	k.loaded = t
	return nil
}

func (k *kernel) drain(ring string, each func([]byte)) {
	r := k.rings[ring]
	r.SetDeadline(time.Unix(1, 0))
	for r.ReadInto(&k.record) == nil {
		each(k.record.RawSample)
	}
}

func (k *kernel) bindings() map[table.BindingKey]table.Binding {
	out := map[table.BindingKey]table.Binding{}
	var key table.BindingKey
	var v table.Binding
	kb, vb := row(&key), row(&v)
	it := k.c.Maps["bindings"].Iterate()
	for it.Next(&kb, &vb) {
		out[*(*table.BindingKey)(unsafe.Pointer(&kb[0]))] = *(*table.Binding)(unsafe.Pointer(&vb[0]))
	}
	return out
}

func (k *kernel) drops() map[table.DropKey]table.DropCount {
	out := map[table.DropKey]table.DropCount{}
	var key table.DropKey
	var v []table.DropCount
	it := k.c.Maps["drops"].Iterate()
	for it.Next(&key, &v) {
		var sum table.DropCount
		for _, c := range v {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		out[key] = sum
	}
	return out
}

func (k *kernel) counters() (map[uint32]table.Traffic, error) {
	out := map[uint32]table.Traffic{}
	var v []table.Traffic
	for i := range uint32(slots) {
		if err := k.c.Maps["counters"].Lookup(i, &v); err != nil {
			return nil, err
		}
		var sum table.Traffic
		for _, c := range v {
			sum.InPackets += c.InPackets
			sum.InBytes += c.InBytes
			sum.OutPackets += c.OutPackets
			sum.OutBytes += c.OutBytes
		}
		if sum != (table.Traffic{}) {
			out[i] = sum
		}
	}
	return out, nil
}

// skb is struct __sk_buff of linux/bpf.h.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex, TCIndex uint32
	CB                                                                                                                      [5]uint32
	Hash, TCClassID, Data, DataEnd, NAPIID, Family, RemoteIP4, LocalIP4                                                     uint32
	RemoteIP6, LocalIP6                                                                                                     [4]uint32
	RemotePort, LocalPort, DataMeta                                                                                         uint32
	FlowKeys, Tstamp                                                                                                        uint64
	WireLen, GSOSegs                                                                                                        uint32
	Sk                                                                                                                      uint64
	GSOSize, TstampType                                                                                                     uint32
	HWTstamp                                                                                                                uint64
}

// runner runs a program by BPF_PROG_TEST_RUN. Its memory is made once, as a frame takes a few microseconds.
type runner struct {
	attr    *testRun
	in, out *[4096]byte
	ctx     *skb
	ctxOut  *skb
}

// testRun is the part of union bpf_attr for BPF_PROG_TEST_RUN.
type testRun struct {
	fd, retval, sizeIn, sizeOut         uint32
	dataIn, dataOut                     uint64
	repeat, duration, ctxSizeIn, ctxOut uint32
	ctxIn, ctxOutAddr                   uint64
	flags, cpu, batch, _                uint32
}

func newRunner(fd int) *runner {
	r := &runner{attr: &testRun{fd: uint32(fd)}, in: new([4096]byte), out: new([4096]byte), ctx: new(skb), ctxOut: new(skb)}
	r.attr.dataIn, r.attr.dataOut = uint64(uintptr(unsafe.Pointer(r.in))), uint64(uintptr(unsafe.Pointer(r.out)))
	r.attr.ctxIn, r.attr.ctxOutAddr = uint64(uintptr(unsafe.Pointer(r.ctx))), uint64(uintptr(unsafe.Pointer(r.ctxOut)))
	return r
}

// ran is what a program made of a frame.
type ran struct {
	action         uint32
	bytes          []byte // valid until the next run
	mark, priority uint32
}

func (r *runner) frame(ifindex uint32, f []byte, gso uint32) (ran, error) {
	*r.ctx = skb{Ifindex: ifindex, GSOSize: gso}
	a := r.attr
	a.sizeIn, a.sizeOut = uint32(copy(r.in[:], f)), uint32(len(r.out))
	a.ctxSizeIn, a.ctxOut = uint32(unsafe.Sizeof(skb{})), uint32(unsafe.Sizeof(skb{}))
	const progTestRun = 10
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a))
		if errno == unix.EINTR {
			continue
		}
		runtime.KeepAlive(r)
		if errno != 0 {
			return ran{}, fmt.Errorf("run the program on %d bytes: %w", len(f), errno)
		}
		return ran{a.retval, r.out[:a.sizeOut], r.ctxOut.Mark, r.ctxOut.Priority}, nil
	}
}

// sorted is a map's keys in an order that does not change.
func sorted[K comparable, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b K) int { return slices.Compare(row(&a), row(&b)) })
	return out
}
