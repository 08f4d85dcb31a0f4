package vswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// tcRedirect is TC_ACT_REDIRECT of linux/pkt_cls.h.
const tcRedirect = 7

// vnetHeader is the size of struct virtio_net_hdr of linux/virtio_net.h.
const vnetHeader = 10

// plug is a TAP with the test as its guest, or as the wire behind an uplink.
type plug struct {
	t       testing.TB
	file    *os.File
	name    string
	ifindex uint32
}

// bed is a datapath with guests.
type bed struct {
	t     testing.TB
	net   *hostnet.Net
	d     *Datapath
	want  *table.Tables
	plugs map[string]*plug
}

// testBed makes a namespace with a datapath. Networks and ports are added to want.
func testBed(t testing.TB, suffix string) *bed {
	t.Helper()
	n := testNet(t, suffix)
	b := &bed{t: t, net: n, want: table.New(), plugs: map[string]*plug{}}
	b.d = testDatapath(t, n, testBPF(t)+"/d")
	b.want.Networks[7] = table.Network{Flags: table.NetworkOverlay, MTU: 1500}
	return b
}

func (b *bed) plug(id string, kind Kind) *plug {
	b.t.Helper()
	name := hostnet.Name("dt", id)
	must(b.t, b.net.EnsureTAP(nil, hostnet.TAP{Name: name, VNetHdr: true, Mark: hostnet.Mark{Kind: "test", ID: id}}))
	file, err := b.net.OpenTAP(name, true)
	must(b.t, err)
	b.t.Cleanup(func() { file.Close() })
	must(b.t, hostnet.SetOffload(file, true))
	l, err := b.net.Link(name)
	must(b.t, err)
	p := &plug{t: b.t, file: file, name: name, ifindex: uint32(l.Index)}
	must(b.t, b.d.Attach(b.t.Context(), Device{Ifindex: l.Index, Name: name, Kind: kind}))
	b.plugs[id] = p
	return p
}

// port plugs a guest into network 7; change may be nil.
func (b *bed) port(id string, i int, change func(*table.Port)) *plug {
	b.t.Helper()
	p := b.plug(id, KindPort)
	row := table.Port{Slot: uint32(i), Net: 7, MAC: mac(i), MTU: 1500, DSCP: table.Leave, CoS: table.Leave}
	if change != nil {
		change(&row)
	}
	b.want.Ports[p.ifindex] = row
	if row.Net != 0 {
		b.join(p, row.Net, row.MAC, 0)
	}
	return p
}

// join makes p a member of a network, registered there.
func (b *bed) join(p *plug, network uint32, mac table.MAC, vid uint16) {
	n := b.want.Networks[network]
	b.want.FDB[table.FDBKey{Net: network, MAC: mac}] = table.FDBEntry{Target: p.ifindex, Place: table.PlaceLocal, VID: vid}
	b.want.Members[table.MemberKey{Net: network, Row: n.Members}] = table.Member{Target: p.ifindex, Place: table.PlaceLocal, VID: vid}
	n.Members++
	b.want.Networks[network] = n
}

func (b *bed) member(p *plug, flags table.MemberFlag) {
	for k, m := range b.want.Members {
		if m.Target == p.ifindex {
			m.Flags = flags
			b.want.Members[k] = m
		}
	}
}

func (b *bed) apply() {
	b.t.Helper()
	must(b.t, b.d.Apply(b.t.Context(), b.want))
}

// dropped is how often frames that came in by a slot were dropped for a reason.
func (b *bed) dropped(slot uint32, r table.Reason) uint64 {
	b.t.Helper()
	c, err := b.d.Counters([]uint32{slot})
	must(b.t, err)
	return c[slot].Drops[r].Packets
}

