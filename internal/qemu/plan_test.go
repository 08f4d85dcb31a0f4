package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drover/internal/guest"
)

var update = flag.Bool("update", false, "write the golden files of plans")

// small is the least machine of a kind.
func small(m guest.Machine) Spec {
	s := Spec{
		Name: "web1", UUID: "2f0c2f5e-6b0e-4b7a-9c55-0f3a3d1e9a01", Machine: m, Version: 1, Accel: guest.TCG,
		CPU: CPU{Sockets: 1, Cores: 1}, Memory: Memory{MiB: 256, Path: "/dev/shm/vm/web1"}, Firmware: Firmware{Kind: guest.BIOS},
	}
	if m == guest.MicroVM {
		s.Kernel = &Kernel{Image: "/img/vmlinuz", Initrd: "/img/initrd", Cmdline: "console=ttyS0"}
	}
	return s
}

// plans are the golden cases by name.
func plans() map[string]Spec {
	out := map[string]Spec{}
	for _, m := range []guest.Machine{guest.Q35, guest.MicroVM} {
		out[string(m)+"-bios"] = small(m)
		s := small(m)
		s.Accel = guest.KVM
		out[string(m)+"-kvm"] = s
		hw, _ := guest.Lookup(m, 1)
		for _, a := range guest.Adapters() {
			if _, ok := hw.Adapters[a]; !ok {
				continue
			}
			s := small(m)
			s.NICs = []NIC{{ID: "net0", Slot: 0, Adapter: a, MAC: "52:54:00:00:00:01"}, {ID: "net7", Slot: 7, Adapter: a, MAC: "52:54:00:00:00:02", Boot: 1}}
			out[string(m)+"-nic-"+string(a)] = s
		}
		for _, bus := range []guest.DiskBus{guest.VirtioBlk, guest.VirtioSCSI, guest.SATADisk} {
			if _, ok := hw.Disks[bus]; !ok {
				continue
			}
			s := small(m)
			s.Disks = []Disk{
				{ID: "root", Bus: bus, Slot: 0, Boot: 1, Layers: []Layer{
					{ID: "image", Path: "/ds/images/a.qcow2", Format: Qcow2, Shared: true},
					{ID: "root-1", Path: "/ds/web1/root-1.qcow2", Format: Qcow2},
					{ID: "root-2", Path: "/ds/web1/root-2.qcow2", Format: Qcow2},
				}},
				{ID: "data", Bus: bus, Slot: 3, Serial: "SN-1", Cache: Direct, Layers: []Layer{{ID: "data-1", Path: "/ds/web1/data.raw", Format: Raw}}},
				{ID: "iso", Bus: bus, Slot: 2, ReadOnly: true, Cache: Unsafe, Layers: []Layer{{ID: "iso-1", Path: "/ds/x.iso", Format: Raw, Shared: true}}},
			}
			out[string(m)+"-disk-"+string(bus)] = s
		}
	}
	s := small(guest.Q35)
	s.Firmware = Firmware{Kind: guest.UEFI, Code: "/fw/OVMF_CODE_4M.fd", Vars: "/vm/vars.fd"}
	s.HyperV, s.LocalRTC, s.Accel = true, true, guest.KVM
	s.CPU = CPU{Sockets: 1, Cores: 2, MaxSockets: 4, Model: "EPYC-v3", Features: []string{"svm=off"}, Plugged: []int{2}}
	s.Memory = Memory{MiB: 1024, MaxMiB: 4096, Path: "/dev/shm/vm/w", DIMMs: []DIMM{{Slot: 0, MiB: 512}}}
	s.CDROMs = []CDROM{{ID: "cd0", Slot: 0, Path: "/ds/win.iso", Boot: 1}, {ID: "cd1", Slot: 1}}
	s.NICs = []NIC{{ID: "net0", Slot: 0, Adapter: guest.VirtioNet, MAC: "52:54:00:00:00:01", Queues: 2, MTU: 1450}}
	s.SMBIOS = SMBIOS{Manufacturer: "Drover", Serial: "ds=nocloud,s=x"}
	s.FwCfg = []FwCfg{{Name: "opt/org.test/a", Path: "/a"}}
	s.GenerationID = "00000000-1111-2222-3333-444444444444"
	s.Incoming = true
	out["q35-uefi-everything"] = s
	s = small(guest.Q35)
	s.Headless, s.Incoming = true, true
	out["q35-headless-incoming"] = s
	s = small(guest.Q35)
	s.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Slot: 0, Layers: []Layer{
		{ID: "base", Format: Raw, Shared: true, Remote: &RemoteBase{Socket: "/run/web1/nbd", Export: "point/root"}},
		{ID: "root-1", Path: "/ds/web1/root-1.qcow2", Format: Qcow2},
	}}}
	s.NICs = []NIC{{ID: "net0", Slot: 0, Adapter: guest.VirtioNet, MAC: "52:54:00:00:00:01",
		User: &UserNet{Net: "192.168.7.0/24", Forward: []Forward{{Host: 40000, Addr: "192.168.7.9", Guest: 80}}}}}
	out["q35-remote"] = s
	return out
}

