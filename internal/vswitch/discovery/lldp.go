package discovery

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Types of TLVs, IEEE 802.1AB 8.4.
const (
	lldpEnd          = 0
	lldpChassis      = 1
	lldpPort         = 2
	lldpTTL          = 3
	lldpPortText     = 4
	lldpSystem       = 5
	lldpSystemText   = 6
	lldpCapabilities = 7
	lldpManagement   = 8
	lldpOrganisation = 127
)

var lldpGroup = [6]byte{0x01, 0x80, 0xc2, 0, 0, 0x0e} // nearest bridge

// LLDP is the frame that an uplink sends.
func LLDP(s Self) []byte {
	f := slices.Concat(lldpGroup[:], s.MAC[:], []byte{0x88, 0xcc})
	tlv := func(kind int, parts ...[]byte) {
		v := slices.Concat(parts...)
		v = v[:min(len(v), 511)]
		f = binary.BigEndian.AppendUint16(f, uint16(kind<<9|len(v)))
		f = append(f, v...)
	}
	short := func(s string) []byte { return []byte(text([]byte(s))) }
	tlv(lldpChassis, []byte{4}, s.Chassis[:]) // MAC address
	tlv(lldpPort, []byte{5}, short(s.Port))   // interface name
	tlv(lldpTTL, binary.BigEndian.AppendUint16(nil, uint16(TTL/time.Second)))
	tlv(lldpPortText, short(s.Port))
	tlv(lldpSystem, short(s.System))
	tlv(lldpSystemText, short(s.Description))
	tlv(lldpCapabilities, []byte{0, 0x04, 0, 0x04}) // bridge, and it is on
	for _, a := range s.Addresses[:min(len(s.Addresses), maxAddresses)] {
		a = a.Unmap()
		family := byte(1)
		if a.Is6() {
			family = 2
		}
		b := a.AsSlice()
		tlv(lldpManagement, []byte{byte(len(b) + 1), family}, b, []byte{2}, binary.BigEndian.AppendUint32(nil, uint32(s.Ifindex)), []byte{0})
	}
	tlv(lldpEnd)
	return f
}

func parseLLDP(b []byte) (Neighbor, error) {
	n := Neighbor{Protocol: "lldp"}
	for i := 0; ; i++ {
		if len(b) < 2 {
			return n, malformed("LLDP without an end")
		}
		head := binary.BigEndian.Uint16(b)
		kind, size := int(head>>9), int(head&0x1ff)
		if len(b) < 2+size {
			return n, malformed("LLDP TLV %d of %d bytes, %d left", kind, size, len(b)-2)
		}
		v := b[2 : 2+size]
		b = b[2+size:]
		// The first three are mandatory, in this order.
		if want := []int{lldpChassis, lldpPort, lldpTTL}; i < len(want) && kind != want[i] {
			return n, malformed("LLDP TLV %d where %d belongs", kind, want[i])
		}
		switch kind {
		case lldpEnd:
			return n, nil
		case lldpChassis, lldpPort:
			if i > 1 || size < 2 {
				return n, malformed("LLDP TLV %d again or empty", kind)
			}
			if kind == lldpChassis {
				n.Chassis = lldpID(v, 4, 5)
			} else {
				n.Port = lldpID(v, 3, 4)
			}
		case lldpTTL:
			if i != 2 || size < 2 {
				return n, malformed("LLDP TTL again or short")
			}
			n.TTL = time.Duration(binary.BigEndian.Uint16(v)) * time.Second
		case lldpSystem:
			n.System = text(v)
		case lldpSystemText:
			n.Description = text(v)
		case lldpManagement:
			if size < 2 || int(v[0]) < 1 || 1+int(v[0]) > size {
				return n, malformed("LLDP management address of %d bytes", size)
			}
			if a := v[2 : 1+int(v[0])]; v[1] == 1 && len(a) == 4 || v[1] == 2 && len(a) == 16 {
				n.addAddress(a)
			}
		case lldpOrganisation:
			if size >= 6 && v[0] == 0 && v[1] == 0x80 && v[2] == 0xc2 && v[3] == 1 { // 802.1, port VLAN
				n.VLAN = int(binary.BigEndian.Uint16(v[4:]) & 0xfff)
			}
		}
	}
}

// lldpID reads an ID: a byte that says its kind, of which mac and address are not text.
func lldpID(v []byte, mac, address byte) string {
	id := v[1:]
	switch {
	case v[0] == mac && len(id) == 6:
		return net.HardwareAddr(id).String()
	case v[0] == address && len(id) > 1:
		if a, ok := netip.AddrFromSlice(id[1:]); ok {
			return a.String()
		}
	case v[0] == mac || v[0] == address:
		return fmt.Sprintf("%x", id)
	}
	return text(id)
}
