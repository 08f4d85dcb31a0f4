package vswitch

import (
	"errors"
	"fmt"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
)

// Counters are a slot's.
type Counters struct {
	table.Traffic
	Drops map[table.Reason]table.DropCount // only reasons that were met
}

// Counters sums over processors. A slot that is out of range is left out.
func (d *Datapath) Counters(slots []uint32) (map[uint32]Counters, error) {
	done, err := d.use()
	if err != nil {
		return nil, err
	}
	defer done()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	out := make(map[uint32]Counters, len(slots))
	perCPU := make([]table.Traffic, cpus)
	for _, slot := range slots {
		if slot >= table.MaxPorts {
			continue
		}
		if err := d.objs.Counters.Lookup(&slot, &perCPU); err != nil {
			return nil, fmt.Errorf("read counters of slot %d: %w", slot, err)
		}
		c := Counters{Drops: map[table.Reason]table.DropCount{}}
		for _, t := range perCPU {
			c.InPackets += t.InPackets
			c.InBytes += t.InBytes
			c.OutPackets += t.OutPackets
			c.OutBytes += t.OutBytes
		}
		out[slot] = c
	}
	err = each(d.objs.Drops, datapathMapDrops, cpus, func(k table.DropKey, counts []table.DropCount) error {
		c, ok := out[k.Slot]
		if !ok {
			return nil
		}
		var sum table.DropCount
		for _, n := range counts {
			sum.Packets += n.Packets
			sum.Bytes += n.Bytes
		}
		if sum.Packets > 0 {
			c.Drops[k.Reason] = sum
		}
		return nil
	})
	return out, err
}

// ResetCounters sets a slot's counters to zero, and when its drops were last told: a new port has it now.
func (d *Datapath) ResetCounters(slot uint32) error {
	done, err := d.use()
	if err != nil {
		return err
	}
	defer done()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("reset counters of slot %d: %w", slot, err)
	}
	errs := []error{
		d.objs.Counters.Put(&slot, make([]table.Traffic, cpus)),
		d.objs.Gates.Put(&slot, &table.Gate{}),
	}
	for r := range table.Reason(table.Reasons) {
		if err := d.objs.Drops.Delete(&table.DropKey{Slot: slot, Reason: r}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reset counters of slot %d: %w", slot, err)
	}
	return nil
}
