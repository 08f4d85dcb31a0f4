package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Uplink is a NIC that can carry traffic out of the host: a hardware NIC, or a
// veth, which is what stands for one in a namespace.
type Uplink struct {
	Link
	Driver    string // "virtio_net", "ixgbe", "veth"
	Bus       string // PCI address; empty for a veth
	SpeedMbit int    // 0: unknown
	Addresses []netip.Prefix
}

// Uplinks lists the namespace's NICs that are not ours: hardware, and veths.
func (n *Net) Uplinks() ([]Uplink, error) {
	all, err := n.Links()
	if err != nil {
		return nil, err
	}
	var out []Uplink
	for _, l := range all {
		if l.Name == "lo" || (l.Kind != "device" && l.Kind != "veth") || len(l.MAC) != 6 || l.Mark.Kind == MarkNIC {
			continue
		}
		up := Uplink{Link: l}
		if up.Addresses, err = n.Addresses(l.Name); err != nil {
			if errors.Is(err, ErrNotFound) {
				continue // gone since the list
			}
			return nil, err
		}
		if err := n.Do(func() error { return up.ask() }); err != nil {
			return nil, n.errorf("ask the driver of", l.Name, err)
		}
		out = append(out, up)
	}
	return out, nil
}

// MarkNIC is the kind of the marks on links that serve a VM's adapter.
const MarkNIC = "nic"

// ask fills in what the driver tells. Asked by ioctl and not in /sys, which shows the
// namespace it was mounted in. A driver that does not answer leaves zeros.
func (up *Uplink) ask() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if info, err := unix.IoctlGetEthtoolDrvinfo(fd, up.Name); err == nil {
		up.Driver = unix.ByteSliceToString(info.Driver[:])
		up.Bus = unix.ByteSliceToString(info.Bus_info[:])
	}
	up.SpeedMbit = linkSpeed(fd, up.Name)
	return nil
}

// linkSpeed is ETHTOOL_GSET, linux/ethtool.h; 0 if unknown.
func linkSpeed(fd int, name string) int {
	type ethtoolCmd struct {
		cmd, supported, advertising  uint32
		speed                        uint16
		duplex, port                 uint8
		phy, transceiver, auto, mdio uint8
		maxTx, maxRx                 uint32
		speedHi                      uint16
		_                            [2]uint8
		_                            [3]uint32
	}
	type ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	cmd := &ethtoolCmd{cmd: unix.ETHTOOL_GSET}
	req := &ifreq{data: unsafe.Pointer(cmd)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req))); errno != 0 {
		return 0
	}
	speed := uint32(cmd.speedHi)<<16 | uint32(cmd.speed)
	if speed == 0xffffffff || speed == 0xffff { // SPEED_UNKNOWN
		return 0
	}
	return int(speed)
}
