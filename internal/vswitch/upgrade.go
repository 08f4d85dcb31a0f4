package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// learnt is what only the maps know, in the words of this build.
type learnt struct {
	bindings map[table.BindingKey]table.Binding
	counters map[uint32][]table.Traffic          // by slot, then processor
	drops    map[table.DropKey][]table.DropCount // with a value for each processor
}

// converter reads what only the maps of another layout know, by readBindings, readCounters and readDrops where rows are the same, else by code of its own. dir is
// the directory of their pins.
type converter func(dir string) (*learnt, error)

// takeOver finds what earlier builds left. With maps of our layout alone, the links get the new programs now. With maps of others, it copies what they know.
func (d *Datapath) takeOver() error {
	var err error
	if d.old, err = d.otherLayouts(); err != nil {
		return err
	}
	if len(d.old) == 0 {
		return errors.Join(d.updateLinks(), d.removeMarks())
	}
	d.log.Info("the datapath's maps change their layout: the old programs go on until the new maps are filled", "from", d.old, "to", d.build.layout)
	return d.copyLearnt(true)
}

// otherLayouts lists the layouts besides ours that have maps here.
func (d *Datapath) otherLayouts() ([]uint32, error) {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("look for the datapath's maps: %w", err)
	}
	var out []uint32
	for _, e := range entries {
		if s, ok := strings.CutPrefix(e.Name(), "maps-"); ok {
			if n, err := strconv.ParseUint(s, 10, 32); err == nil && uint32(n) != d.build.layout {
				out = append(out, uint32(n))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// mark is a directory that says that what the old maps knew was copied and links may already use the new ones: it must not be copied again.
// (A bpffs has no plain files.)
func (d *Datapath) mark() string {
	return filepath.Join(d.cfg.Dir, fmt.Sprintf("copied-%d", d.build.layout))
}

func (d *Datapath) removeMarks() error {
	found, err := filepath.Glob(filepath.Join(d.cfg.Dir, "copied-*"))
	for _, f := range found {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// copyLearnt copies leases and counters of the newest other layout, unless that was done before. Leases that a server gave and that user space keeps too
// (DHCP) are copied only if all is set: they are the caller's after its first Apply.
func (d *Datapath) copyLearnt(all bool) error {
	if _, err := os.Stat(d.mark()); err == nil {
		return nil
	}
	from := d.old[len(d.old)-1]
	convert, ok := d.build.converters[from]
	if !ok {
		convert = d.readSame
	}
	l, err := convert(d.mapDir(from))
	if err != nil {
		return fmt.Errorf("copy leases and counters of the datapath's layout %d: %w", from, err)
	}
	bind := change[table.BindingKey, table.Binding]{rows: d.maps.bindings, have: map[table.BindingKey]table.Binding{}}
	have := map[table.BindingKey]table.Binding{}
	if err := d.maps.bindings.read(have); err != nil {
		return err
	}
	for k, b := range l.bindings {
		if _, ok := have[k]; !ok && (b.Source == table.BindingProvisional || all && b.Source == table.BindingDHCP) {
			bind.keys, bind.values = append(bind.keys, k), append(bind.values, b)
		}
	}
	var errs []error
	bind.write(func(_ table.BindingKey, _ table.Binding, err error) { errs = append(errs, err) })
	// Counters only grow. After a rollback ours may know more than what a later build had begun with.
	for slot, t := range l.counters {
		ours := make([]table.Traffic, len(t))
		errs = append(errs, d.objs.Counters.Lookup(&slot, &ours))
		for i := range ours {
			ours[i] = table.Traffic{
				InPackets: max(ours[i].InPackets, t[i].InPackets), InBytes: max(ours[i].InBytes, t[i].InBytes),
				OutPackets: max(ours[i].OutPackets, t[i].OutPackets), OutBytes: max(ours[i].OutBytes, t[i].OutBytes),
			}
		}
		errs = append(errs, d.objs.Counters.Put(&slot, ours))
	}
	for k, n := range l.drops {
		ours := make([]table.DropCount, len(n))
		if err := d.objs.Drops.Lookup(&k, &ours); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
		for i := range ours {
			ours[i] = table.DropCount{Packets: max(ours[i].Packets, n[i].Packets), Bytes: max(ours[i].Bytes, n[i].Bytes)}
		}
		errs = append(errs, d.objs.Drops.Put(&k, ours))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("copy leases and counters of the datapath's layout %d: %w", from, err)
	}
	return nil
}

func newLearnt() *learnt {
	return &learnt{
		bindings: map[table.BindingKey]table.Binding{}, counters: map[uint32][]table.Traffic{}, drops: map[table.DropKey][]table.DropCount{},
	}
}

// readSame is the converter where there is none: it reads the maps whose rows have the size that they have here. So a layout that changes what a field of
// them means, not its size, needs a converter; and a build of before reads what a later one left.
func (d *Datapath) readSame(dir string) (*learnt, error) {
	l := newLearnt()
	var errs []error
	for _, x := range []struct {
		ours *ebpf.Map
		name string
		read func(dir string) error
	}{
		{d.objs.Bindings, datapathMapBindings, l.readBindings},
		{d.objs.Counters, datapathMapCounters, l.readCounters},
		{d.objs.Drops, datapathMapDrops, l.readDrops},
	} {
		errs = append(errs, withPinned(dir, x.name, func(m *ebpf.Map) error {
			if m.Type() != x.ours.Type() || m.KeySize() != x.ours.KeySize() || m.ValueSize() != x.ours.ValueSize() {
				d.log.Warn("a map of the datapath of before has another shape and is not read", "map", x.name)
				return nil
			}
			return x.read(dir)
		}))
	}
	return l, errors.Join(errs...)
}

// readBindings reads pinned bindings whose rows have not changed since.
func (l *learnt) readBindings(dir string) error {
	return withPinned(dir, datapathMapBindings, func(m *ebpf.Map) error {
		return rows[table.BindingKey, table.Binding]{m, datapathMapBindings}.read(l.bindings)
	})
}

// readCounters reads pinned counters whose rows have not changed since.
func (l *learnt) readCounters(dir string) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return withPinned(dir, datapathMapCounters, func(m *ebpf.Map) error {
		return each(m, datapathMapCounters, cpus, func(slot uint32, t []table.Traffic) error {
			if slices.ContainsFunc(t, func(t table.Traffic) bool { return t != (table.Traffic{}) }) {
				l.counters[slot] = slices.Clone(t)
			}
			return nil
		})
	})
}

// readDrops reads pinned drops whose rows have not changed since.
func (l *learnt) readDrops(dir string) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return withPinned(dir, datapathMapDrops, func(m *ebpf.Map) error {
		return each(m, datapathMapDrops, cpus, func(k table.DropKey, n []table.DropCount) error {
			l.drops[k] = slices.Clone(n)
			return nil
		})
	})
}

// withPinned calls f with a pinned map; one that is not there is left out: an earlier upgrade may have been killed while it made or removed them.
func withPinned(dir, name string, f func(*ebpf.Map) error) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the pinned map %s: %w", name, err)
	}
	defer m.Close()
	return f(m)
}

// switchLinks ends an upgrade: what is known is copied once more, the links get the new programs, the old maps go. Each step can be done again.
func (d *Datapath) switchLinks(want *table.Tables) error {
	if len(d.old) == 0 {
		return nil
	}
	if err := d.copyLearnt(false); err != nil {
		return err
	}
	if err := d.build.at("copied"); err != nil {
		return err
	}
	if err := os.Mkdir(d.mark(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("note that leases and counters were copied: %w", err)
	}
	if err := d.updateLinks(); err != nil {
		return err
	}
	if err := d.build.at("switched"); err != nil {
		return err
	}
	for _, layout := range d.old {
		entries, err := os.ReadDir(d.mapDir(layout))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the datapath's old maps: %w", err)
		}
		for _, e := range entries {
			if err := os.Remove(filepath.Join(d.mapDir(layout), e.Name())); err != nil {
				return fmt.Errorf("remove the datapath's old maps: %w", err)
			}
			if err := d.build.at("removing"); err != nil {
				return err
			}
		}
		if err := os.Remove(d.mapDir(layout)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the datapath's old maps: %w", err)
		}
	}
	if err := d.build.at("removed"); err != nil {
		return err
	}
	d.log.Info("the datapath runs with its new maps", "layout", d.build.layout)
	d.old = nil
	return d.removeMarks()
}

// updateLinks gives every link the program of this build. Frames see the old one or the new one, never none.
func (d *Datapath) updateLinks() error {
	pins, err := d.pins()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pins {
		if err := d.updateLink(p); err != nil {
			errs = append(errs, fmt.Errorf("update the datapath of device %d: %w", p.ifindex, err))
		}
		if err := d.build.at("link"); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (d *Datapath) updateLink(p pin) error {
	a, err := d.openLink(p)
	if err != nil || a == nil {
		return err // a link that is lost is for Attached
	}
	defer a.link.Close()
	prog := d.program(a.kind, p.out)
	if !a.known || prog == nil {
		return d.unpin(p) // of no kind that this build has
	}
	if err := a.link.Update(prog); err != nil && !errors.Is(err, unix.ENOLINK) {
		return err
	}
	return nil
}
