package vswitch

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// load opens or makes the maps of our layout, then loads the programs, several at a time: the kernel takes tens of milliseconds to check the larger ones.
func (d *Datapath) load() error {
	spec, err := d.build.spec()
	if err != nil {
		return fmt.Errorf("vswitch: read the datapath's object: %w", err)
	}
	dir := d.mapDir(d.build.layout)
	alone := spec.Copy()
	clear(alone.Programs)
	c, err := ebpf.NewCollectionWithOptions(alone, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if err != nil {
		return loadError(dir, err)
	}
	defer c.Close()
	made := maps.Clone(c.Maps) // what Assign takes is the collection's no more
	if err := c.Assign(&d.objs.datapathMaps); err != nil {
		return loadError(dir, err)
	}
	d.maps = newMaps(&d.objs.datapathMaps)
	var g errgroup.Group
	for name, to := range map[string]**ebpf.Program{
		datapathProgPortIn: &d.objs.PortIn, datapathProgPortOut: &d.objs.PortOut, datapathProgUplinkIn: &d.objs.UplinkIn, datapathProgTunnelIn: &d.objs.TunnelIn,
	} {
		one := spec.Copy()
		one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
		g.Go(func() error {
			c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: made})
			if err != nil {
				return loadError(dir, err)
			}
			defer c.Close()
			*to = c.DetachProgram(name)
			return nil
		})
	}
	return g.Wait()
}

// loadError says what to do about a datapath that can't be loaded.
func loadError(dir string, err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("vswitch: maps in %s are of another shape but of the same layout number: whoever changed them must raise DROVER_LAYOUT: %w", dir, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.As(err, &refused):
		return fmt.Errorf("vswitch: the kernel refuses the datapath: %+v", refused)
	}
	return fmt.Errorf("vswitch: load the datapath: %w", err)
}