// refused sends a frame and wants it dropped for a reason.
func (b *bed) refused(p *plug, slot uint32, frame []byte, r table.Reason) {
	b.t.Helper()
	before := b.dropped(slot, r)
	p.send(frame)
	if got := b.dropped(slot, r) - before; got != 1 {
		c, _ := b.d.Counters([]uint32{slot})
		b.t.Errorf("dropped %d times for %v, want once; all drops: %v", got, r, c[slot].Drops)
	}
}

// send gives the kernel a frame; it was forwarded when send returns.
func (p *plug) send(frame []byte) { p.sendAs(make([]byte, vnetHeader), frame) }

func (p *plug) sendAs(header, frame []byte) {
	p.t.Helper()
	if _, err := p.file.Write(append(bytes.Clone(header), frame...)); err != nil {
		p.t.Fatalf("send by %s: %v", p.name, err)
	}
}

// poll returns the next frame that a test made, with its virtio header, or nil. The kernel forwards in the sender's own system call, so nothing is waited for long.
func (p *plug) poll(wait time.Duration) (header, frame []byte) {
	p.t.Helper()
	buf := make([]byte, 70000)
	must(p.t, p.file.SetReadDeadline(time.Now().Add(wait)))
	for {
		n, err := p.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		must(p.t, err)
		frame = buf[vnetHeader:n]
		// The namespace's own kernel may speak on an uplink.
		if len(frame) > 12 && (frame[6] == 2 && frame[7] == 0 || frame[6] == 0xee) {
			return buf[:vnetHeader], frame
		}
	}
}

func (p *plug) gets(want []byte) {
	p.t.Helper()
	_, got := p.poll(time.Second)
	if !bytes.Equal(got, want) {
		p.t.Fatalf("%s got\n%x\nwant\n%x", p.name, got, want)
	}
}

func (p *plug) getsNothing() {
	p.t.Helper()
	if _, got := p.poll(20 * time.Millisecond); got != nil {
		p.t.Fatalf("%s got %x", p.name, got)
	}
}

var (
	everybody = table.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	outside   = table.MAC{0xee, 1, 1, 1, 1, 1}
)

// raw is a frame of no protocol that guards know.
func raw(dst, src table.MAC, n int) []byte {
	f := append(append(append([]byte{}, dst[:]...), src[:]...), 0x88, 0xb6)
	for i := range n {
		f = append(f, byte(i))
	}
	return f
}

// tagged puts a tag into a frame.
func tagged(frame []byte, proto, tci uint16) []byte {
	f := append(bytes.Clone(frame[:12]), 0, 0, 0, 0)
	binary.BigEndian.PutUint16(f[12:], proto)
	binary.BigEndian.PutUint16(f[14:], tci)
	return append(f, frame[12:]...)
}

func packet(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...))
	return buf.Bytes()
}

func udp4(t testing.TB, dst, src table.MAC, to, from net.IP, dport, sport uint16, payload []byte) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from, DstIP: to}
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	must(t, u.SetNetworkLayerForChecksum(ip))
	return packet(t, &layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv4}, ip, u, gopacket.Payload(payload))
}

func tcp4(t testing.TB, dst, src table.MAC, payload []byte) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
	tcp := &layers.TCP{SrcPort: 1, DstPort: 2, ACK: true, Window: 1000}
	must(t, tcp.SetNetworkLayerForChecksum(ip))
	return packet(t, &layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv4}, ip, tcp, gopacket.Payload(payload))
}

