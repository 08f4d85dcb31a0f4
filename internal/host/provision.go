package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
	"drover/internal/guest"
	"drover/internal/qemu"
	"drover/internal/resource"
)

// UEFI firmware, as Debian's ovmf package installs it: the code is shared, the variables are copied for each VM.
const (
	firmwareCode     = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareTemplate = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	firmwareVars     = "efivars.fd"
)

// disksReady says that everything a start needs from a disk is there.
func (m *machine) disksReady(vm *v1.VM) bool {
	s := vm.GetSpec()
	if m.local.Gone || len(m.local.Made) != len(s.GetDisks()) {
		return false
	}
	for _, d := range s.GetDisks() {
		made, ok := m.local.Made[d.GetName()]
		if !ok {
			return false
		}
		layer, err := m.active(made, d.GetName())
		if err != nil || layer.Size < d.GetSizeBytes() {
			return false
		}
	}
	if s.GetKernelImage() != "" && !m.a.hasKernel(s.GetKernelImage()) {
		return false
	}
	for _, c := range s.GetCdroms() {
		if c.GetImage() == "" {
			continue
		}
		if _, err := m.isoPath(c.GetImage()); err != nil {
			return false
		}
	}
	if s.GetHardware().GetFirmware() == v1.Firmware_FIRMWARE_UEFI {
		if _, err := os.Stat(filepath.Join(m.dir, firmwareVars)); err != nil {
			return false
		}
	}
	return true
}

// active is the layer that a disk is written to.
func (m *machine) active(made madeDisk, name string) (disk.Layer, error) {
	st, err := m.a.stores.at(made.Path)
	if err != nil {
		return disk.Layer{}, err
	}
	disks, err := st.Disks(m.uid)
	if err != nil {
		return disk.Layer{}, err
	}
	l, ok := disks[name]
	if !ok {
		return disk.Layer{}, fmt.Errorf("disk %s: its files are not in %s", name, made.Path)
	}
	return l, nil
}

// provision makes what disksReady misses, and removes disks that the spec has no more. The VM is off.
func (m *machine) provision(ctx context.Context, vm *v1.VM) error {
	s := vm.GetSpec()
	if c := s.GetCloneFrom(); c != nil && len(m.local.Made) == 0 && !m.local.Cloned {
		if err := m.clone(ctx, vm, c); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.local.Made)) {
		if diskSpec(s, name) == nil {
			if err := m.deleteDisk(ctx, name); err != nil {
				return err
			}
		}
	}
	for _, d := range s.GetDisks() {
		if _, err := m.ensureDisk(ctx, d); err != nil {
			return fmt.Errorf("disk %s: %w", d.GetName(), err)
		}
	}
	if s.GetKernelImage() != "" {
		if err := m.a.ensureKernel(ctx, s.GetKernelImage(), m.progress("fetching image "+s.GetKernelImage())); err != nil {
			return err
		}
	}
	for _, c := range s.GetCdroms() {
		if c.GetImage() != "" {
			if err := m.ensureISO(ctx, c.GetImage()); err != nil {
				return fmt.Errorf("CD-ROM %s: %w", c.GetName(), err)
			}
		}
	}
	if s.GetHardware().GetFirmware() == v1.Firmware_FIRMWARE_UEFI {
		if err := m.ensureVars(); err != nil {
			return fmt.Errorf("UEFI variables: %w", err)
		}
	}
	m.doingNow("")
	return nil
}

// ensureDisk makes or grows one disk.
func (m *machine) ensureDisk(ctx context.Context, d *v1.DiskSpec) (madeDisk, error) {
	made, ok := m.local.Made[d.GetName()]
	if !ok {
		var err error
		if made, err = m.createDisk(ctx, d); err != nil {
			return made, err
		}
		m.local.Made[d.GetName()] = made
		return made, m.save()
	}
	l, err := m.active(made, d.GetName())
	if err != nil {
		return made, err
	}
	if l.Size < d.GetSizeBytes() {
		st, err := m.a.stores.at(made.Path)
		if err != nil {
			return made, err
		}
		return made, st.Grow(ctx, m.uid, d.GetName(), d.GetSizeBytes())
	}
	return made, nil
}

func (m *machine) createDisk(ctx context.Context, d *v1.DiskSpec) (madeDisk, error) {
	path, err := m.a.stores.path(d.GetDatastore())
	if err != nil {
		return madeDisk{}, err
	}
	st, err := m.a.stores.at(path)
	if err != nil {
		return madeDisk{}, err
	}
	made := madeDisk{Datastore: m.a.stores.nameOf(path), Path: path}
	spec := disk.Spec{Size: d.GetSizeBytes()}
	if d.GetFormat() == v1.DiskFormat_DISK_FORMAT_RAW {
		spec.Format, spec.Copy = "raw", true
	}
	if d.GetImage() != "" {
		if spec.Image, err = m.ensureImage(ctx, st, d.GetImage(), ".qcow2"); err != nil {
			return made, err
		}
		made.Image = strings.TrimSuffix(spec.Image, ".qcow2")
	}
	m.doingNow("making disk " + d.GetName())
	err = st.CreateDisk(ctx, m.uid, d.GetName(), spec)
	if errors.Is(err, disk.ErrExists) {
		err = nil // made before, and the agent died before it was written down
	}
	return made, err
}

