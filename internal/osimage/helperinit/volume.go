package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"drover/internal/osimage/helperinit/wire"
)

// volume is something that may hold files.
type volume struct {
	wire.Volume
	dev     string   // under /dev
	members []string // of btrfs: all devices that carry it
	dir     string   // where it is mounted; empty: not yet
	err     error    // why it could not be
}

// device is a block device that may be a volume, or a member of one.
type device struct {
	wire.Volume
	name string // under /dev
	f    found
}

// all finds the volumes, once.
func (m *machine) all() []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scanned {
		return m.volumes
	}
	m.scanned = true
	devs := disks()
	for i := range devs {
		devs[i].look()
	}
	for _, d := range m.arrays(devs) {
		d.look()
		devs = append(devs, d)
	}
	for _, d := range m.groups(devs) {
		if d.f.fs == "" {
			d.look()
		}
		devs = append(devs, d)
	}
	pools := map[string]*volume{}
	for _, d := range devs {
		if d.f.fs == fsMD || d.f.fs == fsLVM || d.f.fs == fsUnknown && d.Size <= 4096 {
			continue
		}
		if v := pools[d.f.uuid]; d.f.fs == fsBtrfs && v != nil && d.f.devices == 1 {
			// The kernel tells btrfs by its UUID alone.
			d.f.note = "is a copy of the file system on " + v.Place + ", and only one of the two can be opened"
		} else if d.f.fs == fsBtrfs && v != nil {
			v.members, v.Disk, v.Part = append(v.members, d.name), wire.NoDisk, 0
			v.Place += " and " + d.Place
			v.Size += d.Size
			continue
		}
		v := &volume{Volume: d.Volume, dev: d.name, members: []string{d.name}}
		v.FS, v.Label, v.UUID, v.Note = d.f.fs, d.f.label, d.f.uuid, d.f.note
		if d.f.fs == fsBtrfs && d.f.note == "" {
			pools[d.f.uuid] = v
		}
		m.volumes = append(m.volumes, v)
	}
	return m.volumes
}

// disks are the disks and partitions that the kernel shows. A disk with partitions is not a volume itself.
func disks() []device {
	dirs, _ := filepath.Glob("/sys/block/vd*")
	var out []device
	for _, dir := range dirs {
		serial := strings.TrimSpace(readText(dir + "/serial"))
		n, err := strconv.ParseUint(strings.TrimPrefix(serial, "d"), 10, 16)
		if err != nil {
			continue
		}
		os.WriteFile(dir+"/queue/read_ahead_kb", []byte("2048"), 0)
		out = append(out, partitions(filepath.Base(dir), "d"+strconv.Itoa(int(n)), uint16(n), "disk "+strconv.Itoa(int(n)))...)
	}
	sort.SliceStable(out, func(i, j int) bool {
		return out[i].Disk < out[j].Disk || out[i].Disk == out[j].Disk && out[i].Part < out[j].Part
	})
	return out
}

// partitions of a block device, or itself.
func partitions(name, id string, disk uint16, place string) []device {
	var out []device
	parts, _ := filepath.Glob("/sys/block/" + name + "/" + name + "*/partition")
	for _, p := range parts {
		k, err := strconv.ParseUint(strings.TrimSpace(readText(p)), 10, 16)
		if err != nil {
			continue
		}
		part := filepath.Base(filepath.Dir(p))
		out = append(out, device{name: part, Volume: wire.Volume{ID: fmt.Sprintf("%sp%d", id, k), Size: sizeOf(part), Disk: disk, Part: uint16(k), Place: fmt.Sprintf("%s, partition %d", place, k)}})
	}
	if len(out) == 0 {
		out = append(out, device{name: name, Volume: wire.Volume{ID: id, Size: sizeOf(name), Disk: disk, Place: place}})
	}
	return out
}

func readText(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func sizeOf(dev string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSpace(readText("/sys/class/block/"+dev+"/size")), 10, 54)
	return n * 512
}