func TestForward(t *testing.T) {
	b := testBed(t, "fwd")
	a, c := b.port("a", 1, nil), b.port("c", 2, nil)
	down := b.port("d", 3, func(p *table.Port) { p.Flags = table.PortDown })
	b.apply()

	frame := raw(mac(2), mac(1), 60)
	a.send(frame)
	c.gets(frame)
	a.getsNothing()
	b.refused(a, 1, raw(mac(77), mac(1), 60), table.DropUnregistered)
	b.refused(a, 1, raw(mac(1), mac(1), 60), table.DropHairpin)
	b.refused(a, 1, raw(mac(3), mac(1), 60), table.DropPortDown)
	b.refused(a, 1, raw(mac(2), table.MAC{3}, 60), table.DropSourceMulticast)
	b.refused(a, 1, raw(mac(2), mac(1), 1501), table.DropMTU)
	b.refused(a, 1, tagged(frame, 0x8100, 5), table.DropTagged)
	b.refused(a, 1, tagged(frame, 0x8100, 0), table.DropTagged)
	b.refused(a, 1, tagged(frame, 0x88a8, 5), table.DropTagged)
	b.refused(a, 1, tagged(frame, 0x9100, 5), table.DropTagged)
	b.refused(a, 1, tagged(tagged(frame, 0x8100, 5), 0x8100, 6), table.DropDoubleTag)
	b.refused(down, 3, raw(mac(2), mac(3), 60), table.DropPortDown)
	c.getsNothing()
	full := raw(mac(2), mac(1), 1500)
	a.send(full)
	c.gets(full)

	delete(b.want.Networks, 7)
	b.want.Members = map[table.MemberKey]table.Member{}
	b.apply()
	b.refused(a, 1, frame, table.DropNetwork)

	got, err := b.d.Counters([]uint32{1, 2, 3})
	must(t, err)
	if n := got[2].OutPackets; n != 2 {
		t.Errorf("%d frames were counted as delivered, want 2", n)
	}
	if n, want := got[2].OutBytes, uint64(74+1514); n != want {
		t.Errorf("%d bytes were counted as delivered, want %d", n, want)
	}
	if n := got[1].InPackets; n != 13 {
		t.Errorf("%d frames were counted from the guest, want 13", n)
	}
	if n := got[3].InPackets; n != 0 {
		t.Errorf("%d frames were counted from a port that is down, want 0", n)
	}
}

// TestUnmarked wants nothing to reach a guest that did not go through the datapath.
func TestUnmarked(t *testing.T) {
	b := testBed(t, "unm")
	a := b.port("a", 1, nil)
	b.apply()
	must(t, b.net.Do(func() error {
		s, err := packetSocket(int(a.ifindex))
		if err != nil {
			return err
		}
		defer s.Close()
		if _, err = s.Write(raw(mac(1), mac(9), 60)); errors.Is(err, unix.ENOBUFS) {
			return nil // so the kernel tells of a drop
		}
		return err
	}))
	a.getsNothing()
	if n := b.dropped(1, table.DropUnmarked); n == 0 {
		t.Error("the frame is not counted as UNMARKED")
	}
}

