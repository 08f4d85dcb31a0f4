package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"drover/internal/guest"
)

// fileNode is the protocol node under a layer. It can be written, also below the active layer, so that layers can be
// merged; what keeps a frozen layer from being written is the format node above it.
func fileNode(node, name string, c Cache, readOnly bool) guest.Props {
	out := guest.Props{{Key: "driver", Value: "file"}, {Key: "node-name", Value: node}, {Key: "filename", Value: name}}
	if readOnly {
		out = out.With("read-only", true)
	} else {
		out = out.With("discard", "unmap")
	}
	return append(out, cacheProps(c)...)
}

// cacheProps has to be the same on all nodes of a disk.
func cacheProps(c Cache) guest.Props {
	switch c {
	case Direct:
		return guest.Props{{Key: "cache", Value: guest.Props{{Key: "direct", Value: true}, {Key: "no-flush", Value: false}}}, {Key: "aio", Value: "threads"}}
	case Unsafe:
		return guest.Props{{Key: "cache", Value: guest.Props{{Key: "direct", Value: false}, {Key: "no-flush", Value: true}}}}
	}
	return nil
}

// formatNode is the node of a layer. Qcow2 always gets a backing, null for none, so that QEMU does not follow the name
// in the header.
func formatNode(node string, f Format, file, backing string, readOnly bool) guest.Props {
	out := guest.Props{{Key: "driver", Value: string(f)}, {Key: "node-name", Value: node}, {Key: "file", Value: file}}
	if readOnly {
		out = out.With("read-only", true)
	} else {
		out = out.With("discard", "unmap")
	}
	if f == Qcow2 {
		if backing == "" {
			out = out.With("backing", nil)
		} else {
			out = out.With("backing", backing)
		}
	}
	return out
}

// withCache adds what a format node must repeat of its disk's cache mode.
func withCache(node guest.Props, c Cache) guest.Props {
	if props := cacheProps(c); props != nil {
		return append(node, props[0])
	}
	return node
}

// fileOf is the name of a layer's protocol node.
func fileOf(layer string) string { return layer + "_f" }

// layerNodes are the two nodes of one layer, the lower first.
func layerNodes(l Layer, name, backing string, c Cache, readOnly bool) [2]guest.Props {
	return [2]guest.Props{
		fileNode(fileOf(l.ID), name, c, l.Shared),
		withCache(formatNode(l.ID, l.Format, fileOf(l.ID), backing, readOnly), c),
	}
}

func (p *planner) disks() {
	for i := range p.spec.Disks {
		d := &p.spec.Disks[i]
		backing := ""
		for j, l := range d.Layers {
			if l.remote() {
				p.json("-blockdev", remoteNode(l, d.Cache))
				backing = l.ID
				continue
			}
			active := j == len(d.Layers)-1
			name := p.set(l.ID, l.Path, !l.Shared)
			for _, node := range layerNodes(l, name, backing, d.Cache, !active || d.ReadOnly) {
				p.json("-blockdev", node)
			}
			backing = l.ID
		}
		dev, err := diskDevice(p.hw, d)
		if err != nil {
			p.err = err
			return
		}
		p.device(dev)
	}
}

// diskDevice is the device of a disk, complete.
func diskDevice(hw *guest.Hardware, d *Disk) (guest.Device, error) {
	dev, err := hw.Disk(d.Bus, d.Slot)
	if err != nil {
		return dev, err
	}
	dev.ID = diskID(d.ID)
	// A full datastore stops the guest until there is space; other errors are the guest's to see.
	werror, rerror := "enospc", "report"
	if _, ok := d.remoteBase(); ok {
		// What is elsewhere comes back: the guest stands still until it does, and never hears of it.
		werror, rerror = "stop", "stop"
	}
	more := guest.Props{{Key: "drive", Value: d.Layers[len(d.Layers)-1].ID}, {Key: "write-cache", Value: "on"},
		{Key: "werror", Value: werror}, {Key: "rerror", Value: rerror}}
	serial := d.Serial
	if serial == "" {
		serial = d.ID
	}
	more = more.With("serial", serial)
	if d.Bus == guest.VirtioSCSI {
		more = more.With("device_id", serial)
	}
	if d.Boot > 0 {
		more = more.With("bootindex", d.Boot)
	}
	dev.Props = append(dev.Props, more...)
	return dev, nil
}

