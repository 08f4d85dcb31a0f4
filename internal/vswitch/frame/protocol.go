package frame

import (
	"encoding/binary"
	"net/netip"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
	allDHCP    = netip.MustParseAddr("ff02::1:2")
	allMLD     = netip.MustParseAddr("ff02::16")
	limited    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

func describeND(w *words, env *Env) packet {
	own := LinkLocal(env.MAC)
	send := func(src, dst netip.Addr, kind uint8, body []byte) packet {
		return carry(env, src, dst, protoICMP6, 255, nil, icmp6(src, dst, kind, 0, body))
	}
	switch w.choice("solicit", "advert", "rs", "ra", "redirect") {
	case "solicit":
		target := w.address(6)
		b := append(make([]byte, 4), target.AsSlice()...)
		return send(env.source(target), solicitedNode(target), 135, append(b, linkLayerOption(1, env.MAC)...))
	case "advert":
		target, mac := w.address(6), env.MAC
		if w.accept("is-at") {
			mac = w.mac()
		}
		b := append([]byte{0x20, 0, 0, 0}, target.AsSlice()...)
		return send(target, allNodes, 136, append(b, linkLayerOption(2, mac)...))
	case "rs":
		return send(own, allRouters, 133, append(make([]byte, 4), linkLayerOption(1, env.MAC)...))
	case "ra":
		// Hop limit 64, 30 min, no timers; the sender is the router.
		return send(own, allNodes, 134, append([]byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, linkLayerOption(1, env.MAC)...))
	case "redirect":
		target := w.address(6)
		b := append(make([]byte, 4), own.AsSlice()...)
		return send(own, allNodes, 137, append(b, target.AsSlice()...))
	}
	return packet{}
}

// describeDHCP makes messages of RFC 2131 with the options that tell their kind.
func describeDHCP(w *words, env *Env) packet {
	kinds := map[string]uint8{"discover": 1, "offer": 2, "request": 3, "ack": 5, "nak": 6, "release": 7}
	word := w.choice("discover", "request", "release", "offer", "ack", "nak")
	kind := kinds[word]
	server := kind == 2 || kind == 5 || kind == 6
	m := make([]byte, 236)
	m[0], m[1], m[2] = 1, 1, 6
	copy(m[4:], "drvr")
	m[10] = 0x80 // answer by broadcast
	copy(m[28:], env.MAC[:])
	options := []byte{0x63, 0x82, 0x53, 0x63, 53, 1, kind}
	src, dst := netip.IPv4Unspecified(), limited
	sport, dport := uint16(68), uint16(67)
	var a netip.Addr
	if word != "discover" && word != "nak" {
		a = w.address(4)
	}
	switch {
	case server:
		m[0] = 2
		src, sport, dport = env.source(dst), 67, 68
		if a.IsValid() {
			copy(m[16:], a.AsSlice())
			options = append(options, 51, 4, 0, 0, 0x0e, 0x10)
		}
		options = append(options, 54, 4)
		options = append(options, src.AsSlice()...)
	case word == "release":
		copy(m[12:], a.AsSlice())
		src = a
	case word == "request":
		options = append(append(options, 50, 4), a.AsSlice()...)
	}
	m = append(append(m, options...), 255)
	if len(m) < 300 { // what relays of old expect (RFC 1542)
		m = append(m, make([]byte, 300-len(m))...)
	}
	return carry(env, src, dst, protoUDP, 64, nil, udp(src, dst, sport, dport, m))
}

// describeDHCP6 makes messages of RFC 8415 with the identifier of the sender alone.
func describeDHCP6(w *words, env *Env) packet {
	kinds := map[string]uint8{"solicit": 1, "advertise": 2, "request": 3, "reply": 7}
	word := w.choice("solicit", "request", "advertise", "reply")
	id := append([]byte{0, 3, 0, 1}, env.MAC[:]...)
	option := byte(1)
	src, dst := LinkLocal(env.MAC), allDHCP
	sport, dport := uint16(546), uint16(547)
	if word == "advertise" || word == "reply" {
		option, dst, sport, dport = 2, allNodes, 547, 546
	}
	m := append([]byte{kinds[word], 'd', 'r', 'v', 0, option, 0, byte(len(id))}, id...)
	return carry(env, src, dst, protoUDP, 64, nil, udp(src, dst, sport, dport, m))
}

// routerAlert is the IPv4 option of RFC 2113, and the hop-by-hop header with that of RFC 2711 for MLD.
func routerAlert(v4 bool) []byte {
	if v4 {
		return []byte{0x94, 4, 0, 0}
	}
	return []byte{protoICMP6, 0, 5, 2, 0, 0, 1, 0}
}

// describeGroup makes IGMPv3 (RFC 3376) and MLDv2 (RFC 3810) messages.
func describeGroup(w *words, env *Env, kind string) packet {
	v4 := kind == "igmp"
	family, src, dst := 6, LinkLocal(env.MAC), allMLD
	if v4 {
		family, dst = 4, netip.AddrFrom4([4]byte{224, 0, 0, 22})
		src = env.source(dst)
	}
	word := w.choice("join", "leave", "query")
	var body []byte
	if word == "query" {
		dst = allNodes
		if v4 {
			dst = netip.AddrFrom4([4]byte{224, 0, 0, 1})
		}
		group := make([]byte, dst.BitLen()/8)
		if v4 {
			body = append(append([]byte{0x11, 100, 0, 0}, group...), 2, 125, 0, 0)
		} else {
			body = append(append([]byte{39, 16, 0, 0}, group...), 2, 125, 0, 0)
		}
	} else {
		group := w.address(family)
		if w.err == nil && !group.IsMulticast() {
			w.fail(1, "a multicast group such as %s", map[bool]string{true: "239.1.1.1", false: "ff05::1234"}[v4])
		}
		record := byte(4) // change to exclude nothing: join
		if word == "leave" {
			record = 3
		}
		body = append([]byte{0, 0, 0, 1, record, 0, 0, 0}, group.AsSlice()...)
	}
	if v4 {
		var p []byte
		if word == "query" {
			p = append([]byte(nil), body...)
		} else {
			p = append([]byte{0x22, 0, 0, 0}, body...)
		}
		binary.BigEndian.PutUint16(p[2:], 0)
		binary.BigEndian.PutUint16(p[2:], inet.Checksum(p))
		return carry(env, src, dst, protoIGMP, 1, routerAlert(true), p)
	}
	t := uint8(143)
	if word == "query" {
		t = 130
	}
	return carry(env, src, dst, protoICMP6, 1, routerAlert(false), icmp6(src, dst, t, 0, body))
}

func describeControl(w *words, env *Env, kind string) packet {
	slow := table.MAC{1, 0x80, 0xc2, 0, 0, 2}
	cisco := table.MAC{1, 0, 0x0c, 0xcc, 0xcc, 0xcc}
	switch kind {
	case "bpdu":
		// A root bridge's configuration BPDU of 802.1D behind LLC 42.42.03, padded to 60 bytes.
		b := append([]byte{0x42, 0x42, 3}, bpdu(env.MAC)...)
		f := ethernet(table.MAC{1, 0x80, 0xc2, 0, 0, 0}, env.MAC, uint16(len(b)), b)
		return packet{whole: append(f, make([]byte, 60-len(f))...)}
	case "pvst":
		b := append(bpdu(env.MAC), 0, 0, 0, 0, 2, 0, 1)
		return packet{whole: snap(table.MAC{1, 0, 0x0c, 0xcc, 0xcc, 0xcd}, env.MAC, [3]byte{0, 0, 0x0c}, 0x010b, b)}
	case "lldp":
		b := append([]byte{2, 7, 4}, env.MAC[:]...)
		b = append(append(b, 4, 7, 3), env.MAC[:]...)
		b = append(b, 6, 2, 0, 120, 0, 0)
		return packet{dst: table.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, src: env.MAC, etherType: typeLLDP, payload: b}
	case "cdp":
		b := append([]byte{2, 180, 0, 0, 0, 1, 0, 10}, "drover"...)
		binary.BigEndian.PutUint16(b[2:], inet.Checksum(b))
		return packet{whole: snap(cisco, env.MAC, [3]byte{0, 0, 0x0c}, 0x2000, b)}
	case "lacp":
		b := make([]byte, 110)
		b[0], b[1], b[2], b[3] = 1, 1, 1, 20
		copy(b[6:], env.MAC[:])
		b[22], b[23], b[42], b[43] = 2, 20, 3, 16
		return packet{dst: slow, src: env.MAC, etherType: typeSlow, payload: b}
	case "pause":
		return packet{dst: table.MAC{1, 0x80, 0xc2, 0, 0, 1}, src: env.MAC, etherType: typeMAC, payload: append([]byte{0, 1, 0xff, 0xff}, make([]byte, 42)...)}
	}
	return describeRedundancy(w, env, kind)
}

func describeRedundancy(w *words, env *Env, kind string) packet {
	src := env.source(netip.AddrFrom4([4]byte{224, 0, 0, 18}))
	switch kind {
	case "vrrp":
		id := 1
		if !w.done() {
			id = w.number(1, 255)
		}
		virtual := src.As4()
		virtual[3] = 1
		p := append([]byte{0x31, byte(id), 255, 1, 0, 100, 0, 0}, virtual[:]...)
		dst := netip.AddrFrom4([4]byte{224, 0, 0, 18})
		binary.BigEndian.PutUint16(p[6:], inet.TransportChecksum(src, dst, protoVRRP, p))
		f := carry(env, src, dst, protoVRRP, 255, nil, p)
		f.src = table.MAC{0, 0, 0x5e, 0, 1, byte(id)}
		return f
	case "hsrp":
		dst := netip.AddrFrom4([4]byte{224, 0, 0, 2})
		virtual := src.As4()
		virtual[3] = 1
		b := append([]byte{0, 0, 16, 3, 10, 100, 0, 0, 'c', 'i', 's', 'c', 'o', 0, 0, 0}, virtual[:]...)
		return carry(env, src, dst, protoUDP, 1, nil, udp(src, dst, 1985, 1985, b))
	case "glbp":
		dst := netip.AddrFrom4([4]byte{224, 0, 0, 102})
		return carry(env, src, dst, protoUDP, 255, nil, udp(src, dst, 3222, 3222, append([]byte{1, 0, 0, 1, 0, 0}, env.MAC[:]...)))
	}
	return packet{}
}

// bpdu is that of a bridge that takes itself for the root (802.1D-2004, 9.3.1).
func bpdu(m table.MAC) []byte {
	id := append([]byte{0x80, 0}, m[:]...)
	b := append([]byte{0, 0, 0, 0, 0}, id...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, id...)
	return append(b, 0x80, 1, 0, 0, 20, 0, 2, 0, 15, 0)
}
