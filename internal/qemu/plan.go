package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"drover/internal/guest"
)

// Source says where a passed descriptor comes from.
type Source string

// The sources of descriptors.
const (
	FromMonitor Source = "qmp"    // the listening socket of the monitor
	FromSerial  Source = "serial" // the listening socket of the serial console
	FromAgent   Source = "qga"    // the listening socket of the guest agent's channel
	FromFile    Source = "file"   // a file that QEMU reads by /proc/self/fd
	FromLayer   Source = "layer"  // an image file in a descriptor set
	FromTAP     Source = "tap"    // Attach.TAPs[Key][Index]
)

// FD is one descriptor that QEMU inherits. Its number in QEMU is its place in Plan.FDs plus 3.
type FD struct {
	Source Source `json:"source"`
	Key    string `json:"key,omitempty"`
	Index  int    `json:"index,omitempty"`
	Path   string `json:"path,omitempty"`
	Write  bool   `json:"write,omitempty"`
}

// Plan is a Spec made into what exec needs. It depends on nothing but the Spec.
type Plan struct {
	Args []string `json:"args"` // without the program's name
	FDs  []FD     `json:"fds"`
}

// firstFD is the number of the first inherited descriptor: 0 to 2 are the standard ones.
const firstFD = 3

// planner collects arguments and descriptors. The first error stays.
type planner struct {
	Plan
	spec *Spec
	hw   *guest.Hardware
	sets int
	err  error
}

// Make turns a valid Spec into a Plan.
func Make(s *Spec) (*Plan, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("plan machine %s: %w", s.Name, err)
	}
	hw, err := guest.Lookup(s.Machine, s.Version)
	if err != nil {
		return nil, err
	}
	p := &planner{spec: s, hw: hw}
	for _, part := range []func(){p.process, p.machine, p.memory, p.channels, p.boot, p.fixed, p.disks, p.cdroms, p.nics, p.hotplugged, p.incoming} {
		part()
	}
	if p.err != nil {
		return nil, fmt.Errorf("plan machine %s: %w", s.Name, p.err)
	}
	return &p.Plan, nil
}

func (p *planner) add(args ...string) { p.Args = append(p.Args, args...) }

func (p *planner) json(option string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		p.err = err
		return
	}
	p.add(option, string(b))
}

func (p *planner) device(d guest.Device, more ...guest.Prop) {
	if d.Present() {
		p.json("-device", append(d.Args(), more...))
	}
}

// fd adds a descriptor and returns its number in QEMU.
func (p *planner) fd(f FD) int {
	p.FDs = append(p.FDs, f)
	return firstFD + len(p.FDs) - 1
}

// file passes a file that QEMU only reads, and returns the name it can open it by.
func (p *planner) file(key, path string) string {
	return "/proc/self/fd/" + strconv.Itoa(p.fd(FD{Source: FromFile, Key: key, Path: path}))
}

// set passes an image file as a descriptor set and returns the name it can be opened by. There is one descriptor, for
// writing unless nothing ever writes the file: with a second one for reading, QEMU 7.2 changes between them and then
// meets its own image lock, which lives as long as any descriptor of that opening does.
func (p *planner) set(key, path string, write bool) string {
	n := p.sets
	p.sets++
	p.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", p.fd(FD{Source: FromLayer, Key: key, Path: path, Write: write}), n))
	return fmt.Sprintf("/dev/fdset/%d", n)
}

