package host

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"

	"drover/internal/vswitch"
	"drover/internal/vswitch/table"
)

// slotBook remembers which slot of the datapath each port and uplink has, and what was counted for it before: STATE/switch/ports.json, version 1.
// It belongs to the fabric's goroutine.
type slotBook struct {
	path string

	Version int `json:"version"`
	// Boot is the boot that Seen and the slots are of.
	Boot  string               `json:"boot"`
	Slots map[string]*slotPage `json:"slots"` // "port/VM-UID/NIC", "uplink/DEVICE"
}

// slotPage is one port's. The datapath counts from 0 for each slot that is given, and from 0 after a reboot: what was counted earlier is in Base.
type slotPage struct {
	Slot uint32 `json:"slot,omitempty"` // 0: none now
	Base tally  `json:"base"`
	// Seen is what the datapath said last.
	Seen tally `json:"seen"`
}

// tally are counters by reason.
type tally struct {
	Traffic table.Traffic              `json:"traffic"`
	Drops   map[string]table.DropCount `json:"drops,omitempty"`
}

func (t tally) plus(o tally) tally {
	t.Traffic.InPackets += o.Traffic.InPackets
	t.Traffic.InBytes += o.Traffic.InBytes
	t.Traffic.OutPackets += o.Traffic.OutPackets
	t.Traffic.OutBytes += o.Traffic.OutBytes
	drops := maps.Clone(t.Drops)
	if drops == nil {
		drops = map[string]table.DropCount{}
	}
	for r, d := range o.Drops {
		drops[r] = table.DropCount{Packets: drops[r].Packets + d.Packets, Bytes: drops[r].Bytes + d.Bytes}
	}
	t.Drops = drops
	return t
}

// less says that a counter went back: it was begun anew.
func (t tally) less(o tally) bool {
	return t.Traffic.InPackets < o.Traffic.InPackets || t.Traffic.OutPackets < o.Traffic.OutPackets
}

func tallyOf(c vswitch.Counters) tally {
	t := tally{Traffic: c.Traffic, Drops: map[string]table.DropCount{}}
	for r, d := range c.Drops {
		if r != table.DropAnswered && r != table.DropPunted { // no losses
			t.Drops[r.String()] = d
		}
	}
	return t
}

const bookFile = "ports.json"

// openBook reads the book. One that can't be read is begun anew: only old counts are lost.
func openBook(dir, boot string) (*slotBook, error) {
	b := &slotBook{path: filepath.Join(dir, bookFile)}
	err := readJSON(b.path, b)
	if err != nil || b.Version != 1 {
		b.Slots = nil
	}
	if b.Slots == nil {
		b.Slots = map[string]*slotPage{}
	}
	if b.Boot != boot {
		for _, p := range b.Slots {
			p.Slot, p.Base, p.Seen = 0, p.Base.plus(p.Seen), tally{}
		}
	}
	b.Version, b.Boot = 1, boot
	return b, err
}

func (b *slotBook) save() error { return writeJSON(b.path, b) }

var errNoSlot = errors.New("this host's switch has no place for another port")

// take gives a port its slot: the one that it has, or the lowest that is free. fresh says that its counters have to begin anew.
func (b *slotBook) take(name string) (slot uint32, fresh bool, err error) {
	p := b.Slots[name]
	if p == nil {
		p = &slotPage{}
		b.Slots[name] = p
	}
	if p.Slot != 0 {
		return p.Slot, false, nil
	}
	used := map[uint32]bool{0: true}
	for _, q := range b.Slots {
		used[q.Slot] = true
	}
	for n := uint32(1); n < table.MaxPorts; n++ {
		if !used[n] {
			p.Slot = n
			return n, true, nil
		}
	}
	return 0, false, errNoSlot
}

// release keeps a port's counts and gives its slot away.
func (b *slotBook) release(name string) {
	if p := b.Slots[name]; p != nil {
		p.Slot, p.Base, p.Seen = 0, p.Base.plus(p.Seen), tally{}
	}
}

// forget drops ports that are no more.
func (b *slotBook) forget(gone func(name string) bool) {
	maps.DeleteFunc(b.Slots, func(name string, p *slotPage) bool { return p.Slot == 0 && gone(name) })
}

// count takes in what the datapath says of the slots, and returns each port's counts since it was made.
func (b *slotBook) count(have map[uint32]vswitch.Counters) {
	for _, p := range b.Slots {
		c, ok := have[p.Slot]
		if p.Slot == 0 || !ok {
			continue
		}
		now := tallyOf(c)
		if now.less(p.Seen) {
			p.Base = p.Base.plus(p.Seen)
		}
		p.Seen = now
	}
}

func (b *slotBook) total(name string) tally {
	if p := b.Slots[name]; p != nil {
		return p.Base.plus(p.Seen)
	}
	return tally{}
}

// slots are all that are given.
func (b *slotBook) slots() []uint32 {
	var out []uint32
	for _, p := range b.Slots {
		if p.Slot != 0 {
			out = append(out, p.Slot)
		}
	}
	slices.Sort(out)
	return out
}