func TestTrunk(t *testing.T) {
	b := testBed(t, "trunk")
	b.want.Networks[8] = table.Network{Flags: table.NetworkOverlay, MTU: 1500}
	trunk := b.port("t", 1, func(p *table.Port) { p.Flags = table.PortTrunk })
	a := b.port("a", 2, nil)
	c := b.port("c", 3, func(p *table.Port) { p.Net = 8 })
	b.join(trunk, 8, mac(1), 20)
	last := b.port("l", 4, func(p *table.Port) { p.Net = 8 })
	b.want.Trunks[table.TrunkKey{Ifindex: trunk.ifindex, VID: 20}] = 8
	b.apply()

	plain, inner := raw(mac(2), mac(1), 60), raw(mac(3), mac(1), 60)
	trunk.send(plain) // the native network
	a.gets(plain)
	trunk.send(tagged(inner, 0x8100, 20))
	c.gets(inner)
	back := raw(mac(1), mac(3), 60)
	c.send(back)
	trunk.gets(tagged(back, 0x8100, 20))
	native := raw(mac(1), mac(2), 60)
	a.send(native)
	trunk.gets(native)
	all := raw(everybody, mac(3), 60)
	c.send(all)
	trunk.gets(tagged(all, 0x8100, 20))
	last.gets(all) // behind the trunk in the list, and yet without its tag
	a.getsNothing()
	b.refused(trunk, 1, inner, table.DropUnregistered)
	b.refused(trunk, 1, tagged(plain, 0x8100, 20), table.DropUnregistered)
	b.refused(trunk, 1, tagged(inner, 0x8100, 21), table.DropVLAN)
	b.refused(trunk, 1, tagged(inner, 0x8100, 0), table.DropTagged)
	b.refused(trunk, 1, tagged(inner, 0x88a8, 20), table.DropTagged)
	b.refused(trunk, 1, tagged(inner, 0x9100, 20), table.DropTagged)
	b.refused(trunk, 1, tagged(tagged(inner, 0x8100, 20), 0x8100, 20), table.DropDoubleTag)
	b.refused(trunk, 1, tagged(tagged(inner, 0x8100, 20), 0x8100, 0), table.DropDoubleTag)

	// BPF_PROG_TEST_RUN leaves tags in the frame: they must mean the same.
	if action, out, err := b.d.Try(KindPort, int(trunk.ifindex), tagged(inner, 0x8100, 20)); err != nil || action != tcRedirect || !bytes.Equal(out, inner) {
		t.Errorf("with the tag in the frame: action %d, frame %x, %v", action, out, err)
	}
	before := b.dropped(1, table.DropMalformed)
	if action, _, err := b.d.Try(KindPort, int(trunk.ifindex), tagged(raw(mac(3), mac(1), 0), 0x8100, 20)[:16]); err != nil || action != tcShot {
		t.Errorf("half a tag: action %d, %v", action, err)
	}
	if n := b.dropped(1, table.DropMalformed) - before; n != 1 {
		t.Errorf("half a tag is not MALFORMED")
	}

	row := b.want.Ports[trunk.ifindex]
	row.Net = 0
	b.want.Ports[trunk.ifindex] = row
	b.apply()
	b.refused(trunk, 1, plain, table.DropVLAN)
}

// TestSegments wants a frame of several segments to arrive whole, with its checksum still to be made, and its segments held against the MTU.
func TestSegments(t *testing.T) {
	b := testBed(t, "gso")
	a, c := b.port("a", 1, nil), b.port("c", 2, nil)
	trunk := b.port("t", 3, func(p *table.Port) { p.Net, p.Flags = 0, table.PortTrunk })
	b.join(trunk, 7, mac(3), 30)
	b.want.Trunks[table.TrunkKey{Ifindex: trunk.ifindex, VID: 30}] = 7
	b.apply()

	make4 := func(dst, src table.MAC, size uint16) (header, frame []byte) {
		return gsoHeader(1, size), tcp4(t, dst, src, make([]byte, 60000))
	}
	header, frame := make4(mac(2), mac(1), 1460)
	a.sendAs(header, frame)
	got, whole := c.poll(time.Second)
	if !bytes.Equal(whole, frame) {
		t.Fatalf("%d bytes arrived, want all %d of the frame as it was", len(whole), len(frame))
	}
	if got[0]&1 == 0 || got[1] != 1 || binary.LittleEndian.Uint16(got[4:]) != 1460 || binary.LittleEndian.Uint16(got[6:]) != 34 || binary.LittleEndian.Uint16(got[8:]) != 16 {
		t.Errorf("virtio header %x: want segments of 1460 and a checksum to make at 34+16", got)
	}

	header, frame = make4(mac(3), mac(1), 1460)
	a.sendAs(header, frame)
	got, whole = trunk.poll(time.Second)
	if want := tagged(frame, 0x8100, 30); !bytes.Equal(whole, want) {
		t.Fatalf("%d bytes arrived behind the trunk, want %d", len(whole), len(want))
	}
	if got[1] != 1 || binary.LittleEndian.Uint16(got[6:]) != 38 {
		t.Errorf("virtio header %x behind the trunk: want a checksum to make at 38", got)
	}

	header, frame = make4(mac(1), mac(3), 1460)
	binary.LittleEndian.PutUint16(header[6:], 38) // the guest has its tag in the frame
	binary.LittleEndian.PutUint16(header[2:], 58)
	trunk.sendAs(header, tagged(frame, 0x8100, 30))
	got, whole = a.poll(time.Second)
	if !bytes.Equal(whole, frame) {
		t.Fatalf("%d bytes arrived from the trunk, want %d", len(whole), len(frame))
	}
	if got[1] != 1 || binary.LittleEndian.Uint16(got[6:]) != 34 {
		t.Errorf("virtio header %x from the trunk: want a checksum to make at 34", got)
	}

	before := b.dropped(1, table.DropMTU)
	header, frame = make4(mac(2), mac(1), 1461)
	a.sendAs(header, frame)
	if n := b.dropped(1, table.DropMTU) - before; n != 1 {
		t.Errorf("segments of 1501 bytes were dropped %d times for the MTU, want once", n)
	}
}

