package hostnet

import (
	"errors"
	"fmt"
	"unsafe"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VXLANPort is the UDP port of VXLAN, RFC 7348.
const VXLANPort = 4789

// VXLAN is a tunnel device that has no tunnel of its own: who sends by it says for each frame to which host and by which network number, and a program on
// its ingress reads the same ("external", collect metadata). It learns nothing.
type VXLAN struct {
	Name string
	Mark Mark
	Port int // 0: VXLANPort
	MTU  int // 0: the kernel's choice
}

// EnsureVXLAN makes the device and sets it up. One of ours whose port differs is remade.
// It receives at all addresses of the host. The source of its packets is what the sender of each frame says, or else the route: a local address set on
// such a device does nothing (tried on Linux 6.18).
// It takes IPv6 packets without a UDP checksum, and may send such: inner packets have their own, and the network number is checked against
// the registered hosts (RFC 6935, RFC 6936). For IPv4 the sender of each frame decides.
func (n *Net) EnsureVXLAN(u *unwind.Stack, v VXLAN) error {
	if v.Port == 0 {
		v.Port = VXLANPort
	}
	if v.Port < 0 || v.Port > 65535 {
		return n.errorf("create", v.Name, fmt.Errorf("UDP port %d: want 1 to 65535", v.Port))
	}
	l, err := n.link(v.Name)
	if err == nil {
		if err = n.claim(l, "vxlan", v.Mark); err != nil {
			return err
		}
		if !sameVXLAN(l, v) {
			if err := n.Delete(v.Name, v.Mark); err != nil {
				return err
			}
			err = ErrNotFound
		}
	}
	if errors.Is(err, ErrNotFound) {
		err = n.addVXLAN(u, v)
	}
	if err != nil {
		return err
	}
	if v.MTU != 0 {
		if err := n.SetMTU(u, v.Name, v.MTU); err != nil {
			return err
		}
	}
	if err := n.SetNoQueue(v.Name); err != nil {
		return err
	}
	if err := n.Do(func() error { return groOn(v.Name) }); err != nil {
		return n.errorf("turn on GRO of", v.Name, err)
	}
	return n.upWithoutAddress(v.Name)
}

func (n *Net) addVXLAN(u *unwind.Stack, v VXLAN) error {
	return n.add(u, &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: v.Name, TxQLen: -1},
		FlowBased: true, Port: v.Port, UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true,
	}, v.Mark)
}

func sameVXLAN(l netlink.Link, v VXLAN) bool {
	got, ok := l.(*netlink.Vxlan)
	return ok && got.FlowBased && !got.Learning && got.Port == v.Port && got.UDP6ZeroCSumRx
}

// groOn is ETHTOOL_SGRO, linux/ethtool.h: small packets that belong together go up the stack as one.
func groOn(name string) error {
	type value struct{ cmd, data uint32 }
	type ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	v := &value{cmd: unix.ETHTOOL_SGRO, data: 1}
	req := &ifreq{data: unsafe.Pointer(v)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req))); errno != 0 {
		return errno
	}
	return nil
}
