package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func profileKind() *kind {
	return &kind{
		name: "profile", plural: "profiles", alias: []string{"port-profile"}, rank: 2, empty: &v1.PortProfile{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Profile.List(ctx, r)
			return pageOf(l.GetProfiles(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Profile.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Profile.Create(ctx, &v1.CreatePortProfileRequest{Profile: o.(*v1.PortProfile), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Profile.Update(ctx, &v1.UpdatePortProfileRequest{Profile: o.(*v1.PortProfile), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Profile.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Profile.Watch(ctx, r)
			return changes(s, err, (*v1.PortProfileChange).GetProfile, f)
		},
		columns: []column{
			nameColumn("NAME"),
			col("PARENT", func(p *v1.PortProfile) string { return p.GetSpec().GetParent() }),
			num("PORTS", func(p *v1.PortProfile) string { return fmt.Sprint(p.GetStatus().GetPorts()) }),
			col("GUARDS", func(p *v1.PortProfile) string { return guardWords(p.GetStatus().GetEffective()) }),
			col("VLANS", func(p *v1.PortProfile) string {
				return strings.Join(p.GetStatus().GetEffective().GetTrunk().GetVlans(), ",")
			}),
			col("LIMIT IN/OUT", func(p *v1.PortProfile) string {
				q := p.GetStatus().GetEffective().GetQos()
				if q.GetIn().GetLimitBps() <= 0 && q.GetOut().GetLimitBps() <= 0 {
					return ""
				}
				return bits(q.GetIn().GetLimitBps()) + "/" + bits(q.GetOut().GetLimitBps())
			}),
			ageColumn(),
			col("DESCRIPTION", func(p *v1.PortProfile) string { return p.GetSpec().GetDescription() }),
			wide(col("SECURITY", func(p *v1.PortProfile) string { return securityWords(p.GetStatus().GetEffective()) })),
			wide(col("PRIVATE", func(p *v1.PortProfile) string {
				e := p.GetStatus().GetEffective()
				if e.GetPrivateRole() <= v1.PrivateRole_PRIVATE_ROLE_NONE {
					return ""
				}
				return strings.TrimSuffix(unit.Word(e.GetPrivateRole())+fmt.Sprintf(" %d", e.GetCommunity()), " 0")
			})),
			labelsColumn(),
		},
	}
}

// guardWords are the guards that are on, or how many if they are all.
func guardWords(p *v1.PortProfileSpec) string {
	g := p.GetGuards()
	list := []struct {
		name string
		on   v1.Toggle
	}{
		{"ip", g.GetIpSource()}, {"arp", g.GetArp()}, {"nd", g.GetNd()}, {"dhcp-snooping", g.GetDhcpSnooping()}, {"dhcp-server", g.GetDhcpServer()},
		{"ra", g.GetRa()}, {"bpdu", g.GetBpdu()}, {"control", g.GetControl()}, {"virtual-router", g.GetVirtualRouter()},
	}
	var on []string
	for _, x := range list {
		if x.on == v1.Toggle_TOGGLE_ON {
			on = append(on, x.name)
		}
	}
	switch len(on) {
	case 0:
		return "none"
	case len(list):
		return "all"
	}
	return strings.Join(on, ",")
}

func securityWords(p *v1.PortProfileSpec) string {
	s := p.GetSecurity()
	var out []string
	for _, x := range []struct {
		name string
		on   v1.Toggle
	}{{"promiscuous", s.GetPromiscuous()}, {"forged-transmits", s.GetForgedTransmits()}, {"mac-changes", s.GetMacChanges()}} {
		if x.on == v1.Toggle_TOGGLE_ON {
			out = append(out, x.name)
		}
	}
	return strings.Join(out, ",")
}

// bits is a rate for people: 100 Mbit/s is "100M".
func bits(n int64) string {
	if n <= 0 {
		return "-"
	}
	for _, step := range []struct {
		size int64
		name string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= step.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(step.size)), ".0") + step.name
		}
	}
	return fmt.Sprint(n)
}

func portKind() *kind {
	return &kind{
		name: "port", plural: "ports", rank: 90, empty: &v1.Port{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Port.List(ctx, r)
			return pageOf(l.GetPorts(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Port.Get(ctx, &v1.GetRequest{Name: n}))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Port.Watch(ctx, r)
			return changes(s, err, (*v1.PortChange).GetPort, f)
		},
		columns: []column{
			nameColumn("PORT"),
			col("NETWORK", func(p *v1.Port) string { return p.GetSpec().GetNetwork() }),
			col("PROFILE", func(p *v1.Port) string { return p.GetSpec().GetProfile() }),
			mark("STATE", portState),
			col("HOST", func(p *v1.Port) string { return p.GetStatus().GetHost() }),
			col("UPLINK", func(p *v1.Port) string { return p.GetStatus().GetUplink() }),
			num("IN", func(p *v1.Port) string { return unit.Size(int64(p.GetStatus().GetCounters().GetInBytes())) }),
			num("OUT", func(p *v1.Port) string { return unit.Size(int64(p.GetStatus().GetCounters().GetOutBytes())) }),
			mark("DROPS", func(p *v1.Port) table.Cell {
				n := uint64(0)
				for _, d := range p.GetStatus().GetCounters().GetDrops() {
					n += d.GetPackets()
				}
				c := table.Cell{Text: fmt.Sprint(n)}
				if n > 0 {
					c.Colour = table.Yellow
				}
				return c
			}),
			wide(col("MAC", func(p *v1.Port) string { return p.GetSpec().GetMac() })),
			wide(col("ADDRESSES", func(p *v1.Port) string {
				var out []string
				for _, b := range p.GetStatus().GetBindings() {
					out = append(out, b.GetAddress())
				}
				slices.Sort(out)
				return strings.Join(out, ",")
			})),
			wide(col("DEVICE", func(p *v1.Port) string { return p.GetStatus().GetDevice() })),
		},
	}
}

func portState(p *v1.Port) table.Cell {
	st := p.GetStatus()
	switch {
	case p.GetSpec().GetLinkDown():
		return table.Cell{Text: "link down", Colour: table.Dim}
	case st.GetDevice() == "":
		return table.Cell{Text: "off", Colour: table.Dim}
	case !st.GetActive():
		for _, c := range st.GetConditions() {
			if c.GetStatus() {
				return table.Cell{Text: "not active: " + c.GetMessage(), Colour: table.Red}
			}
		}
		return table.Cell{Text: "not active", Colour: table.Red}
	case st.GetObservedGeneration() != st.GetGeneration():
		return table.Cell{Text: "active, changing", Colour: table.Yellow}
	}
	return table.Cell{Text: "active", Colour: table.Green}
}