// gsoHeader is a virtio header of TCP (kind 1: over IPv4) in segments.
func gsoHeader(kind byte, size uint16) []byte {
	h := make([]byte, vnetHeader)
	h[0], h[1] = 1, kind // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.LittleEndian.PutUint16(h[2:], 54)
	binary.LittleEndian.PutUint16(h[4:], size)
	binary.LittleEndian.PutUint16(h[6:], 34)
	binary.LittleEndian.PutUint16(h[8:], 16)
	return h
}

// TestMarks wants class and priority on what the guest sends.
func TestMarks(t *testing.T) {
	b := testBed(t, "marks")
	a := b.port("a", 1, func(p *table.Port) {
		p.Flags = table.PortMark | table.PortPriority
		p.DSCP, p.Priority = 46, 0x10005
	})
	c := b.port("c", 2, nil)
	b.apply()

	frame := udp4(t, mac(2), mac(1), net.IP{10, 0, 0, 2}, net.IP{10, 0, 0, 1}, 5, 6, []byte("hello"))
	frame[15] = 1 // ECN must stay; the checksum is put right by hand
	binary.BigEndian.PutUint16(frame[24:], binary.BigEndian.Uint16(frame[24:])-1)
	a.send(frame)
	_, got := c.poll(time.Second)
	if len(got) < 34 || got[15] != 46<<2|1 {
		t.Fatalf("got %x: want DSCP 46 and ECN 1", got)
	}
	if sum := ipSum(got[14:34]); sum != 0xffff {
		t.Errorf("the IPv4 header's checksum is wrong: %#x", sum)
	}

	ip := &layers.IPv6{Version: 6, HopLimit: 64, TrafficClass: 3, FlowLabel: 0xabcde, NextHeader: layers.IPProtocolNoNextHeader, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
	src, dst := mac(1), mac(2)
	six := packet(t, &layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv6}, ip)
	a.send(six)
	_, got = c.poll(time.Second)
	if len(got) < 54 || binary.BigEndian.Uint32(got[14:]) != 6<<28|(46<<2|3)<<20|0xabcde {
		t.Errorf("got %x: want traffic class %#x and the flow label as it was", got, 46<<2|3)
	}
	action, after := b.context(a, frame)
	if action != tcRedirect || after[8] != 0x10005 || after[skbMark] != table.Mark {
		t.Errorf("action %d, priority %#x, mark %#x", action, after[8], after[skbMark])
	}
}

// context runs port_in on a frame and returns what became of its __sk_buff.
func (b *bed) context(p *plug, frame []byte) (action uint32, after skb) {
	b.t.Helper()
	in := skb{skbIfindex: p.ifindex}
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &in, ContextOut: &after}
	must(b.t, b.net.Do(func() (err error) {
		action, err = b.d.objs.PortIn.Run(&opts)
		return err
	}))
	return action, after
}

// packetSocket opens a packet socket that sends by a device of the thread's namespace.
func packetSocket(ifindex int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

func ipSum(h []byte) uint32 {
	var sum uint32
	for i := 0; i+1 < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}
