package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"unsafe"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// The contenders.
const (
	direct     = "direct"      // a veth pair, or nothing for TAPs
	bridge     = "bridge"      // Linux's, no firewall, as this kernel makes one: with br_netfilter built in it asks iptables' hooks for each frame
	bridgeBare = "bridge-bare" // the same without these hooks
	ovs        = "ovs"         // Open vSwitch in user space
	plain      = "plain"       // Drover without guards
	secure     = "secure"      // Drover with all of them
)

// end is a guest: a device in a namespace of its own, or a TAP on the switch.
type end struct {
	net  *hostnet.Net // of a veth's end
	dev  string       // in net
	port string       // in the switch's namespace
	tap  int          // its descriptor
	mac  net.HardwareAddr
	addr netip.Addr
}

// pair is two guests that a contender joins.
type pair struct {
	kind string
	a, b end
	sw   *hostnet.Net
	undo []func() error
}

func (p *pair) later(fn func() error) { p.undo = append(p.undo, fn) }

// close takes everything down again, the last first.
func (p *pair) close() error {
	var errs []error
	for _, fn := range slices.Backward(p.undo) {
		errs = append(errs, fn())
	}
	p.undo = nil
	return errors.Join(errs...)
}

// namespace makes one that goes with the pair.
func (p *pair) namespace(name string) (*hostnet.Net, error) {
	if err := hostnet.CreateNamespace(nil, name); err != nil {
		return nil, err
	}
	p.later(func() error { return hostnet.DeleteNamespace(name) })
	n, err := hostnet.Open(name)
	if err == nil {
		p.later(n.Close)
	}
	return n, err
}

func mark(id string) hostnet.Mark { return hostnet.Mark{Kind: "bench", ID: id} }

// newPair makes two guests without addresses in common with the machine: 10.99.0.1 and 10.99.0.2.
func newPair(kind string) *pair {
	return &pair{
		kind: kind,
		a:    end{dev: "eth0", port: "pa", tap: -1, mac: net.HardwareAddr{2, 0xdb, 0, 0, 0, 1}, addr: netip.AddrFrom4([4]byte{10, 99, 0, 1})},
		b:    end{dev: "eth0", port: "pb", tap: -1, mac: net.HardwareAddr{2, 0xdb, 0, 0, 0, 2}, addr: netip.AddrFrom4([4]byte{10, 99, 0, 2})},
	}
}

// plug makes a guest in a namespace of its own and its cable to the switch in sw.
func (p *pair) plug(sw *hostnet.Net, name string, e *end, mtu int) (err error) {
	if e.net, err = p.namespace(name); err != nil {
		return err
	}
	return errors.Join(
		sw.EnsureVeth(nil, e.net, hostnet.Veth{A: e.port, B: e.dev, MarkA: mark(e.port), MarkB: mark(name), MTU: mtu, MACB: e.mac}),
		// Router solicitations and the like would be in somebody's run.
		quiet(sw, e.port), quiet(e.net, e.dev),
		sw.SetUp(e.port, true), e.net.SetUp(e.dev, true),
		e.net.EnsureAddress(nil, e.dev, netip.PrefixFrom(e.addr, 24)),
	)
}

func quiet(n *hostnet.Net, dev string) error {
	return n.SetSysctl("ipv6.conf."+dev+".disable_ipv6", "1")
}

// vethPair joins two guests on veths by the contender.
func (b *bench) vethPair(kind string) (*pair, error) {
	p := newPair(kind)
	err := func() (err error) {
		if kind == direct {
			if p.a.net, err = p.namespace("v-direct-a"); err != nil {
				return err
			}
			if p.b.net, err = p.namespace("v-direct-b"); err != nil {
				return err
			}
			return errors.Join(
				p.a.net.EnsureVeth(nil, p.b.net, hostnet.Veth{A: p.a.dev, B: p.b.dev, MarkA: mark("a"), MarkB: mark("b"), MACA: p.a.mac, MACB: p.b.mac}),
				quiet(p.a.net, p.a.dev), quiet(p.b.net, p.b.dev), p.a.net.SetUp(p.a.dev, true), p.b.net.SetUp(p.b.dev, true),
				p.a.net.EnsureAddress(nil, p.a.dev, netip.PrefixFrom(p.a.addr, 24)), p.b.net.EnsureAddress(nil, p.b.dev, netip.PrefixFrom(p.b.addr, 24)),
			)
		}
		if p.sw, err = p.namespace("v-" + kind); err != nil {
			return err
		}
		if err := errors.Join(p.plug(p.sw, "v-"+kind+"-a", &p.a, 0), p.plug(p.sw, "v-"+kind+"-b", &p.b, 0)); err != nil {
			return err
		}
		return b.join(p)
	}()
	return p.orClose(err)
}