func (p *planner) cdroms() {
	for _, c := range p.spec.CDROMs {
		dev, err := p.hw.CD(c.Slot)
		if err != nil {
			p.err = err
			return
		}
		dev.ID = cdID(c.ID)
		if c.Path != "" {
			node := cdNode(c.ID)
			p.json("-blockdev", fileNode(fileOf(node), p.set(node, c.Path, false), WriteBack, true))
			p.json("-blockdev", formatNode(node, Raw, fileOf(node), "", true))
			dev.Props = dev.Props.With("drive", node)
		}
		if c.Boot > 0 {
			dev.Props = dev.Props.With("bootindex", c.Boot)
		}
		p.device(dev)
	}
}

// cdNode is the node of the medium that a drive starts with; "cd" and an underscore keep it apart from any layer.
func cdNode(id string) string { return "cd_" + id }

func (p *planner) nics() {
	for i := range p.spec.NICs {
		n := &p.spec.NICs[i]
		p.add("-netdev", p.netdev(n))
		dev, err := nicDevice(p.hw, n)
		if err != nil {
			p.err = err
			return
		}
		p.device(dev)
	}
}

// netdev is what a NIC is connected to.
func (p *planner) netdev(n *NIC) string {
	if n.User != nil {
		return n.User.netdev(netdevOf(n.ID))
	}
	var fds []string
	for q := range max(n.Queues, 1) {
		fds = append(fds, strconv.Itoa(p.fd(FD{Source: FromTAP, Key: n.ID, Index: q})))
	}
	key := "fd"
	if len(fds) > 1 {
		key = "fds"
	}
	return fmt.Sprintf("tap,id=%s,%s=%s,vhost=off", netdevOf(n.ID), key, strings.Join(fds, ":"))
}

// Device ids have a prefix, so that users' names never meet those of the hardware table.
func diskID(id string) string { return "disk-" + id }
func cdID(id string) string   { return "cd-" + id }
func nicID(id string) string  { return "nic-" + id }

func netdevOf(nic string) string { return "tap-" + nic }

// nicDevice is the device of a NIC, complete.
func nicDevice(hw *guest.Hardware, n *NIC) (guest.Device, error) {
	dev, err := hw.NIC(n.Adapter, n.Slot)
	if err != nil {
		return dev, err
	}
	dev.ID = nicID(n.ID)
	more := guest.Props{{Key: "netdev", Value: netdevOf(n.ID)}, {Key: "mac", Value: n.MAC}}
	if n.Adapter == guest.VirtioNet {
		if n.MTU != 0 {
			more = more.With("host_mtu", n.MTU)
		}
		if hw.Adapters[n.Adapter].Bus == guest.PCIe {
			q := max(n.Queues, 1)
			more = more.With("mq", q > 1).With("vectors", 2*q+2)
		}
	}
	if n.Boot > 0 {
		more = more.With("bootindex", n.Boot)
	}
	dev.Props = append(append(guest.Props{}, dev.Props...), more...)
	return dev, nil
}

// hotplugged adds the CPUs and DIMMs that were plugged while the machine ran, as QEMU would see them after that.
func (p *planner) hotplugged() {
	s := p.spec
	for _, socket := range s.CPU.Plugged {
		for core := range s.CPU.Cores {
			p.device(cpuDevice(s.cpuModel(p.hw), socket, core))
		}
	}
	for _, d := range s.Memory.DIMMs {
		p.json("-object", ramBackend(dimmRAM(d.Slot), dimmPath(s.Memory.Path, d.Slot), d.MiB))
		p.device(dimmDevice(d.Slot))
	}
}

func cpuDevice(model string, socket, core int) guest.Device {
	return guest.Device{ID: fmt.Sprintf("cpu-%d-%d", socket, core), Driver: model + "-x86_64-cpu", Props: guest.Props{
		{Key: "socket-id", Value: socket}, {Key: "die-id", Value: 0}, {Key: "core-id", Value: core}, {Key: "thread-id", Value: 0},
	}}
}

func dimmID(slot int) string               { return fmt.Sprintf("dimm%d", slot) }
func dimmRAM(slot int) string              { return fmt.Sprintf("ram-dimm%d", slot) }
func dimmPath(ram string, slot int) string { return fmt.Sprintf("%s.dimm%d", ram, slot) }
func dimmDevice(slot int) guest.Device {
	return guest.Device{ID: dimmID(slot), Driver: "pc-dimm", Props: guest.Props{{Key: "memdev", Value: dimmRAM(slot)}, {Key: "slot", Value: slot}}}
}
