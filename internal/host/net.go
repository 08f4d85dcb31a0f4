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
	"drover/internal/vswitch/compile"
)

// tag is in the marks on links, so that two agents in one namespace never take each other's.
func (a *agent) tag() string { return shortHash(a.cfg.StateDir) }

func (a *agent) nicMark(uid, nic string) hostnet.Mark {
	return hostnet.Mark{Kind: hostnet.MarkNIC, ID: a.tag() + "/" + uid + "/" + nic}
}

func tapName(uid, nic string) string { return hostnet.Name("dt", uid+"/"+nic) }

// mtu is a network's MTU, for the TAP and the guest.
func (a *agent) mtu(network string) int {
	if n := a.world.network(network); n != nil {
		return compile.MTUOf(n)
	}
	return mtuEthernet
}

const mtuEthernet = 1500

// ownAddress is an address that people gave to a link; those that it gives itself don't count.
func ownAddress(l hostnet.Uplink) string {
	for _, p := range l.Addresses {
		if !p.Addr().IsLinkLocalUnicast() {
			return p.String()
		}
	}
	return ""
}

// tap makes one NIC's TAP and its port on the switch.
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
	t := hostnet.TAP{
		Name: tapName(m.uid, n.GetName()), Mark: m.a.nicMark(m.uid, n.GetName()), VNetHdr: row.Offload,
		Owner: m.local.User, MTU: m.a.mtu(n.GetNetwork()),
	}
	f, err := m.plugTAP(ctx, u, t, n)
	if err != nil {
		return nil, fmt.Errorf("NIC %s: %w", n.GetName(), err)
	}
	return f, nil
}

// plugTAP makes the TAP, plugs it in and opens it, in that order: nobody has it before its whole policy is in force.
func (m *machine) plugTAP(ctx context.Context, u *unwind.Stack, t hostnet.TAP, n *v1.NICSpec) (*os.File, error) {
	if err := m.a.net.EnsureTAP(u, t); err != nil {
		return nil, err
	}
	if err := m.a.net.SetNoQueue(t.Name); err != nil {
		return nil, err
	}
	l, err := m.a.net.Link(t.Name)
	if err != nil {
		return nil, err
	}
	p, err := newPort(m.uid, m.name(), t.Name, l.Index, n)
	if err != nil {
		return nil, err
	}
	if err := m.a.fabric.plug(ctx, u, p); err != nil {
		return nil, err
	}
	return m.a.net.OpenTAP(t.Name, t.VNetHdr)
}

// pluggedPorts are the ports of VMs that ran when the last agent ended.
func (a *agent) pluggedPorts() []*nicPort {
	links := map[string]int{}
	owned, err := a.net.Owned(hostnet.MarkNIC)
	if err != nil {
		a.log.Error("the TAPs of running VMs are not found", "err", err)
		return nil
	}
	for _, l := range owned {
		links[l.Mark.ID] = l.Index
	}
	var out []*nicPort
	for uid, m := range a.machines {
		run := m.local.Run
		if run == nil || run.Boot != a.boot {
			continue
		}
		for _, n := range run.spec().GetNics() {
			index := links[a.nicMark(uid, n.GetName()).ID]
			if index == 0 {
				continue
			}
			p, err := newPort(uid, m.name(), tapName(uid, n.GetName()), index, n)
			if err != nil {
				a.log.Error("a running VM's NIC is not put on the switch", "vm", m.name(), "nic", n.GetName(), "err", err)
				continue
			}
			out = append(out, p)
		}
	}
	return out
}

// holds says whether a port of the slot book is of a VM or uplink that is here.
func (a *agent) holds(key string) bool {
	kind, rest, _ := strings.Cut(key, "/")
	if kind != "port" {
		return true
	}
	uid, nic, _ := strings.Cut(rest, "/")
	m := a.machine(uid)
	return m != nil && nicSpec(m.vmSpec(), nic) != nil
}

// removeTAP takes a NIC's port and TAP away.
func (m *machine) removeTAP(ctx context.Context, nic string) error {
	if err := m.a.fabric.unplug(ctx, m.uid, nic); err != nil {
		return err
	}
	return m.a.net.Delete(tapName(m.uid, nic), m.a.nicMark(m.uid, nic))
}

// removeTAPs takes away all ports of this VM, and all TAPs that carry its mark.
func (m *machine) removeTAPs(ctx context.Context) error {
	errs := []error{m.a.fabric.unplugAll(ctx, m.uid)}
	prefix := m.a.tag() + "/" + m.uid + "/"
	links, err := m.a.net.Owned(hostnet.MarkNIC)
	if err != nil {
		return err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Mark.ID, prefix) {
			errs = append(errs, m.a.net.Delete(l.Name, l.Mark))
		}
	}
	return errors.Join(errs...)
}

func condition(kind, message string) *v1.Condition {
	return &v1.Condition{Type: kind, Status: true, Reason: kind, Message: message}
}