func TestPlanGolden(t *testing.T) {
	for name, spec := range plans() {
		t.Run(name, func(t *testing.T) {
			plan, err := Make(&spec)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			for i, a := range plan.Args {
				sep := "\n"
				if i+1 < len(plan.Args) && strings.HasPrefix(a, "-") && !strings.HasPrefix(plan.Args[i+1], "-") {
					sep = " "
				}
				b.WriteString(a + sep)
			}
			for i, f := range plan.FDs {
				j, _ := json.Marshal(f)
				fmt.Fprintf(&b, "fd %d: %s\n", i+firstFD, j)
			}
			file := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v; run with -update once and look at what it wrote", err)
			}
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("arguments differ from %s:\n%s", file, b.Bytes())
			}
		})
	}
}

func TestPlanIsDeterministic(t *testing.T) {
	for name, spec := range plans() {
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var again Spec
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		x, err1 := Make(&spec)
		y, err2 := Make(&again)
		if err1 != nil || err2 != nil || !slices.Equal(x.Args, y.Args) || !slices.Equal(x.FDs, y.FDs) {
			t.Errorf("%s: a spec that went through the state file makes another machine (%v, %v)", name, err1, err2)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	disk := Disk{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{{ID: "a", Path: "/a", Format: Qcow2}}}
	nic := NIC{ID: "n", Adapter: guest.VirtioNet, MAC: "52:54:00:00:00:01"}
	for name, change := range map[string]func(*Spec){
		"no version":         func(s *Spec) { s.Version = 0 },
		"future version":     func(s *Spec) { s.Version = 9 },
		"name option":        func(s *Spec) { s.Name = "a,debug-threads=off" },
		"uuid":               func(s *Spec) { s.UUID = "x" },
		"accel":              func(s *Spec) { s.Accel = "xen" },
		"no cpu":             func(s *Spec) { s.CPU.Sockets = 0 },
		"10^18 cpus":         func(s *Spec) { s.CPU.Cores = 1e18 },
		"overflowing cpus":   func(s *Spec) { s.CPU = CPU{Sockets: 1, Cores: 200, MaxSockets: 1 << 60} },
		"max below":          func(s *Spec) { s.CPU = CPU{Sockets: 2, Cores: 1, MaxSockets: 1} },
		"model option":       func(s *Spec) { s.CPU.Model = "max,+vmx" },
		"feature option":     func(s *Spec) { s.CPU.Features = []string{"a=on,b=on"} },
		"no memory":          func(s *Spec) { s.Memory.MiB = 0 },
		"10^18 memory":       func(s *Spec) { s.Memory.MiB = 1e18 },
		"negative memory":    func(s *Spec) { s.Memory.MiB = -1 },
		"relative ram":       func(s *Spec) { s.Memory.Path = "ram" },
		"climbing ram":       func(s *Spec) { s.Memory.Path = "/dev/shm/../../etc/x" },
		"DIMM twice":         func(s *Spec) { s.Memory.MaxMiB = 1024; s.Memory.DIMMs = []DIMM{{0, 128}, {0, 128}} },
		"firmware":           func(s *Spec) { s.Firmware.Kind = "coreboot" },
		"uefi without files": func(s *Spec) { s.Firmware.Kind = guest.UEFI },
		"kernel newline":     func(s *Spec) { s.Kernel = &Kernel{Image: "/k", Cmdline: "a\nb"} },
		"disk no layers":     func(s *Spec) { d := disk; d.Layers = nil; s.Disks = []Disk{d} },
		"disk id":            func(s *Spec) { d := disk; d.ID = "a,b"; s.Disks = []Disk{d} },
		"disk twice":         func(s *Spec) { s.Disks = []Disk{disk, disk} },
		"disk slot":          func(s *Spec) { d := disk; d.Slot = 8; s.Disks = []Disk{d} },
		"disk slot -1":       func(s *Spec) { d := disk; d.Slot = -1; s.Disks = []Disk{d} },
		"disk bus":           func(s *Spec) { d := disk; d.Bus = "ide"; s.Disks = []Disk{d} },
		"disk serial":        func(s *Spec) { d := disk; d.Serial = "a,b"; s.Disks = []Disk{d} },
		"layer path":         func(s *Spec) { d := disk; d.Layers = []Layer{{ID: "a", Path: "a", Format: Raw}}; s.Disks = []Disk{d} },
		"layer format": func(s *Spec) {
			d := disk
			d.Layers = []Layer{{ID: "a", Path: "/a", Format: "vmdk"}}
			s.Disks = []Disk{d}
		},
		"raw overlay": func(s *Spec) {
			d := disk
			d.Layers = append(d.Layers[:1:1], Layer{ID: "b", Path: "/b", Format: Raw})
			s.Disks = []Disk{d}
		},
		"CD slot":           func(s *Spec) { s.CDROMs = []CDROM{{ID: "c", Slot: 2}} },
		"nic adapter":       func(s *Spec) { n := nic; n.Adapter = "ne2k"; s.NICs = []NIC{n} },
		"nic MAC multicast": func(s *Spec) { n := nic; n.MAC = "01:00:5e:00:00:01"; s.NICs = []NIC{n} },
		"nic MAC upper":     func(s *Spec) { n := nic; n.MAC = "52:54:00:00:00:AA"; s.NICs = []NIC{n} },
		"nic MTU":           func(s *Spec) { n := nic; n.MTU = 70000; s.NICs = []NIC{n} },
		"nic slots shared": func(s *Spec) {
			n := nic
			n.ID, n.MAC, n.Adapter = "m", "52:54:00:00:00:02", guest.E1000
			s.NICs = []NIC{nic, n}
		},
		"smbios newline":       func(s *Spec) { s.SMBIOS.Serial = "a\nb" },
		"fw_cfg outside opt":   func(s *Spec) { s.FwCfg = []FwCfg{{Name: "etc/x", Path: "/x"}} },
		"generation id":        func(s *Spec) { s.GenerationID = "auto,x=y" },
		"microvm without boot": func(s *Spec) { s.Machine = guest.MicroVM },
		"microvm hotplug":      func(s *Spec) { *s = small(guest.MicroVM); s.CPU.MaxSockets = 2 },
		"microvm memory":       func(s *Spec) { *s = small(guest.MicroVM); s.Memory.MaxMiB = 1024 },
		"microvm CD":           func(s *Spec) { *s = small(guest.MicroVM); s.CDROMs = []CDROM{{ID: "c"}} },
		"microvm e1000":        func(s *Spec) { *s = small(guest.MicroVM); n := nic; n.Adapter = guest.E1000; s.NICs = []NIC{n} },
	} {
		s := small(guest.Q35)
		change(&s)
		_, err := Make(&s)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if !errors.Is(err, ErrSpec) && !errors.Is(err, guest.ErrUnknown) && !errors.Is(err, guest.ErrUnsupported) {
			t.Errorf("%s: untyped error %v", name, err)
		}
	}
}