func (d *device) look() {
	f, err := os.Open("/dev/" + d.name)
	if err != nil {
		d.f = found{fs: fsUnknown, note: "cannot be read: " + err.Error()}
		return
	}
	defer f.Close()
	d.f = probe(f, int64(d.Size))
}

// open gives the directory where a volume is mounted.
func (m *machine) open(id string) (string, error) {
	vs := m.all()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, v := range vs {
		if v.ID != id {
			continue
		}
		if v.Note != "" {
			return "", fail(wire.Unsupported, "the volume %s", v.Note)
		}
		if v.dir == "" && v.err == nil {
			dir := "/v/" + strconv.Itoa(i)
			if v.err = m.mount(v, dir); v.err == nil {
				v.dir = dir
			}
		}
		return v.dir, v.err
	}
	return "", fail(wire.NotFound, "there is no volume %q", id)
}

// mountings are the ways to mount a file system, tried in order: with its journal replayed, which writes to the overlay, and else as it stands.
var mountings = map[string]struct {
	kind    string
	modules []string
	options []string
}{
	"ext2": {"ext4", []string{"ext4"}, []string{"", "noload"}}, "ext3": {"ext4", []string{"ext4"}, []string{"", "noload"}}, "ext4": {"ext4", []string{"ext4"}, []string{"", "noload"}},
	"xfs":      {"xfs", []string{"xfs"}, []string{"nouuid", "nouuid,norecovery"}},
	fsBtrfs:    {"btrfs", []string{"btrfs"}, []string{"subvolid=5", "subvolid=5,degraded", "subvolid=5,degraded,rescue=nologreplay:usebackuproot"}},
	"vfat":     {"vfat", []string{"nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "vfat"}, []string{"utf8,codepage=437,iocharset=iso8859-1"}},
	"exfat":    {"exfat", []string{"nls_utf8", "exfat"}, []string{"iocharset=utf8"}},
	"iso9660":  {"iso9660", []string{"nls_utf8", "isofs"}, []string{"utf8"}},
	"udf":      {"udf", []string{"nls_utf8", "udf"}, []string{"utf8"}},
	"squashfs": {"squashfs", []string{"squashfs"}, []string{""}},
}

func (m *machine) mount(v *volume, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if v.FS == "ntfs" {
		return m.mountNTFS(v, dir)
	}
	how, ok := mountings[v.FS]
	if !ok {
		return fail(wire.Unsupported, "there is no driver for %s", v.FS)
	}
	m.mods.load(how.modules...)
	if v.FS == fsBtrfs {
		for _, d := range v.members {
			scanBtrfs(d)
		}
	}
	var first error
	for _, opt := range how.options {
		err := syscall.Mount("/dev/"+v.dev, dir, how.kind, syscall.MS_RDONLY|syscall.MS_NODEV|syscall.MS_NOSUID|syscall.MS_NOEXEC|syscall.MS_NOATIME, opt)
		if err == nil {
			return nil
		}
		logf("mount %s %s (%s): %v", v.ID, v.FS, opt, err)
		if first == nil {
			first = err
		}
	}
	return fail(wire.Damaged, "the %s file system cannot be mounted: %v", v.FS, first)
}

// mountNTFS: Debian's kernel has no driver for it, so it is read by a program.
func (m *machine) mountNTFS(v *volume, dir string) error {
	m.mods.load("fuse")
	var said bytes.Buffer
	cmd := exec.Command("/bin/ntfs-3g", "-o", "ro,noatime,streams_interface=none,hide_dot_files", "/dev/"+v.dev, dir)
	// Not to a pipe: the program goes on in the background with whatever it was given.
	out, err := os.CreateTemp("/run", "ntfs-")
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		if b, err := os.ReadFile(out.Name()); err == nil {
			said.Write(b[:min(len(b), 300)])
		}
		return fail(wire.Damaged, "the NTFS file system cannot be mounted: %v: %s", err, strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; "))
	}
	return nil
}
