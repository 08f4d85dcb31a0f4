package frame

import (
	"net/netip"

	"drover/internal/vswitch/table"
)

// Env is what a description leaves out.
type Env struct {
	// MAC is the sender's.
	MAC table.MAC
	// IP4 and IP6 are the sender's addresses; zero: 0.0.0.0, and the link-local address of MAC.
	IP4, IP6 netip.Addr
	// MACOf finds the owner of an address in the sender's network. Nil or false: broadcast for IPv4 and a MAC that nobody has for IPv6.
	MACOf func(netip.Addr) (table.MAC, bool)
}

// Nobody is the destination of a packet whose address has no known owner: locally administered, never given to a port.
var Nobody = table.MAC{0x02, 0, 0, 0, 0xff, 0xfe}

func (e *Env) source(dst netip.Addr) netip.Addr {
	switch {
	case dst.Is4() && e.IP4.Is4():
		return e.IP4
	case dst.Is4():
		return netip.IPv4Unspecified()
	case e.IP6.IsValid() && !dst.IsLinkLocalUnicast() && !dst.IsLinkLocalMulticast():
		return e.IP6
	}
	return LinkLocal(e.MAC)
}

func (e *Env) macOf(a netip.Addr) table.MAC {
	if a.IsMulticast() {
		return groupMAC(a)
	}
	if a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return broadcast
	}
	if e.MACOf != nil {
		if m, ok := e.MACOf(a); ok {
			return m
		}
	}
	return Nobody
}

// packet is a frame in the making.
type packet struct {
	dst       table.MAC
	src       table.MAC // of the Ethernet header
	etherType uint16
	payload   []byte
	whole     []byte // instead of the payload: a frame that is no Ethernet II
}

// Describe makes the frame that text describes, by the grammar above. Its error is an *Error.
func Describe(text string, env Env) ([]byte, error) {
	w := split(text)
	var to *table.MAC
	vlan, size := -1, 0
options:
	for w.err == nil {
		switch w.peek() {
		case "from":
			w.next++
			env.MAC = w.mac()
		case "to":
			w.next++
			m := w.mac()
			to = &m
		case "vlan":
			w.next++
			vlan = w.number(0, 4095)
		case "size":
			w.next++
			size = w.number(14, 9018)
		default:
			break options
		}
	}
	var p packet
	if w.err == nil {
		p = body(w, &env)
	}
	if w.err == nil && !w.done() {
		w.fail(0, "nothing more")
	}
	if w.err != nil {
		return nil, w.err
	}
	f := p.whole
	if f == nil {
		f = ethernet(p.dst, p.src, p.etherType, p.payload)
	}
	if to != nil {
		copy(f, to[:])
	}
	if size > len(f) {
		f = append(f, make([]byte, size-len(f))...)
	}
	if vlan >= 0 {
		f = Tag(f, 0x8100, uint16(vlan))
	}
	return f, nil
}

var kinds = []string{"arp", "tcp", "udp", "icmp", "icmp6", "nd", "dhcp", "dhcp6", "igmp", "mld", "bpdu", "pvst", "lldp", "cdp", "lacp", "pause", "vrrp", "hsrp", "glbp"}

func body(w *words, env *Env) packet {
	switch kind := w.choice(append([]string{"from", "to", "vlan", "size"}, kinds...)...); kind {
	case "arp":
		return describeARP(w, env)
	case "tcp", "udp":
		return describeStream(w, env, kind)
	case "icmp":
		return describePing(w, env, 4)
	case "icmp6":
		return describePing(w, env, 6)
	case "nd":
		return describeND(w, env)
	case "dhcp":
		return describeDHCP(w, env)
	case "dhcp6":
		return describeDHCP6(w, env)
	case "igmp", "mld":
		return describeGroup(w, env, kind)
	default:
		return describeControl(w, env, kind)
	}
}

func describeARP(w *words, env *Env) packet {
	var none table.MAC
	p := packet{dst: broadcast, src: env.MAC, etherType: typeARP}
	switch w.choice("who-has", "reply", "probe", "announce") {
	case "who-has":
		target := w.address(4)
		sender := env.source(target)
		if w.accept("tell") {
			sender = w.address(4)
		}
		p.payload = arp(1, env.MAC, sender, none, target)
	case "reply":
		sender := w.address(4)
		w.choice("is-at")
		p.payload = arp(2, w.mac(), sender, broadcast, sender)
	case "probe":
		p.payload = arp(1, env.MAC, netip.IPv4Unspecified(), none, w.address(4))
	case "announce":
		a := w.address(4)
		p.payload = arp(1, env.MAC, a, none, a)
	}
	return p
}

// carry is an IP packet on its way to the owner of dst.
func carry(env *Env, src, dst netip.Addr, protocol, ttl uint8, options, payload []byte) packet {
	p := packet{dst: env.macOf(dst), src: env.MAC, etherType: typeIP6, payload: ip(src, dst, protocol, ttl, options, payload)}
	if src.Is4() {
		p.etherType = typeIP4
	}
	return p
}

func describeStream(w *words, env *Env, kind string) packet {
	src, dst := w.path(env, 0, true)
	if src.port == 0 {
		src.port = 40000
	}
	if kind == "udp" {
		if dst.port == 0 {
			dst.port = 9
		}
		return carry(env, src.addr, dst.addr, protoUDP, 64, nil, udp(src.addr, dst.addr, src.port, dst.port, []byte("drover")))
	}
	if dst.port == 0 {
		dst.port = 80
	}
	var flags uint8
	for !w.done() && w.err == nil {
		switch w.choice("syn", "ack", "fin", "rst", "psh") {
		case "syn":
			flags |= tcpSYN
		case "ack":
			flags |= tcpACK
		case "fin":
			flags |= tcpFIN
		case "rst":
			flags |= tcpRST
		case "psh":
			flags |= tcpPSH
		}
	}
	if flags == 0 {
		flags = tcpSYN
	}
	return carry(env, src.addr, dst.addr, protoTCP, 64, nil, tcp(src.addr, dst.addr, src.port, dst.port, flags, nil))
}

func describePing(w *words, env *Env, family int) packet {
	src, dst := w.path(env, family, false)
	kind := "request"
	if !w.done() {
		kind = w.choice("request", "reply", "unreachable")
	}
	data := append([]byte{0, 1, 0, 1}, "drover"...)
	if kind == "unreachable" {
		data = make([]byte, 4)
	}
	if family == 4 {
		return carry(env, src.addr, dst.addr, protoICMP, 64, nil, icmp4(map[string]uint8{"request": 8, "reply": 0, "unreachable": 3}[kind], 0, data))
	}
	return carry(env, src.addr, dst.addr, protoICMP6, 64, nil,
		icmp6(src.addr, dst.addr, map[string]uint8{"request": 128, "reply": 129, "unreachable": 1}[kind], 0, data))
}
