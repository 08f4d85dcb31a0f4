package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"drover/internal/unwind"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TAP is a persistent single-queue TAP: it outlives whoever holds its fd, until
// Delete.
type TAP struct {
	Name string
	Mark Mark
	// VNetHdr says that frames carry a virtio_net_hdr. True for virtio adapters
	// only: with any other adapter the header would be taken for frame data.
	VNetHdr bool
	Owner   uint32           // uid that may open it besides root
	MAC     net.HardwareAddr // of the host's end; nil: the kernel picks
	MTU     int              // 0: 1500
}

// EnsureTAP makes the TAP and sets it up. One of ours whose kind, header flag or owner
// differs is remade, since flags of a TAP's earlier user would break its traffic.
func (n *Net) EnsureTAP(u *unwind.Stack, t TAP) error {
	if err := errors.Join(CheckName(t.Name), t.Mark.Validate()); err != nil {
		return n.errorf("create", t.Name, err)
	}
	l, err := n.link(t.Name)
	if err == nil {
		if err := n.claim(l, "tuntap", t.Mark); err != nil {
			return err
		}
		got, ok := l.(*netlink.Tuntap)
		same := ok && got.Mode == netlink.TUNTAP_MODE_TAP && got.Owner == t.Owner &&
			got.Flags&netlink.TUNTAP_VNET_HDR != 0 == t.VNetHdr &&
			got.Flags&netlink.TUNTAP_MULTI_QUEUE == 0
		if same {
			return n.finishTAP(u, t)
		}
		if err := n.Delete(t.Name, t.Mark); err != nil {
			return err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := n.createTAP(u, t); err != nil {
		return err
	}
	return n.finishTAP(u, t)
}

// createTAP makes the TAP and lets go of it. No process is forked meanwhile: it would have the TAP open until it
// executes, and OpenTAP would find it busy.
func (n *Net) createTAP(u *unwind.Stack, t TAP) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := n.openTun(t.Name, tapFlags(t.VNetHdr)|unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := n.adopt(u, t.Name, t.Mark); err != nil {
		return err
	}
	// Until TUNSETPERSIST the link goes with f.
	err = errors.Join(
		unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, int(t.Owner)),
		unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1))
	if err != nil {
		return n.errorf("keep", t.Name, err)
	}
	return nil
}

func (n *Net) finishTAP(u *unwind.Stack, t TAP) error {
	if t.MAC != nil {
		l, err := n.link(t.Name)
		if err != nil {
			return err
		}
		if err := n.h.LinkSetHardwareAddr(l, t.MAC); err != nil {
			return n.errorf("set MAC of", t.Name, err)
		}
	}
	if t.MTU != 0 {
		if err := n.SetMTU(u, t.Name, t.MTU); err != nil {
			return err
		}
	}
	return n.upWithoutAddress(t.Name)
}

// OpenTAP opens a TAP made by EnsureTAP, to pass to QEMU. vnetHdr must be what it
// was made with. EBUSY says that another process holds it.
func (n *Net) OpenTAP(name string, vnetHdr bool) (*os.File, error) {
	l, err := n.link(name)
	if err != nil {
		return nil, err
	}
	t, ok := l.(*netlink.Tuntap)
	if !ok || t.Flags&netlink.TUNTAP_VNET_HDR != 0 != vnetHdr {
		return nil, n.errorf("open", name, fmt.Errorf("it is not a TAP with virtio header %v: make it again", vnetHdr))
	}
	return n.openTun(name, tapFlags(vnetHdr))
}

// OpenTUN makes a TUN that lives as long as the returned file, which carries whole
// IP packets, each after a virtio_net_hdr if vnetHdr. The file works with the
// runtime's poller: Close unblocks a Read.
func (n *Net) OpenTUN(name string, vnetHdr bool) (*os.File, error) {
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if vnetHdr {
		flags |= unix.IFF_VNET_HDR
	}
	return n.openTun(name, flags)
}

// SetOffload tells the kernel whether it may hand over segments that are yet to be
// cut (TSO) and checksummed, on a TUN or TAP with a virtio header.
func SetOffload(f *os.File, on bool) error {
	const csum, tso4, tso6 = 1, 2, 4 // TUN_F_*, linux/if_tun.h
	flags := 0
	if on {
		flags = csum | tso4 | tso6
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("set offload: %w", err)
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, flags) })
	if err = errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("set offload: %w", err)
	}
	return nil
}

func tapFlags(vnetHdr bool) uint16 {
	if vnetHdr {
		return unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	}
	return unix.IFF_TAP | unix.IFF_NO_PI
}

func (n *Net) openTun(name string, flags uint16) (*os.File, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, n.errorf("open", name, err)
	}
	ifr.SetUint16(flags)
	var fd int
	err = n.Do(func() error {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			unix.Close(fd)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, n.errorf("open", name, err)
	}
	// Only now: a TUN file can be polled once it has an interface.
	return os.NewFile(uintptr(fd), "tun:"+name), nil
}