func (p *planner) process() {
	s := p.spec
	p.add("-name", "guest="+s.Name+",debug-threads=on", "-uuid", s.UUID, "-S", "-nodefaults", "-no-user-config",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-msg", "timestamp=on", "-display", "none")
	// A guest that panics may still write its crash dump, so QEMU only reports it.
	p.add("-action", "panic=none")
	if !s.Headless && p.hw.VGA.Present() {
		p.add("-vnc", "none") // ready for viewers that come as descriptors, listening nowhere
	}
}

func (p *planner) machine() {
	s, hw := p.spec, p.hw
	opts := []string{hw.QEMU, "accel=" + string(s.Accel), "memory-backend=ram"}
	for _, o := range hw.Options {
		opts = append(opts, fmt.Sprintf("%s=%v", o.Key, o.Value))
	}
	if s.Firmware.Kind == guest.UEFI {
		opts = append(opts, "pflash0=fw_code", "pflash1=fw_vars")
	}
	p.add("-machine", strings.Join(opts, ","))
	for _, g := range hw.Globals {
		p.add("-global", g)
	}
	p.add("-cpu", p.cpu())
	most := max(s.CPU.Sockets, s.CPU.MaxSockets)
	p.add("-smp", fmt.Sprintf("cpus=%d,sockets=%d,cores=%d,threads=1,maxcpus=%d", s.CPU.Sockets*s.CPU.Cores, most, s.CPU.Cores, most*s.CPU.Cores))
	base := "utc"
	if s.LocalRTC {
		base = "localtime"
	}
	p.add("-rtc", "base="+base+",driftfix=slew", "-overcommit", "mem-lock=off")
	var id []string
	for _, kv := range [][2]string{{"manufacturer", s.SMBIOS.Manufacturer}, {"product", s.SMBIOS.Product}, {"serial", s.SMBIOS.Serial}} {
		if kv[1] != "" {
			id = append(id, kv[0]+"="+strings.ReplaceAll(kv[1], ",", ",,"))
		}
	}
	if id != nil {
		p.add("-smbios", "type=1,"+strings.Join(id, ","))
	}
}

func (p *planner) cpu() string {
	base := p.hw.CPU[p.spec.Accel]
	parts := []string{base.Model, "enforce=on"}
	if p.spec.CPU.Model != "" {
		parts[0] = p.spec.CPU.Model
	}
	parts = append(parts, base.Features...)
	if p.spec.HyperV {
		parts = append(parts, base.HyperV...)
	}
	return strings.Join(append(parts, p.spec.CPU.Features...), ",")
}

// cpuModel is the model that hotplugged CPUs must have too.
func (s *Spec) cpuModel(hw *guest.Hardware) string {
	if s.CPU.Model != "" {
		return s.CPU.Model
	}
	return hw.CPU[s.Accel].Model
}

func (p *planner) memory() {
	m := p.spec.Memory
	arg := fmt.Sprintf("size=%dM", m.MiB)
	if m.MaxMiB > m.MiB {
		arg += fmt.Sprintf(",slots=%d,maxmem=%dM", p.hw.MemorySlots, m.MaxMiB)
	}
	p.add("-m", arg)
	p.json("-object", ramBackend("ram", m.Path, m.MiB))
}

func ramBackend(id, path string, mib int64) guest.Props {
	return guest.Props{
		{Key: "qom-type", Value: "memory-backend-file"}, {Key: "id", Value: id}, {Key: "size", Value: mib << 20},
		{Key: "mem-path", Value: path}, {Key: "share", Value: true},
	}
}

// socket adds a chardev over a listening socket that the agent is already connected to.
func (p *planner) socket(src Source, id string) {
	p.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, p.fd(FD{Source: src})))
}

func (p *planner) channels() {
	p.socket(FromMonitor, "qmp")
	p.add("-mon", "chardev=qmp,mode=control")
	p.socket(FromSerial, "console0")
	p.add("-serial", "chardev:console0")
	p.socket(FromAgent, "qga")
}

func (p *planner) boot() {
	s := p.spec
	if s.Firmware.Kind == guest.UEFI {
		code := p.set("fw_code", s.Firmware.Code, false)
		p.json("-blockdev", fileNode("fw_code_f", code, WriteBack, true))
		p.json("-blockdev", formatNode("fw_code", Raw, "fw_code_f", "", true))
		vars := p.set("fw_vars", s.Firmware.Vars, true)
		p.json("-blockdev", fileNode("fw_vars_f", vars, WriteBack, false))
		p.json("-blockdev", formatNode("fw_vars", Raw, "fw_vars_f", "", false))
	}
	if p.hw.BIOS != "" && s.Firmware.Kind == guest.BIOS {
		p.add("-bios", p.hw.BIOS)
	}
	p.add("-boot", "menu=off,strict=on")
	if k := s.Kernel; k != nil {
		p.add("-kernel", p.file("kernel", k.Image))
		if k.Initrd != "" {
			p.add("-initrd", p.file("initrd", k.Initrd))
		}
		if k.Cmdline != "" {
			p.add("-append", k.Cmdline)
		}
	}
	for _, f := range s.FwCfg {
		p.add("-fw_cfg", "name="+f.Name+",file="+p.file(f.Name, f.Path))
	}
}

// fixed adds what every machine of the hardware version has.
func (p *planner) fixed() {
	hw := p.hw
	for _, d := range hw.Bridges {
		p.device(d)
	}
	if !p.spec.Headless {
		p.device(hw.VGA)
		p.device(hw.USB)
		p.device(hw.Tablet)
	}
	p.device(hw.Serial)
	p.device(guest.Device{ID: "agent0", Driver: "virtserialport", Bus: hw.Serial.ID + ".0", Props: guest.Props{
		{Key: "nr", Value: 1}, {Key: "chardev", Value: "qga"}, {Key: "name", Value: "org.qemu.guest_agent.0"},
	}})
	p.device(hw.SCSI)
	p.device(hw.Balloon)
	p.json("-object", guest.Props{{Key: "qom-type", Value: "rng-builtin"}, {Key: "id", Value: "entropy"}})
	p.device(hw.RNG, guest.Prop{Key: "rng", Value: "entropy"})
	p.device(hw.Panic)
	if p.spec.GenerationID != "" {
		p.device(hw.GenID, guest.Prop{Key: "guid", Value: p.spec.GenerationID})
	}
}

func (p *planner) incoming() {
	if p.spec.Incoming {
		p.add("-incoming", "defer")
	}
}
