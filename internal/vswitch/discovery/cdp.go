package discovery

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"drover/internal/vswitch/inet"
)

// Types of fields of CDP, as tshark and Cisco's documents name them.
const (
	cdpDevice       = 0x01
	cdpAddresses    = 0x02
	cdpPort         = 0x03
	cdpCapabilities = 0x04
	cdpVersion      = 0x05
	cdpPlatform     = 0x06
	cdpNative       = 0x0a
	cdpManagement   = 0x16
)

var (
	cdpGroup = [6]byte{0x01, 0, 0x0c, 0xcc, 0xcc, 0xcc}
	cdpSNAP  = []byte{0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0}
	ip6SNAP  = []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd}
)

// CDP is the frame that an uplink sends, version 2.
func CDP(s Self) []byte {
	p := []byte{2, byte(TTL / time.Second), 0, 0}
	field := func(kind uint16, v []byte) {
		p = binary.BigEndian.AppendUint16(p, kind)
		p = binary.BigEndian.AppendUint16(p, uint16(4+len(v)))
		p = append(p, v...)
	}
	field(cdpDevice, []byte(text([]byte(s.System))))
	if len(s.Addresses) > 0 {
		addresses := s.Addresses[:min(len(s.Addresses), maxAddresses)]
		v := binary.BigEndian.AppendUint32(nil, uint32(len(addresses)))
		for _, a := range addresses {
			a = a.Unmap()
			b := a.AsSlice()
			if a.Is4() {
				v = append(v, 1, 1, 0xcc) // NLPID of IP
			} else {
				v = append(v, 2, 8)
				v = append(v, ip6SNAP...)
			}
			v = binary.BigEndian.AppendUint16(v, uint16(len(b)))
			v = append(v, b...)
		}
		field(cdpAddresses, v)
	}
	field(cdpPort, []byte(text([]byte(s.Port))))
	field(cdpCapabilities, []byte{0, 0, 0, 0x08}) // switch
	field(cdpPlatform, []byte(product))
	version := []byte(text([]byte(s.Description)))
	if (len(p)+len(version))%2 != 0 { // the checksum of odd lengths is a matter of dispute
		version = append(version, ' ')
	}
	field(cdpVersion, version)
	binary.BigEndian.PutUint16(p[2:], inet.Checksum(p))
	f := slices.Concat(cdpGroup[:], s.MAC[:])
	f = binary.BigEndian.AppendUint16(f, uint16(len(cdpSNAP)+len(p)))
	return slices.Concat(f, cdpSNAP, p)
}

func parseCDP(b []byte, length int) (Neighbor, error) {
	n := Neighbor{Protocol: "cdp"}
	if length > len(b) || length < len(cdpSNAP)+4 || !bytes.Equal(b[:len(cdpSNAP)], cdpSNAP) {
		return n, malformed("CDP of length %d in %d bytes, or another SNAP protocol", length, len(b))
	}
	b = b[len(cdpSNAP):length]
	if b[0] != 1 && b[0] != 2 {
		return n, malformed("CDP version %d", b[0])
	}
	if len(b)%2 == 0 && inet.Checksum(b) != 0 {
		return n, malformed("CDP with a wrong checksum")
	}
	n.TTL = time.Duration(b[1]) * time.Second
	var platform string
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return n, malformed("CDP field of %d bytes", len(b))
		}
		kind, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			return n, malformed("CDP field %#x of %d bytes, %d left", kind, size, len(b))
		}
		v := b[4:size]
		b = b[size:]
		switch kind {
		case cdpDevice:
			n.Chassis, n.System = text(v), text(v)
		case cdpPort:
			n.Port = text(v)
		case cdpVersion:
			n.Description = text(v)
		case cdpPlatform:
			platform = text(v)
		case cdpNative:
			if len(v) >= 2 {
				n.VLAN = int(binary.BigEndian.Uint16(v) & 0xfff)
			}
		case cdpAddresses, cdpManagement:
			if err := n.cdpAddresses(v); err != nil {
				return n, err
			}
		}
	}
	if n.System == "" && n.Port == "" {
		return n, malformed("CDP that names neither device nor port")
	}
	if platform != "" {
		n.Description = text([]byte(platform + ", " + n.Description))
	}
	return n, nil
}

func (n *Neighbor) cdpAddresses(v []byte) error {
	if len(v) < 4 {
		return malformed("CDP addresses of %d bytes", len(v))
	}
	count := binary.BigEndian.Uint32(v)
	v = v[4:]
	for ; count > 0 && len(v) > 0; count-- {
		if len(v) < 2 || len(v) < 2+int(v[1])+2 {
			return malformed("CDP address that ends early")
		}
		proto := v[2 : 2+int(v[1])]
		v = v[2+int(v[1]):]
		size := int(binary.BigEndian.Uint16(v))
		if len(v) < 2+size {
			return malformed("CDP address of %d bytes, %d left", size, len(v)-2)
		}
		a := v[2 : 2+size]
		v = v[2+size:]
		isIP4 := bytes.Equal(proto, []byte{0xcc}) && size == 4
		if isIP4 || bytes.Equal(proto, ip6SNAP) && size == 16 {
			n.addAddress(a)
		}
	}
	return nil
}
