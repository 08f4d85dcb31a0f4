package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/unwind"
)

// Marks on links carry the agent's tag, so that two agents in one namespace never take each other's.
const markNetwork = "network"

func (a *agent) tag() string { return shortHash(a.cfg.StateDir) }

func (a *agent) nicMark(uid, nic string) hostnet.Mark {
	return hostnet.Mark{Kind: hostnet.MarkNIC, ID: a.tag() + "/" + uid + "/" + nic}
}

func tapName(uid, nic string) string { return hostnet.Name("dt", uid+"/"+nic) }

func (a *agent) bridge(network string) hostnet.Bridge {
	id := a.tag() + "/" + network
	return hostnet.Bridge{Name: hostnet.Name("db", id), Mark: hostnet.Mark{Kind: markNetwork, ID: id}, MTU: a.mtu(network)}
}

const mtuDefault = 1500

func (a *agent) mtu(network string) int {
	if m := a.world.network(network).GetSpec().GetMtu(); m != 0 {
		return int(m)
	}
	return mtuDefault
}

func (a *agent) uplink(network string) (string, bool) {
	for _, n := range a.cfg.Networks {
		if n.Network == network {
			return n.Uplink, true
		}
	}
	return "", false
}

// ensureBridge makes a network's bridge with its uplink on it. It stays: the next VM needs it, and making and removing
// it would cut the others.
func (a *agent) ensureBridge(ctx context.Context, network string) (_ string, err error) {
	uplink, ok := a.uplink(network)
	if !ok {
		return "", notYet("network %s: this host has no uplink for it; start the agent with --network %s=DEVICE", network, network)
	}
	var u unwind.Stack
	defer func() {
		if err != nil {
			u.Undo(ctx, &err)
		}
	}()
	b := a.bridge(network)
	if err := a.net.EnsureBridge(&u, b); err != nil {
		return "", fmt.Errorf("network %s: %w", network, err)
	}
	if uplink != "" {
		if err := a.usable(uplink, b.Name); err != nil {
			return "", fmt.Errorf("network %s: %w", network, err)
		}
		if err := a.net.SetUp(uplink, true); err != nil {
			return "", fmt.Errorf("network %s: uplink %s: %w", network, uplink, err)
		}
		if err := a.net.Attach(&u, b.Name, uplink); err != nil {
			return "", fmt.Errorf("network %s: uplink %s: %w", network, uplink, err)
		}
	}
	u.Commit()
	return b.Name, nil
}

// usable says whether an uplink may go on a bridge. One that carries the machine's own addresses would lose them.
func (a *agent) usable(uplink, bridge string) error {
	links, err := a.net.Uplinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name != uplink || l.Master == bridge {
			continue
		}
		if addr := ownAddress(l); addr != "" {
			return notYet("uplink %s has the machine's address %s, which a bridge would cut off; name a NIC without addresses", uplink, addr)
		}
	}
	return nil
}

// ownAddress is an address that people gave to a link; those that it gives itself don't count.
func ownAddress(l hostnet.Uplink) string {
	for _, p := range l.Addresses {
		if !p.Addr().IsLinkLocalUnicast() {
			return p.String()
		}
	}
	return ""
}

// tap makes one NIC's TAP and puts it on its network.
func (m *machine) tap(ctx context.Context, u *unwind.Stack, spec *v1.VMSpec, n *v1.NICSpec) (*os.File, error) {
	hw, err := hardwareOf(spec)
	if err != nil {
		return nil, err
	}
	q := m.qemuNIC(n)
	row, ok := hw.Adapters[q.Adapter]
	if !ok {
		return nil, fmt.Errorf("NIC %s: adapter %s is not in hardware version %d", n.GetName(), q.Adapter, hw.Version)
	}
	bridge, err := m.a.ensureBridge(ctx, n.GetNetwork())
	if err != nil {
		return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
	}
	t := hostnet.TAP{
		Name: tapName(m.uid, n.GetName()), Mark: m.a.nicMark(m.uid, n.GetName()), VNetHdr: row.Offload,
		Owner: m.local.User, MTU: m.a.mtu(n.GetNetwork()),
	}
	if err := m.a.net.EnsureTAP(u, t); err != nil {
		return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
	}
	if err := m.a.net.Attach(u, bridge, t.Name); err != nil {
		return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
	}
	f, err := m.a.net.OpenTAP(t.Name, t.VNetHdr)
	if err != nil {
		return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
	}
	return f, nil
}

// removeTAP takes a NIC's TAP away.
func (m *machine) removeTAP(nic string) error {
	return m.a.net.Delete(tapName(m.uid, nic), m.a.nicMark(m.uid, nic))
}

// removeTAPs takes away all TAPs that carry this VM's mark.
func (m *machine) removeTAPs() error {
	prefix := m.a.tag() + "/" + m.uid + "/"
	links, err := m.a.net.Owned(hostnet.MarkNIC)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if strings.HasPrefix(l.Mark.ID, prefix) {
			errs = append(errs, m.a.net.Delete(l.Name, l.Mark))
		}
	}
	return errors.Join(errs...)
}

// networkFacts are what the manager hears of networks and NICs.
func (a *agent) networkFacts() (nets []*v1.HostNetwork, ups []*v1.Uplink, conds []*v1.Condition) {
	links, err := a.net.Uplinks()
	if err != nil {
		return nil, nil, []*v1.Condition{condition("UPLINKS_UNKNOWN", err.Error())}
	}
	have, addressed := map[string]bool{"": true}, map[string]string{}
	for _, l := range links {
		have[l.Name] = true
		if l.Master == "" {
			addressed[l.Name] = ownAddress(l)
		}
		ups = append(ups, &v1.Uplink{
			Name: l.Name, Mac: l.MAC.String(), LinkUp: l.Carrier, SpeedMbps: int64(l.SpeedMbit), Mtu: int32(l.MTU), Driver: l.Driver,
		})
	}
	for _, n := range a.cfg.Networks {
		if !have[n.Uplink] {
			conds = append(conds, condition("UPLINK_MISSING", fmt.Sprintf("network %s: there is no NIC %s", n.Network, n.Uplink)))
			continue
		}
		if addr := addressed[n.Uplink]; addr != "" {
			conds = append(conds, condition("UPLINK_IN_USE", fmt.Sprintf("network %s: uplink %s has the machine's address %s, which a bridge would cut off", n.Network, n.Uplink, addr)))
			continue
		}
		nets = append(nets, &v1.HostNetwork{Network: n.Network, Uplink: n.Uplink})
	}
	return nets, ups, conds
}

func condition(kind, message string) *v1.Condition {
	return &v1.Condition{Type: kind, Status: true, Reason: kind, Message: message}
}