// orClose is what a maker returns.
func (p *pair) orClose(err error) (*pair, error) {
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", p.kind, err), p.close())
	}
	return p, nil
}

// tapPair joins two guests on TAPs by the contender.
func (b *bench) tapPair(kind string) (*pair, error) {
	p := newPair(kind)
	err := func() (err error) {
		if p.sw, err = p.namespace("t-" + kind); err != nil {
			return err
		}
		for _, e := range []*end{&p.a, &p.b} {
			if err := p.openTAP(e, kind == plain || kind == secure); err != nil {
				return err
			}
		}
		if err := b.join(p); err != nil {
			return err
		}
		return p.meet()
	}()
	return p.orClose(err)
}

// openTAP makes a TAP and opens it as QEMU would.
func (p *pair) openTAP(e *end, noqueue bool) error {
	if err := p.sw.EnsureTAP(nil, hostnet.TAP{Name: e.port, Mark: mark(e.port), VNetHdr: true}); err != nil {
		return err
	}
	if noqueue {
		if err := run(p.sw, "tc", "qdisc", "replace", "dev", e.port, "root", "noqueue"); err != nil {
			return err
		}
	}
	f, err := p.sw.OpenTAP(e.port, true)
	if err != nil {
		return err
	}
	p.later(f.Close)
	if err := hostnet.SetOffload(f, true); err != nil {
		return err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = rc.Control(func(fd uintptr) {
		// Frames are read and written past the runtime, which keeps the descriptor non-blocking.
		e.tap = int(fd)
		set = unix.IoctlSetPointerInt(e.tap, unix.TUNSETVNETHDRSZ, vnetHeader)
	})
	return errors.Join(err, set)
}

// join makes the contender's switch out of the pair's ports.
func (b *bench) join(p *pair) error {
	switch p.kind {
	case bridge, bridgeBare:
		if err := p.hooks(p.sw); err != nil {
			return err
		}
		err := p.sw.EnsureBridge(nil, hostnet.Bridge{Name: "br0", Mark: mark("br0")})
		return errors.Join(err, quiet(p.sw, "br0"), p.sw.Attach(nil, "br0", p.a.port), p.sw.Attach(nil, "br0", p.b.port))
	case ovs:
		return b.joinOVS(p)
	case plain, secure:
		return b.joinDrover(p)
	}
	return fmt.Errorf("no contender %q", p.kind)
}

// hooks turns the netfilter hooks of bridges in a namespace off, if the contender has none. A kernel without br_netfilter has none anyway.
func (p *pair) hooks(n *hostnet.Net) error {
	if p.kind != bridgeBare {
		return nil
	}
	for _, table := range []string{"iptables", "ip6tables", "arptables"} {
		if err := n.SetSysctl("bridge.bridge-nf-call-"+table, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// run runs a program in a namespace.
func run(n *hostnet.Net, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Run(cmd); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// setSegmentation lets a device's sender hand over segments that are yet to be cut, or not.
func (e *end) setSegmentation(on bool) error {
	const setTSO, setGSO = 0x1f, 0x24 // ETHTOOL_STSO, ETHTOOL_SGSO
	return e.net.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, cmd := range []uint32{setTSO, setGSO} {
			value := struct{ cmd, data uint32 }{cmd: cmd}
			if on {
				value.data = 1
			}
			req := struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				_    [16]byte
			}{data: unsafe.Pointer(&value)}
			copy(req.name[:unix.IFNAMSIZ-1], e.dev)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
				return os.NewSyscallError("segmentation offload of "+e.dev, errno)
			}
		}
		return nil
	})
}
