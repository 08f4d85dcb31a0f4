package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func nameColumn(head string) column {
	return column{head: head, cell: func(_ time.Time, o object) table.Cell { return table.Text(o.GetMeta().GetName()) }}
}

func ageColumn() column {
	return column{head: "AGE", cell: func(now time.Time, o object) table.Cell {
		return table.Text(unit.Age(now, o.GetMeta().GetCreateTime()))
	}}
}

// labelsColumn is in all wide tables.
func labelsColumn() column {
	return column{head: "LABELS", wide: true, cell: func(_ time.Time, o object) table.Cell {
		return table.Text(pairs(o.GetMeta().GetLabels()))
	}}
}

func siteKind() *kind {
	return &kind{
		name: "site", plural: "sites", rank: 1, empty: &v1.Site{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Site.List(ctx, r)
			return pageOf(l.GetSites(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Site.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Site.Create(ctx, &v1.CreateSiteRequest{Site: o.(*v1.Site), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Site.Update(ctx, &v1.UpdateSiteRequest{Site: o.(*v1.Site), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Site.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Site.Watch(ctx, r)
			return changes(s, err, (*v1.SiteChange).GetSite, f)
		},
		columns: []column{
			nameColumn("NAME"),
			mark("HOSTS", func(s *v1.Site) table.Cell {
				st := s.GetStatus()
				colour := table.Plain
				if st.GetHostsReady() < st.GetHosts() {
					colour = table.Yellow
				}
				return table.Cell{Text: fmt.Sprintf("%d/%d ready", st.GetHostsReady(), st.GetHosts()), Colour: colour}
			}),
			num("VMS", func(s *v1.Site) string { return fmt.Sprint(s.GetStatus().GetVms()) }),
			col("TIME ZONE", func(s *v1.Site) string { return s.GetSpec().GetTimeZone() }),
			ageColumn(),
			col("DESCRIPTION", func(s *v1.Site) string { return s.GetSpec().GetDescription() }),
			labelsColumn(),
		},
	}
}

func hostKind() *kind {
	return &kind{
		name: "host", plural: "hosts", rank: 2, empty: &v1.Host{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Host.List(ctx, r)
			return pageOf(l.GetHosts(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Host.Get(ctx, &v1.GetRequest{Name: n}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Host.Update(ctx, &v1.UpdateHostRequest{Host: o.(*v1.Host), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Host.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Host.Watch(ctx, r)
			return changes(s, err, (*v1.HostChange).GetHost, f)
		},
		columns: []column{
			nameColumn("NAME"),
			col("SITE", func(h *v1.Host) string { return h.GetSpec().GetSite() }),
			mark("STATE", hostState),
			col("ACCEL", func(h *v1.Host) string { return h.GetStatus().GetAccelerator().GetName() }),
			col("VMS", func(h *v1.Host) string {
				if h.GetStatus().GetRepositoriesOnly() {
					return "none: repositories only"
				}
				return fmt.Sprintf("%d running of %d", h.GetStatus().GetVmsRunning(), h.GetStatus().GetVms())
			}),
			num("CPU", func(h *v1.Host) string {
				return fmt.Sprintf("%s of %d", unit.Percent(h.GetStatus().GetCpuLoad()), h.GetStatus().GetCpus())
			}),
			num("MEMORY FREE", func(h *v1.Host) string {
				return unit.Size(h.GetStatus().GetMemoryFreeBytes()) + " of " + unit.Size(h.GetStatus().GetMemoryBytes())
			}),
			ageColumn(),
			wide(col("VERSION", func(h *v1.Host) string { return h.GetStatus().GetVersion() })),
			wide(col("QEMU", func(h *v1.Host) string { return h.GetStatus().GetQemuVersion() })),
			wide(col("ADDRESS", func(h *v1.Host) string { return h.GetStatus().GetAddress() })),
			wide(col("NETWORKS", func(h *v1.Host) string {
				var names []string
				for _, n := range h.GetStatus().GetNetworks() {
					names = append(names, n.GetNetwork())
				}
				return strings.Join(names, ",")
			})),
			wide(col("OS", func(h *v1.Host) string { return h.GetStatus().GetOs() })),
			labelsColumn(),
		},
	}
}

func hostState(h *v1.Host) table.Cell {
	c := table.Cell{Text: unit.Word(h.GetStatus().GetPhase()), Colour: table.Green}
	switch {
	case h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_UNREACHABLE:
		c.Colour = table.Red
	case h.GetStatus().GetPhase() != v1.HostPhase_HOST_PHASE_READY:
		c.Colour = table.Yellow
	}
	if h.GetSpec().GetCordoned() {
		c.Text += ", cordoned"
		c.Colour = table.Yellow
	}
	return c
}

func networkKind() *kind {
	return &kind{
		name: "network", plural: "networks", alias: []string{"net"}, rank: 3, empty: &v1.Network{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Network.List(ctx, r)
			return pageOf(l.GetNetworks(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Network.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Network.Create(ctx, &v1.CreateNetworkRequest{Network: o.(*v1.Network), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Network.Update(ctx, &v1.UpdateNetworkRequest{Network: o.(*v1.Network), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Network.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Network.Watch(ctx, r)
			return changes(s, err, (*v1.NetworkChange).GetNetwork, f)
		},
		columns: []column{
			nameColumn("NAME"),
			col("SITES", func(n *v1.Network) string {
				if len(n.GetSpec().GetSites()) == 0 {
					return "all"
				}
				return strings.Join(n.GetSpec().GetSites(), ",")
			}),
			col("SEGMENT", segment),
			num("VNI", func(n *v1.Network) string { return fmt.Sprint(n.GetStatus().GetVni()) }),
			num("MTU", func(n *v1.Network) string { return fmt.Sprint(n.GetStatus().GetMtu()) }),
			col("PROFILE", func(n *v1.Network) string { return cmp.Or(n.GetSpec().GetProfile(), "default") }),
			col("PREFIXES", func(n *v1.Network) string { return strings.Join(n.GetSpec().GetPrefixes(), ",") }),
			num("HOSTS", func(n *v1.Network) string { return fmt.Sprint(len(n.GetStatus().GetHosts())) }),
			num("NICS", func(n *v1.Network) string { return fmt.Sprint(n.GetStatus().GetNics()) }),
			ageColumn(),
			col("DESCRIPTION", func(n *v1.Network) string { return n.GetSpec().GetDescription() }),
			wide(col("ON HOSTS", func(n *v1.Network) string { return strings.Join(n.GetStatus().GetHosts(), ",") })),
			labelsColumn(),
		},
	}
}

// segment says what carries a network: a VLAN, an overlay, or both.
func segment(n *v1.Network) string {
	var out []string
	if p := n.GetSpec().GetPhysical(); p != nil {
		vlan := "untagged"
		if p.GetVlan() != 0 {
			vlan = fmt.Sprintf("vlan %d", p.GetVlan())
		}
		if len(p.GetSiteVlans()) > 0 {
			vlan += "…"
		}
		if t := p.GetTeam(); t != "" && t != "default" {
			vlan += " on " + t
		}
		out = append(out, vlan)
	}
	if o := n.GetSpec().GetOverlay(); o != nil || len(out) == 0 {
		if o.GetEncrypted() {
			out = append(out, "encrypted overlay")
		} else {
			out = append(out, "overlay")
		}
	}
	return strings.Join(out, " + ")
}

func datastoreKind() *kind {
	return &kind{
		name: "datastore", plural: "datastores", alias: []string{"ds"}, rank: 4, empty: &v1.Datastore{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Datastore.List(ctx, r)
			return pageOf(l.GetDatastores(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Datastore.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Datastore.Create(ctx, &v1.CreateDatastoreRequest{Datastore: o.(*v1.Datastore), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Datastore.Update(ctx, &v1.UpdateDatastoreRequest{Datastore: o.(*v1.Datastore), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Datastore.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Datastore.Watch(ctx, r)
			return changes(s, err, (*v1.DatastoreChange).GetDatastore, f)
		},
		columns: []column{
			nameColumn("NAME"),
			col("HOST", func(d *v1.Datastore) string { return d.GetSpec().GetHost() }),
			mark("STATE", func(d *v1.Datastore) table.Cell {
				switch st := d.GetStatus(); {
				case !st.GetReady() && st.GetMessage() != "":
					return table.Cell{Text: "not ready: " + st.GetMessage(), Colour: table.Red}
				case !st.GetReady():
					return table.Cell{Text: "not ready", Colour: table.Yellow}
				case d.GetSpec().GetCordoned():
					return table.Cell{Text: "ready, cordoned", Colour: table.Yellow}
				}
				return table.Cell{Text: "ready", Colour: table.Green}
			}),
			num("FREE", func(d *v1.Datastore) string { return unit.Size(d.GetStatus().GetFreeBytes()) }),
			num("CAPACITY", func(d *v1.Datastore) string { return unit.Size(d.GetStatus().GetCapacityBytes()) }),
			num("PROVISIONED", func(d *v1.Datastore) string { return unit.Size(d.GetStatus().GetProvisionedBytes()) }),
			col("PATH", func(d *v1.Datastore) string { return d.GetSpec().GetPath() }),
			wide(col("FILE SYSTEM", func(d *v1.Datastore) string { return d.GetStatus().GetFilesystem() })),
			wide(ageColumn()),
			labelsColumn(),
		},
	}
}
