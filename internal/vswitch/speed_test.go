package vswitch

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const secure = table.PortStorm | table.PortIPGuard | table.PortARPGuard | table.PortNDGuard | table.PortDHCPSnoop | table.PortMoreIPs | table.PortMoreMACs

// benchFlags are kinds of ports.
var benchFlags = map[string]table.PortFlag{
	"open":    table.PortDHCPServer | table.PortRouter | table.PortVirtualRouter | table.PortForged,
	"default": table.PortStorm,
	"secure":  secure,
	"metered": secure | table.PortMeterIn | table.PortMeterOut,
}

// BenchmarkPortIn is what port_in itself costs a frame to another guest of the host, with the kernel's way to and from it left out.
func BenchmarkPortIn(b *testing.B) {
	for name, flags := range benchFlags {
		b.Run(name, func(b *testing.B) {
			x := testBed(b, "bench")
			x.want.Networks[7] = table.Network{Flags: table.NetworkOverlay | table.NetworkProxy, MTU: 1500}
			set := func(p *table.Port) {
				p.Flags, p.IP4Count = flags, 1
				p.IP4[0] = [4]byte{10, 0, 0, 1}
			}
			a := x.port("a", 1, set)
			x.port("c", 2, set)
			for slot := range uint32(3) {
				x.want.Meters[slot] = table.Meter{In: table.Bucket{Rate: 1 << 40, Burst: 1 << 20}, Out: table.Bucket{Rate: 1 << 40, Burst: 1 << 20}}
			}
			x.apply()
			frame := udp4(b, mac(2), mac(1), net.IP{10, 0, 0, 2}, net.IP{10, 0, 0, 1}, 5, 6, make([]byte, 18))
			in := skb{skbIfindex: a.ifindex}
			// The fastest of many short runs: others use the machine too.
			best := time.Hour
			for b.Loop() {
				must(b, x.net.Do(func() error {
					const times = 20000
					start := time.Now()
					action, err := x.d.objs.PortIn.Run(&ebpf.RunOptions{Data: frame, Repeat: times, Context: &in})
					if err == nil && action != tcRedirect {
						b.Fatalf("action %d", action)
					}
					best = min(best, time.Since(start)/times)
					return err
				}))
			}
			b.ReportMetric(float64(best.Nanoseconds()), "ns/frame")
		})
	}
}

// BenchmarkTAP is the processor time of a frame from one guest to another, its write and its read included. It is the sender's thread that does all the work, so what
// other processes do counts little. "redirect" does nothing but that: no switch of tcx programs can be faster. "bridge-hooks" is a bridge whose frames pass the hooks of
// iptables, as they do by default where the kernel has br_netfilter; "bridge" is one without.
func BenchmarkTAP(b *testing.B) {
	for _, size := range []int{46, 1488} {
		for _, by := range []string{"redirect", "bridge", "bridge-hooks", "open", "secure"} {
			b.Run(fmt.Sprint(by, "/", size+14), func(b *testing.B) { benchmarkTAP(b, by, size) })
		}
	}
}

func benchmarkTAP(b *testing.B, by string, size int) {
	x := testBed(b, "tapbench")
	set := func(p *table.Port) { p.Flags, p.IP4Count, p.IP4[0] = benchFlags[by], 1, [4]byte{10, 0, 0, 1} }
	a, c := x.port("a", 1, set), x.port("c", 2, set)
	n := x.want.Networks[7]
	n.Flags |= table.NetworkProxy
	x.want.Networks[7] = n
	x.apply()
	for _, p := range []*plug{a, c} {
		must(b, x.net.SetNoQueue(p.name))
	}
	switch by {
	case "redirect":
		redirect(b, x, a, c)
		redirect(b, x, c, a)
	case "bridge", "bridge-hooks":
		for _, hook := range []string{"iptables", "ip6tables", "arptables"} {
			on := map[string]string{"bridge": "0", "bridge-hooks": "1"}[by]
			if err := x.net.SetSysctl("bridge.bridge-nf-call-"+hook, on); err != nil && by == "bridge-hooks" {
				b.Skip("this kernel has no br_netfilter: ", err)
			}
		}
		mark := hostnet.Mark{Kind: "test", ID: "br"}
		must(b, x.net.EnsureBridge(nil, hostnet.Bridge{Name: "br0", Mark: mark}))
		for _, p := range []*plug{a, c} {
			must(b, x.d.Detach(int(p.ifindex)))
			must(b, x.net.Attach(nil, "br0", p.name))
		}
	}
	frame := append(make([]byte, vnetHeader), udp4(b, mac(2), mac(1), net.IP{10, 0, 0, 2}, net.IP{10, 0, 0, 1}, 5, 6, make([]byte, size-28))...)
	from, to := rawFD(b, a.file), rawFD(b, c.file)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for got := []byte(nil); got == nil; { // a bridge takes a moment to forward
		c.send(raw(mac(1), mac(2), 60))
		a.send(raw(mac(2), mac(1), 60))
		_, got = c.poll(10 * time.Millisecond)
	}
	const batch = 200
	buf := make([]byte, 2000)
	best, write := time.Hour, time.Hour
	for b.Loop() {
		start := threadTime(b)
		for range batch {
			if _, err := unix.Write(from, frame); err != nil {
				b.Fatal(err)
			}
		}
		sent := threadTime(b)
		write = min(write, (sent-start)/batch)
		for range batch {
			if n, err := unix.Read(to, buf); err != nil || n != len(frame) {
				b.Fatalf("read %d bytes, want %d: %v", n, len(frame), err)
			}
		}
		best = min(best, (threadTime(b)-start)/batch)
	}
	b.ReportMetric(float64(best.Nanoseconds()), "ns/frame")
	b.ReportMetric(float64(write.Nanoseconds()), "ns/write")
}

// redirect replaces the datapath on from by the least that is possible: all that comes goes to to.
func redirect(b *testing.B, x *bed, from, to *plug) {
	must(b, x.d.Detach(int(from.ifindex)))
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to.ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return()}})
	must(b, err)
	b.Cleanup(func() { prog.Close() })
	must(b, x.net.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: int(from.ifindex), Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			b.Cleanup(func() { l.Close() })
		}
		return err
	}))
}

func rawFD(b *testing.B, f *os.File) (fd int) {
	c, err := f.SyscallConn()
	must(b, err)
	must(b, c.Control(func(x uintptr) { fd = int(x) }))
	return fd
}

func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	must(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts))
	return time.Duration(ts.Nano())
}
