package lab

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"drover/internal/hostnet"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
)

const leaseTime = time.Hour

// maxLeases bounds what guests with ever new MACs can make the daemon remember.
const maxLeases = 16384

// Lease is an address that a guest was given.
type Lease struct {
	Site    string     `json:"site"`
	MAC     string     `json:"mac"`
	Address netip.Addr `json:"address"`
}

// dhcpServer answers guests on a site's router. An address once given stays with
// its MAC as long as the lab stands, also over a restart of the daemon.
type dhcpServer struct {
	site SiteNet
	mtu  int
	log  *slog.Logger
	conn *net.UDPConn
	file *os.File // leases, one "MAC ADDRESS" a line, appended
	wg   sync.WaitGroup
	warn sync.Once // a guest can cause what is warned of, and must not fill the log

	mu    sync.Mutex
	byMAC map[string]netip.Addr
	taken map[netip.Addr]bool
}

// newDHCP serves a site until close.
func newDHCP(t Topology, site SiteNet, mtu int, dir string, log *slog.Logger) (*dhcpServer, error) {
	d := &dhcpServer{
		site: site, mtu: mtu, log: log.With("site", site.Name),
		byMAC: map[string]netip.Addr{}, taken: map[netip.Addr]bool{},
	}
	fail := func(err error) (*dhcpServer, error) {
		if d.file != nil {
			d.file.Close()
		}
		return nil, fmt.Errorf("DHCP of site %s: %w", site.Name, err)
	}
	var err error
	d.file, err = os.OpenFile(filepath.Join(dir, "leases-"+site.Name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := d.restore(); err != nil {
		return fail(err)
	}
	node, err := t.Node(routerNode(site.Name))
	if err != nil {
		return fail(err)
	}
	n, err := hostnet.Open(node.Namespace)
	if err != nil {
		return fail(err)
	}
	defer n.Close()
	err = n.Do(func() (err error) {
		d.conn, err = server4.NewIPv4UDPConn(linkGuests, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort})
		return err
	})
	if err != nil {
		return fail(err)
	}
	d.wg.Go(d.serve)
	return d, nil
}

// restore reads leases given earlier. A line cut short by a crash is left out.
func (d *dhcpServer) restore() error {
	sc := bufio.NewScanner(d.file)
	for sc.Scan() {
		mac, addr, _ := strings.Cut(sc.Text(), " ")
		a, err := netip.ParseAddr(addr)
		if _, macErr := net.ParseMAC(mac); err == nil && macErr == nil && d.site.Guests.Contains(a) && !d.taken[a] {
			d.byMAC[mac], d.taken[a] = a, true
		}
	}
	return sc.Err()
}

func (d *dhcpServer) serve() {
	buf := make([]byte, 4096)
	for {
		n, _, err := d.conn.ReadFromUDP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			d.log.Error("DHCP server stopped reading: take the lab down and up", "err", err)
			return
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil {
			continue // guests may send anything
		}
		reply, to := d.answer(m)
		if reply == nil {
			continue
		}
		if _, err := d.conn.WriteToUDP(reply.ToBytes(), to); err != nil {
			d.warn.Do(func() { d.log.Warn("DHCP answer not sent", "mac", m.ClientHWAddr.String(), "err", err) })
		}
	}
}

// answer is nil for what a server stays silent on (RFC 2131, section 4.3).
func (d *dhcpServer) answer(m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, *net.UDPAddr) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != 6 || !m.GatewayIPAddr.IsUnspecified() {
		return nil, nil
	}
	self := gateway(d.site.Guests).Addr()
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
	kind := dhcpv4.MessageTypeOffer
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeRequest:
		if id := m.ServerIdentifier(); id != nil && !id.Equal(self.AsSlice()) {
			return nil, nil // it took another server's offer
		}
		kind = dhcpv4.MessageTypeAck
	default:
		return nil, nil
	}
	addr, ok := d.lease(m.ClientHWAddr)
	if !ok {
		d.warn.Do(func() { d.log.Warn("no address left for a guest", "mac", m.ClientHWAddr.String()) })
		return nil, nil
	}
	if kind == dhcpv4.MessageTypeAck {
		want := m.RequestedIPAddress()
		if want == nil {
			want = m.ClientIPAddr
		}
		if !want.Equal(addr.AsSlice()) {
			kind = dhcpv4.MessageTypeNak
		} else if !m.ClientIPAddr.IsUnspecified() && !m.IsBroadcast() {
			to.IP = m.ClientIPAddr
		}
	}
	reply, err := dhcpv4.NewReplyFromRequest(m,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self.AsSlice())))
	if err != nil {
		return nil, nil
	}
	if kind != dhcpv4.MessageTypeNak {
		reply.YourIPAddr = addr.AsSlice()
		reply.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(d.site.Guests.Bits(), 32)))
		reply.UpdateOption(dhcpv4.OptRouter(self.AsSlice()))
		reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
		reply.UpdateOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(uint16(d.mtu))})
	}
	return reply, to
}

// lease finds or makes the lease of a MAC and writes a new one down.
func (d *dhcpServer) lease(mac net.HardwareAddr) (netip.Addr, bool) {
	a, fresh, ok := d.pick(mac)
	if fresh {
		if _, err := fmt.Fprintf(d.file, "%s %s\n", mac, a); err != nil {
			d.log.Warn("lease not written down", "mac", mac.String(), "err", err)
		}
	}
	return a, ok
}

func (d *dhcpServer) pick(mac net.HardwareAddr) (a netip.Addr, fresh, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := mac.String()
	if a, ok := d.byMAC[key]; ok {
		return a, false, true
	}
	if len(d.byMAC) >= maxLeases {
		return a, false, false
	}
	for i := range uint32(poolSize) {
		if a = d.site.nthChoice(mac, i); !d.taken[a] {
			d.byMAC[key], d.taken[a] = a, true
			return a, true, true
		}
	}
	return netip.Addr{}, false, false
}

func (d *dhcpServer) leases() []Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Lease, 0, len(d.byMAC))
	for mac, a := range d.byMAC {
		out = append(out, Lease{Site: d.site.Name, MAC: mac, Address: a})
	}
	return out
}

func (d *dhcpServer) close() error {
	err := d.conn.Close()
	d.wg.Wait()
	return errors.Join(err, d.file.Close())
}
