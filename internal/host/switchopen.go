package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"drover/internal/vswitch"
	"drover/internal/vswitch/beacon"
	"drover/internal/vswitch/table"
)

// pinName is the directory of pins for a state directory, in a bpffs.
func pinName(stateDir string) string { return "drover-" + shortHash(stateDir) }

// begin takes over the datapath with the ports that are there, before anything else is done with them, and starts the goroutine.
func (f *fabric) begin(ctx context.Context, ports []*nicPort) {
	f.life = ctx
	f.loadTunnelKey()
	for _, p := range ports {
		f.ports[p.key()] = p
		if _, _, err := f.book.take(p.key()); err != nil {
			f.log.Error("a running VM's NIC has no place on the switch", "port", p.name, "err", err)
			delete(f.ports, p.key())
		}
	}
	if err := f.open(ctx); err != nil {
		f.log.Error("this host has no switch: VMs with NICs can't be started", "err", err)
	}
	f.parts.Go(func() { f.watchLinks(ctx) })
	go f.run(ctx)
}

// open makes or takes over the datapath, and brings it to what is wanted.
func (f *fabric) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			f.broken = err.Error()
			f.show()
		}
	}()
	if err := vswitch.Supported(); err != nil {
		return err
	}
	fs, err := vswitch.MountBPF(f.a.cfg.RunDir)
	if err != nil {
		return err
	}
	f.pins = filepath.Join(fs, pinName(f.a.cfg.StateDir))
	was, err := f.openDatapath(ctx)
	if err != nil {
		return fmt.Errorf("open the switch's datapath: %w", err)
	}
	f.broken = ""
	f.openSenses(was)
	f.monitors = map[string]*beacon.Monitor{}
	f.refreshUplinks(ctx)
	f.resumeTeams(was)
	f.ensureOverlay()
	f.ensureTunnel(ctx)
	for _, p := range f.sorted() {
		if err := f.dp.Attach(ctx, vswitch.Device{Ifindex: int(p.ifindex), Name: p.device, Kind: vswitch.KindPort}); err != nil {
			f.log.Error("a running VM's NIC can't be put on the switch", "port", p.name, "err", err)
		}
	}
	err = f.rebuild(ctx)
	f.resumeAnnounced()
	f.dropStrangers()
	f.listen(f.life)
	return ignorePorts(err)
}

// openDatapath sets dp and sender, both or none, and returns what the datapath has.
func (f *fabric) openDatapath(ctx context.Context) (was *table.Tables, err error) {
	var dp *vswitch.Datapath
	if err := f.a.net.Do(func() (err error) {
		dp, err = vswitch.Open(ctx, vswitch.Config{Dir: f.pins, Log: f.log})
		return err
	}); err != nil {
		return nil, err
	}
	if was, err = dp.Tables(); err != nil {
		return nil, errors.Join(err, dp.Close())
	}
	sender, err := f.a.net.OpenSender(table.Mark)
	if err != nil {
		return nil, errors.Join(err, dp.Close())
	}
	f.dp, f.sender = dp, sender
	return was, nil
}

// dropStrangers takes the programs off devices that are the switch's no more.
func (f *fabric) dropStrangers() {
	devices, err := f.dp.Attached()
	if err != nil {
		f.log.Warn("the switch does not say which devices it is on", "err", err)
		return
	}
	mine := map[int]bool{int(f.vxlan.Ifindex): true}
	for _, p := range f.ports {
		mine[int(p.ifindex)] = true
	}
	for _, u := range f.uplinks {
		mine[u.link.Index] = mine[u.link.Index] || u.attached
	}
	for _, d := range devices {
		if d.Gone || mine[d.Ifindex] {
			continue
		}
		if err := f.dp.Detach(d.Ifindex); err != nil {
			f.log.Warn("a device that is the switch's no more still has its programs", "device", d.Name, "err", err)
		}
	}
}

// close lets go of the datapath, which goes on, when run has ended.
func (f *fabric) close() error {
	if f.life == nil {
		return nil // it was never begun
	}
	<-f.ended
	f.parts.Wait()
	if f.dp == nil {
		return nil
	}
	return errors.Join(f.sender.Close(), f.dp.Close())
}
