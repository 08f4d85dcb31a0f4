package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func vmKind() *kind {
	return &kind{
		name: "vm", plural: "vms", rank: 10, empty: &v1.VM{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.VM.List(ctx, r)
			return pageOf(l.GetVms(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.VM.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.VM.Create(ctx, &v1.CreateVMRequest{Vm: o.(*v1.VM), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.VM.Update(ctx, &v1.UpdateVMRequest{Vm: o.(*v1.VM), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.VM.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.VM.Watch(ctx, r)
			return changes(s, err, (*v1.VMChange).GetVm, f)
		},
		columns: []column{
			nameColumn("NAME"),
			mark("STATE", vmState),
			col("HOST", func(v *v1.VM) string { return v.GetStatus().GetOwner() }),
			col("SITE", func(v *v1.VM) string { return v.GetStatus().GetSite() }),
			num("CPUS", func(v *v1.VM) string { return fmt.Sprint(v.GetSpec().GetCpus()) }),
			num("MEMORY", func(v *v1.VM) string { return unit.Size(v.GetSpec().GetMemoryBytes()) }),
			num("DISKS", func(v *v1.VM) string {
				var sum int64
				for _, d := range v.GetSpec().GetDisks() {
					sum += max(d.GetSizeBytes(), 0)
				}
				if len(v.GetSpec().GetDisks()) == 0 {
					return "none"
				}
				return unit.Size(sum)
			}),
			col("ADDRESS", func(v *v1.VM) string { return firstAddress(v) }),
			ageColumn(),
			wide(col("OS", func(v *v1.VM) string { return v.GetSpec().GetOs() })),
			wide(col("ACCEL", func(v *v1.VM) string { return v.GetStatus().GetAccelerator() })),
			wide(col("MACHINE", func(v *v1.VM) string { return v.GetStatus().GetMachineType() })),
			wide(num("EPOCH", func(v *v1.VM) string { return fmt.Sprint(v.GetStatus().GetEpoch()) })),
			wide(col("ADDRESSES", func(v *v1.VM) string { return strings.Join(addresses(v), ",") })),
			wide(col("MESSAGE", func(v *v1.VM) string { return v.GetStatus().GetMessage() })),
			labelsColumn(),
		},
	}
}

// vmState is the phase in words, with what is in the way of it.
func vmState(v *v1.VM) table.Cell {
	c := table.Cell{Text: unit.Word(v.GetStatus().GetPhase())}
	switch v.GetStatus().GetPhase() {
	case v1.VMPhase_VM_PHASE_RUNNING:
		c.Colour = table.Green
	case v1.VMPhase_VM_PHASE_OFF:
		c.Colour = table.Dim
		if v.GetSpec().GetTemplate() {
			c.Text = "template"
		}
	case v1.VMPhase_VM_PHASE_CRASHED, v1.VMPhase_VM_PHASE_FAILED, v1.VMPhase_VM_PHASE_IO_ERROR:
		c.Colour = table.Red
	case v1.VMPhase_VM_PHASE_UNSPECIFIED:
		c.Text, c.Colour = "pending", table.Yellow
	default:
		c.Colour = table.Yellow
	}
	if len(v.GetStatus().GetRestartRequired()) > 0 {
		c.Text += ", needs a restart"
	}
	return c
}

// addresses are those that the guest tells, loopback and link-local ones left out.
func addresses(v *v1.VM) []string {
	all := slices.Clone(v.GetStatus().GetGuest().GetAddresses())
	for _, n := range v.GetStatus().GetNics() {
		all = append(all, n.GetAddresses()...)
	}
	var out []string
	for _, x := range all {
		x, _, _ = strings.Cut(x, "/")
		if x == "" || x == "::1" || strings.HasPrefix(x, "127.") || strings.HasPrefix(strings.ToLower(x), "fe80:") || slices.Contains(out, x) {
			continue
		}
		out = append(out, x)
	}
	return out
}

func firstAddress(v *v1.VM) string {
	if x := addresses(v); len(x) > 0 {
		return x[0]
	}
	return ""
}

// pairs writes a map in the order of its keys.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

func diskKind() *kind {
	return &kind{
		name: "disk", plural: "disks", rank: 11, empty: &v1.Disk{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Disk.List(ctx, r)
			return pageOf(l.GetDisks(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Disk.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Disk.Create(ctx, &v1.CreateDiskRequest{Disk: o.(*v1.Disk), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Disk.Update(ctx, &v1.UpdateDiskRequest{Disk: o.(*v1.Disk), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Disk.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Disk.Watch(ctx, r)
			return changes(s, err, (*v1.DiskChange).GetDisk, f)
		},
		columns: []column{
			nameColumn("DISK"),
			num("SIZE", func(d *v1.Disk) string {
				return unit.Size(max(d.GetSpec().GetSizeBytes(), d.GetStatus().GetSizeBytes()))
			}),
			num("ON DISK", func(d *v1.Disk) string { return unit.Size(d.GetStatus().GetAllocatedBytes()) }),
			col("DATASTORE", func(d *v1.Disk) string { return d.GetSpec().GetDatastore() }),
			col("FORMAT", func(d *v1.Disk) string { return unit.Word(d.GetSpec().GetFormat()) }),
			col("BUS", func(d *v1.Disk) string { return unit.Word(d.GetSpec().GetBus()) }),
			col("IMAGE", func(d *v1.Disk) string { return d.GetSpec().GetImage() }),
			col("ATTACHED", func(d *v1.Disk) string { return yes(d.GetStatus().GetAttached()) }),
			wide(num("BOOT", func(d *v1.Disk) string { return fmt.Sprint(d.GetSpec().GetBootOrder()) })),
			wide(col("LAYERS", func(d *v1.Disk) string { return strings.Join(d.GetStatus().GetLayers(), " on ") })),
		},
	}
}

func nicKind() *kind {
	return &kind{
		name: "nic", plural: "nics", rank: 12, empty: &v1.NIC{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.NIC.List(ctx, r)
			return pageOf(l.GetNics(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.NIC.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.NIC.Create(ctx, &v1.CreateNICRequest{Nic: o.(*v1.NIC), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.NIC.Update(ctx, &v1.UpdateNICRequest{Nic: o.(*v1.NIC), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.NIC.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.NIC.Watch(ctx, r)
			return changes(s, err, (*v1.NICChange).GetNic, f)
		},
		columns: []column{
			nameColumn("NIC"),
			col("NETWORK", func(n *v1.NIC) string { return n.GetSpec().GetNetwork() }),
			col("MAC", func(n *v1.NIC) string { return n.GetSpec().GetMac() }),
			col("ADAPTER", func(n *v1.NIC) string { return unit.Word(n.GetSpec().GetAdapter()) }),
			col("CABLE", func(n *v1.NIC) string {
				if n.GetSpec().GetLinkDown() {
					return "out"
				}
				return "in"
			}),
			col("ATTACHED", func(n *v1.NIC) string { return yes(n.GetStatus().GetAttached()) }),
			col("ADDRESSES", func(n *v1.NIC) string { return strings.Join(n.GetStatus().GetAddresses(), ",") }),
			wide(col("DEVICE", func(n *v1.NIC) string { return n.GetStatus().GetDevice() })),
		},
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func snapshotKind() *kind {
	return &kind{
		name: "snapshot", plural: "snapshots", alias: []string{"snap"}, rank: 13, empty: &v1.Snapshot{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Snapshot.List(ctx, r)
			return pageOf(l.GetSnapshots(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Snapshot.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Snapshot.Create(ctx, &v1.CreateSnapshotRequest{Snapshot: o.(*v1.Snapshot), ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Snapshot.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Snapshot.Watch(ctx, r)
			return changes(s, err, (*v1.SnapshotChange).GetSnapshot, f)
		},
		columns: []column{
			nameColumn("SNAPSHOT"),
			mark("STATE", snapshotState),
			col("MEMORY", func(s *v1.Snapshot) string {
				if !s.GetSpec().GetMemory() {
					return "no"
				}
				return unit.Size(s.GetStatus().GetMemorySizeBytes())
			}),
			col("PARENT", func(s *v1.Snapshot) string { return s.GetStatus().GetParent() }),
			ageColumn(),
			col("DESCRIPTION", func(s *v1.Snapshot) string { return s.GetSpec().GetDescription() }),
			labelsColumn(),
		},
	}
}

func snapshotState(s *v1.Snapshot) table.Cell {
	c := table.Cell{Text: unit.Word(s.GetStatus().GetPhase()), Colour: table.Yellow}
	switch s.GetStatus().GetPhase() {
	case v1.SnapshotPhase_SNAPSHOT_PHASE_READY:
		c.Colour = table.Green
	case v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED:
		c.Colour = table.Red
		if m := s.GetStatus().GetMessage(); m != "" {
			c.Text += ": " + m
		}
	}
	return c
}
