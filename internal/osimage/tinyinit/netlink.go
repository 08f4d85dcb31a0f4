package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"syscall"
)

// rtnl sends one request to the kernel's routing socket and waits for its verdict. body starts after the header.
func rtnl(typ uint16, flags uint16, body []byte) error {
	s, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(s)
	msg := make([]byte, 16, 16+len(body))
	binary.NativeEndian.PutUint32(msg[0:], uint32(16+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_ACK|flags)
	binary.NativeEndian.PutUint32(msg[8:], 1)
	if err := syscall.Sendto(s, append(msg, body...), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	n, _, err := syscall.Recvfrom(s, buf, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(buf[4:]) != syscall.NLMSG_ERROR {
		return fmt.Errorf("netlink: unexpected reply")
	}
	if e := int32(binary.NativeEndian.Uint32(buf[16:])); e != 0 {
		return syscall.Errno(-e)
	}
	return nil
}

func attr(b []byte, typ uint16, v []byte) []byte {
	var h [4]byte
	binary.NativeEndian.PutUint16(h[0:], uint16(4+len(v)))
	binary.NativeEndian.PutUint16(h[2:], typ)
	b = append(append(b, h[:]...), v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func u32(v int) []byte {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(v))
	return b[:]
}

// family gives the address family and the address's bytes in it.
func family(ip net.IP) (byte, []byte) {
	if v4 := ip.To4(); v4 != nil {
		return syscall.AF_INET, v4
	}
	return syscall.AF_INET6, ip.To16()
}

// linkUp sets a link up; an MTU of 0 leaves it alone.
func linkUp(index, mtu int) error {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], syscall.IFF_UP)
	binary.NativeEndian.PutUint32(b[12:], syscall.IFF_UP)
	if mtu > 0 {
		b = attr(b, syscall.IFLA_MTU, u32(mtu))
	}
	return rtnl(syscall.RTM_NEWLINK, 0, b)
}

// addAddress sets an address; one that is there already is no error.
func addAddress(index int, a *net.IPNet) error {
	err := changeAddress(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, index, a)
	if err == syscall.EEXIST {
		return nil
	}
	return err
}

func delAddress(index int, a *net.IPNet) error {
	return changeAddress(syscall.RTM_DELADDR, 0, index, a)
}

func changeAddress(typ, flags uint16, index int, a *net.IPNet) error {
	fam, ip := family(a.IP)
	ones, _ := a.Mask.Size()
	b := make([]byte, 8)
	b[0], b[1] = fam, byte(ones)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	b = attr(b, syscall.IFA_LOCAL, ip)
	b = attr(b, syscall.IFA_ADDRESS, ip)
	if fam == syscall.AF_INET && ones < 31 && typ == syscall.RTM_NEWADDR {
		bc := make(net.IP, 4)
		for i := range bc {
			bc[i] = ip[i] | ^a.Mask[len(a.Mask)-4+i]
		}
		b = attr(b, syscall.IFA_BROADCAST, bc)
	}
	return rtnl(typ, flags, b)
}

// addRoute routes dst (nil: everything) over gw on a link.
func addRoute(index int, dst *net.IPNet, gw net.IP) error {
	fam, g := family(gw)
	b := make([]byte, 12)
	b[0], b[4], b[5], b[7] = fam, syscall.RT_TABLE_MAIN, syscall.RTPROT_BOOT, syscall.RTN_UNICAST
	if dst != nil {
		ones, _ := dst.Mask.Size()
		_, d := family(dst.IP)
		b[1] = byte(ones)
		b = attr(b, syscall.RTA_DST, d)
	}
	b = attr(b, syscall.RTA_GATEWAY, g)
	b = attr(b, syscall.RTA_OIF, u32(index))
	return rtnl(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, b)
}