// ensureImage has an image in a datastore's cache and returns its name there.
func (m *machine) ensureImage(ctx context.Context, st *disk.Store, name, suffix string) (string, error) {
	img, err := m.a.imageOf(name)
	if err != nil {
		return "", err
	}
	sum, size := img.GetStatus().GetSha256(), img.GetStatus().GetSizeBytes()
	file := sum + suffix
	progress := m.progress("fetching image " + name)
	err = st.EnsureImage(ctx, file, func(ctx context.Context, offset int64, w io.Writer) error {
		return m.a.fetch(ctx, sum, offset, size, w, progress)
	})
	return file, err
}

// ISO images are cached in the host's own datastore.
func (m *machine) ensureISO(ctx context.Context, name string) error {
	st, err := m.a.stores.at(m.a.stores.ownPath())
	if err != nil {
		return err
	}
	_, err = m.ensureImage(ctx, st, name, ".iso")
	return err
}

func (m *machine) isoPath(name string) (string, error) {
	img, err := m.a.imageOf(name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(m.a.stores.ownPath(), "images", img.GetStatus().GetSha256()+".iso")
	_, err = os.Stat(path)
	return path, err
}

// progress makes the message of a long fetch.
func (m *machine) progress(what string) func(int64) {
	last := int64(-1)
	return func(done int64) {
		if mib := done >> 24; mib != last { // each 16 MiB
			last = mib
			m.doingNow(fmt.Sprintf("%s: %d MiB", what, done>>20))
		}
	}
}

// doingNow tells what a long step does, while the actor itself is busy with it.
func (m *machine) doingNow(what string) {
	m.mu.Lock()
	m.busy = what
	changed := m.rep.GetStatus().GetMessage() != what && what != ""
	if changed {
		m.rep = clone(m.rep)
		m.rep.Status.Message = what
	}
	m.mu.Unlock()
	if changed {
		m.a.reporter.changed(m.uid)
	}
}

func (m *machine) doing() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.busy
}

func (m *machine) ensureVars() error {
	path := filepath.Join(m.dir, firmwareVars)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := os.ReadFile(firmwareTemplate)
	if err != nil {
		return fmt.Errorf("%w; install UEFI firmware (Debian: apt install ovmf)", err)
	}
	return writeFile(path, data, 0o600)
}

// deleteDisk removes a disk that the spec has no more. What snapshots and clones hold stays.
func (m *machine) deleteDisk(ctx context.Context, name string) error {
	made := m.local.Made[name]
	st, err := m.a.stores.at(made.Path)
	if err != nil {
		return err
	}
	if err := st.DeleteDisk(ctx, m.uid, name); err != nil && !errors.Is(err, disk.ErrNotFound) {
		return err
	}
	delete(m.local.Made, name)
	for _, bus := range []guest.DiskBus{guest.VirtioBlk, guest.VirtioSCSI, guest.SATADisk} {
		m.local.unplace(placeDisk, string(bus), name)
	}
	return m.save()
}

// removeDisks removes all data of the VM from all datastores that have some.
func (m *machine) removeDisks(ctx context.Context) error {
	paths := map[string]bool{m.a.stores.ownPath(): true}
	for _, made := range m.local.Made {
		paths[made.Path] = true
	}
	for _, p := range m.a.stores.paths() {
		paths[p] = true
	}
	var errs []error
	for p := range paths {
		st, err := m.a.stores.at(p)
		if err != nil {
			if slices.ContainsFunc(slices.Collect(maps.Values(m.local.Made)), func(d madeDisk) bool { return d.Path == p }) {
				errs = append(errs, err)
			}
			continue
		}
		errs = append(errs, st.DeleteVM(ctx, m.uid))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.local.Made = map[string]madeDisk{}
	return m.save()
}

// qemuDisk is a made disk as QEMU gets it.
func (m *machine) qemuDisk(d *v1.DiskSpec) (qemu.Disk, error) {
	made, ok := m.local.Made[d.GetName()]
	if !ok {
		return qemu.Disk{}, fmt.Errorf("disk %s was not made", d.GetName())
	}
	st, err := m.a.stores.at(made.Path)
	if err != nil {
		return qemu.Disk{}, err
	}
	chain, err := st.Chain(m.uid, d.GetName())
	if err != nil {
		return qemu.Disk{}, err
	}
	bus := resource.BusOf(d.GetBus())
	slot := m.local.place(placeDisk, string(bus), d.GetName())
	q := qemu.Disk{
		ID: diskID(bus, slot), Bus: bus, Slot: slot, ReadOnly: d.GetReadOnly(), Boot: int(d.GetBootOrder()),
		Serial: serial(d.GetName()), Layers: m.layers(made.Path, chain),
	}
	return q, nil
}

// serial is what a guest sees as the disk's serial number: its name, as far as that fits (20 characters).
func serial(name string) string {
	name = strings.ReplaceAll(name, ".", "-")
	return name[:min(len(name), 20)]
}

// layers turns a chain, which goes from the active layer down, into QEMU's, which goes up.
func (m *machine) layers(path string, chain []disk.Layer) []qemu.Layer {
	var out []qemu.Layer
	for _, l := range slices.Backward(chain) {
		if l.Remote {
			out = append(out, qemu.Layer{ID: baseNode(l.ID), Format: qemu.Raw, Shared: true, Remote: &qemu.RemoteBase{Socket: m.baseSocket(), Export: l.ID}})
			continue
		}
		out = append(out, qemu.Layer{
			ID: nodeName(l), Path: filepath.Join(path, l.File), Format: qemu.Format(l.Format), Shared: l.VM != m.uid,
		})
	}
	return out
}

// nodeName names a layer's block node by its file, which a merge does not change, unlike the layer's ID.
func nodeName(l disk.Layer) string {
	name, _, _ := strings.Cut(filepath.Base(l.File), ".")
	return "l-" + name[:min(len(name), 16)]
}

func (m *machine) qemuCDROM(c *v1.CDROMSpec) (qemu.CDROM, error) {
	slot := m.local.place(placeCDROM, "", c.GetName())
	q := qemu.CDROM{ID: cdID(slot), Slot: slot, Boot: int(c.GetBootOrder())}
	if c.GetImage() != "" {
		path, err := m.isoPath(c.GetImage())
		if err != nil {
			return q, fmt.Errorf("CD-ROM %s: %w", c.GetName(), err)
		}
		q.Path = path
	}
	return q, nil
}

// kernel is what a direct boot loads.
func (m *machine) kernel(s *v1.VMSpec) (*qemu.Kernel, error) {
	img, err := m.a.imageOf(s.GetKernelImage())
	if err != nil {
		return nil, err
	}
	dir := m.a.kernelDir(img.GetStatus().GetSha256())
	cmdline, err := os.ReadFile(filepath.Join(dir, kernelCmdline))
	if err != nil {
		return nil, fmt.Errorf("kernel image %s: %w", s.GetKernelImage(), err)
	}
	words := []string{strings.TrimSpace(string(cmdline)), s.GetKernelCmdline()}
	if resource.MachineOf(s.GetHardware().GetMachine()) == guest.MicroVM && m.a.accel.name == guest.TCG {
		// It has neither HPET nor PM timer, and when the host is busy calibrating by the PIT fails and Linux hangs.
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", m.a.accel.tscKHz))
	}
	return &qemu.Kernel{
		Image: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
		Cmdline: strings.TrimSpace(strings.Join(words, " ")),
	}, nil
}

// makeDisk makes a disk and its place for hot-plugging.
func (m *machine) makeDisk(ctx context.Context, d *v1.DiskSpec) (qemu.Disk, error) {
	if _, err := m.ensureDisk(ctx, d); err != nil {
		return qemu.Disk{}, err
	}
	q, err := m.qemuDisk(d)
	if err != nil {
		return q, err
	}
	return q, m.save()
}

func (m *machine) diskStatus(vm *v1.VM, run *runRecord) []*v1.DiskStatus {
	var out []*v1.DiskStatus
	have := run.spec()
	for _, d := range vm.GetSpec().GetDisks() {
		st := &v1.DiskStatus{Name: d.GetName(), Datastore: d.GetDatastore(), Format: d.GetFormat(), SizeBytes: d.GetSizeBytes()}
		st.Attached = diskSpec(have, d.GetName()) != nil
		if made, ok := m.local.Made[d.GetName()]; ok {
			m.fillDisk(st, made)
		}
		out = append(out, st)
	}
	return out
}

func (m *machine) fillDisk(st *v1.DiskStatus, made madeDisk) {
	st.Datastore, st.ImageSha256 = made.Datastore, made.Image
	store, err := m.a.stores.at(made.Path)
	if err != nil {
		return
	}
	chain, err := store.Chain(m.uid, st.GetName())
	if err != nil {
		return
	}
	st.SizeBytes = chain[0].Size
	if chain[0].Format == "raw" {
		st.Format = v1.DiskFormat_DISK_FORMAT_RAW
	} else {
		st.Format = v1.DiskFormat_DISK_FORMAT_QCOW2
	}
	for _, l := range chain {
		if l.Remote {
			continue
		}
		st.Layers = append(st.Layers, l.File)
		if l.VM != m.uid {
			continue
		}
		if info, err := os.Stat(filepath.Join(made.Path, l.File)); err == nil {
			// Rounded: a report each time the guest writes would be too many.
			st.AllocatedBytes += allocated(info) / grain * grain
		}
	}
}
