package qemu

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"

	"drover/internal/guest"
)

// ErrSpec says that a Spec cannot be a machine.
var ErrSpec = errors.New("invalid machine")

// Spec says what a machine is. It is plain data: it goes into the state file as JSON. Paths are absolute and are opened
// by the agent, never by QEMU, except for RAM and DIMM files.
type Spec struct {
	Name    string        `json:"name"`
	UUID    string        `json:"uuid"`
	Machine guest.Machine `json:"machine"`
	Version int           `json:"hardware_version"`
	Accel   guest.Accel   `json:"accel"`

	CPU    CPU    `json:"cpu"`
	Memory Memory `json:"memory"`

	Firmware Firmware `json:"firmware"`
	Kernel   *Kernel  `json:"kernel,omitempty"` // direct kernel boot

	Disks  []Disk  `json:"disks,omitempty"`
	CDROMs []CDROM `json:"cdroms,omitempty"`
	NICs   []NIC   `json:"nics,omitempty"`

	HyperV       bool    `json:"hyperv,omitempty"`        // the guest is Windows
	LocalRTC     bool    `json:"local_rtc,omitempty"`     // the hardware clock shows local time
	Headless     bool    `json:"headless,omitempty"`      // no VGA, USB or tablet
	GenerationID string  `json:"generation_id,omitempty"` // a UUID that changes when the machine is copied or goes back in time
	SMBIOS       SMBIOS  `json:"smbios,omitzero"`
	FwCfg        []FwCfg `json:"fw_cfg,omitempty"`
	Incoming     bool    `json:"incoming,omitempty"` // start without memory, and wait for it (Attach.Incoming or migrate-incoming)
}

// CPU is the processor topology. Sockets × Cores CPUs exist at the start; up to MaxSockets × Cores can be added.
type CPU struct {
	Sockets    int      `json:"sockets"`
	Cores      int      `json:"cores"`
	MaxSockets int      `json:"max_sockets,omitempty"` // 0: no more than Sockets
	Model      string   `json:"model,omitempty"`       // empty: the hardware version's baseline
	Features   []string `json:"features,omitempty"`    // "name=on" or "name=off", after the model's
	Plugged    []int    `json:"plugged,omitempty"`     // sockets added while running, by number
}

// Memory is the guest's RAM in MiB. Path is a file in a tmpfs; Start makes it, and Remove of the machine deletes it.
type Memory struct {
	MiB    int64  `json:"mib"`
	MaxMiB int64  `json:"max_mib,omitempty"` // ceiling for hotplug; 0: none
	Path   string `json:"path"`              // DIMM n is at Path.dimmN
	DIMMs  []DIMM `json:"dimms,omitempty"`
}

// DIMM is memory that was added while running.
type DIMM struct {
	Slot int   `json:"slot"`
	MiB  int64 `json:"mib"`
}

// Firmware is what the guest starts with. For UEFI both paths are needed: Code is shared and read-only, Vars belongs to
// this machine and is written.
type Firmware struct {
	Kind guest.Firmware `json:"kind"`
	Code string         `json:"code,omitempty"`
	Vars string         `json:"vars,omitempty"`
}

// Kernel is what a direct boot loads.
type Kernel struct {
	Image   string `json:"image"`
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
}

// Disk is a disk and its layers. Layers go from the base to the active one, which is written.
type Disk struct {
	ID       string        `json:"id"` // at most 16 of a–z, 0–9, "-"; starts with a letter
	Bus      guest.DiskBus `json:"bus"`
	Slot     int           `json:"slot"`
	Serial   string        `json:"serial,omitempty"` // at most 20 of A–Z, a–z, 0–9, "-", "_"
	ReadOnly bool          `json:"read_only,omitempty"`
	Boot     int           `json:"boot,omitempty"` // 1 is tried first; 0: not booted from
	Cache    Cache         `json:"cache,omitempty"`
	Layers   []Layer       `json:"layers"`
}

// Cache is how a disk uses the host's page cache.
type Cache string

// The cache modes. A guest's flush reaches the disk in all but Unsafe, which is for throwaway machines.
const (
	WriteBack Cache = ""
	Direct    Cache = "direct"
	Unsafe    Cache = "unsafe"
)

// Format is an image format.
type Format string

// The formats that a running machine uses. Others are converted on import.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// Layer is one image file. Its ID names the block node and stays with the file wherever the layer goes in the graph.
type Layer struct {
	ID     string `json:"id"` // at most 24 of a–z, 0–9, "-"; starts with a letter; unique in the machine
	Path   string `json:"path"`
	Format Format `json:"format"`
	Shared bool   `json:"shared,omitempty"` // others may read it too: never written, also not by a merge
	// Remote, in place of Path, is where a base is that is not on this machine.
	Remote *RemoteBase `json:"remote,omitempty"`
}

// CDROM is a drive. An empty Path is an empty drive.
type CDROM struct {
	ID   string `json:"id"`
	Slot int    `json:"slot"`
	Path string `json:"path,omitempty"`
	Boot int    `json:"boot,omitempty"`
}

// NIC is a network adapter. Its TAP's descriptors are passed to Start or AddNIC, one per queue.
type NIC struct {
	ID      string        `json:"id"`
	Slot    int           `json:"slot"`
	Adapter guest.Adapter `json:"adapter"`
	MAC     string        `json:"mac"`
	MTU     int           `json:"mtu,omitempty"`    // told to the guest where the adapter can
	Queues  int           `json:"queues,omitempty"` // 0: 1
	Boot    int           `json:"boot,omitempty"`
	Down    bool          `json:"down,omitempty"` // the link is shown as unplugged
	// User, if set, is what the NIC is connected to in place of a TAP.
	User *UserNet `json:"user,omitempty"`
}

// SMBIOS is what dmidecode shows in the guest.
type SMBIOS struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Serial       string `json:"serial,omitempty"` // cloud-init reads "ds=nocloud…" here
}

// FwCfg is a named blob that the guest can read, under opt/.
type FwCfg struct {
	Name string `json:"name"` // "opt/…"
	Path string `json:"path"`
}

var (
	idRE       = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	uuidRE     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	nameRE     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	serialRE   = regexp.MustCompile(`^[A-Za-z0-9_-]{0,20}$`)
	fwCfgRE    = regexp.MustCompile(`^opt/[A-Za-z0-9._/-]{1,50}$`)
	cpuModelRE = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	cidrRE     = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}$`)
	ip4RE      = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){3}$`)
	featureRE  = regexp.MustCompile(`^[a-z0-9._-]+=(on|off)$`)
)

// maxMiB is the largest memory that the parts of QEMU's address map here were meant for: 4 TiB.
const maxMiB = 4 << 20

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
}

// Validate checks everything that can be checked without touching the machine, with the reason in the error.
func (s *Spec) Validate() error {
	hw, err := guest.Lookup(s.Machine, s.Version)
	if err != nil {
		return err
	}
	switch {
	case s.Version == 0:
		return bad("hardware_version must be stated")
	case !nameRE.MatchString(s.Name):
		return bad("name %q: use letters, digits, dots, dashes", s.Name)
	case !uuidRE.MatchString(s.UUID):
		return bad("uuid %q", s.UUID)
	case s.GenerationID != "" && !uuidRE.MatchString(s.GenerationID):
		return bad("generation_id %q is no UUID", s.GenerationID)
	case s.Accel != guest.KVM && s.Accel != guest.TCG:
		return bad("accel %q: use kvm or tcg", s.Accel)
	}
	for _, check := range []func(*guest.Hardware) error{s.validCPU, s.validMemory, s.validBoot, s.validDisks, s.validNICs} {
		if err := check(hw); err != nil {
			return err
		}
	}
	for _, v := range []string{s.SMBIOS.Manufacturer, s.SMBIOS.Product, s.SMBIOS.Serial} {
		if len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
			return bad("smbios value %q: printable ASCII up to 255 characters", v)
		}
	}
	return nil
}

func (s *Spec) validCPU(hw *guest.Hardware) error {
	c := s.CPU
	if c.Sockets < 1 || c.Cores < 1 || c.Sockets > hw.MaxCPUs || c.Cores > hw.MaxCPUs || c.MaxSockets > hw.MaxCPUs || max(c.Sockets, c.MaxSockets)*c.Cores > hw.MaxCPUs {
		return bad("cpu: %d sockets of %d cores: from 1 to %d CPUs in all", max(c.Sockets, c.MaxSockets), c.Cores, hw.MaxCPUs)
	}
	if c.MaxSockets != 0 && c.MaxSockets < c.Sockets {
		return bad("cpu: max_sockets %d is below sockets %d", c.MaxSockets, c.Sockets)
	}
	if c.MaxSockets > c.Sockets && !hw.CPUHotplug {
		return bad("cpu: CPUs cannot be added to a running %s; leave max_sockets out", s.Machine)
	}
	for _, n := range c.Plugged {
		if n < c.Sockets || n >= c.MaxSockets {
			return bad("cpu: socket %d is not one that can be plugged", n)
		}
	}
	if c.Model != "" && !cpuModelRE.MatchString(c.Model) {
		return bad("cpu model %q", c.Model)
	}
	for _, f := range c.Features {
		if !featureRE.MatchString(f) {
			return bad("cpu feature %q: write name=on or name=off", f)
		}
	}
	return nil
}

func (s *Spec) validMemory(hw *guest.Hardware) error {
	m := s.Memory
	if m.MiB < 16 || m.MiB > maxMiB || m.MaxMiB < 0 || m.MaxMiB > maxMiB {
		return bad("memory: %d MiB, at most %d: from 16 to %d", m.MiB, m.MaxMiB, maxMiB)
	}
	if m.MaxMiB != 0 && m.MaxMiB < m.MiB {
		return bad("memory: max_mib %d is below mib %d", m.MaxMiB, m.MiB)
	}
	if m.MaxMiB > m.MiB && hw.MemorySlots == 0 {
		return bad("memory: none can be added to a running %s; leave max_mib out", s.Machine)
	}
	seen := map[int]bool{}
	for _, d := range m.DIMMs {
		if d.Slot < 0 || d.Slot >= hw.MemorySlots || seen[d.Slot] || d.MiB < 128 || d.MiB%128 != 0 || d.MiB > maxMiB {
			return bad("memory: DIMM of %d MiB in slot %d: multiples of 128 MiB in slots 0 to %d", d.MiB, d.Slot, hw.MemorySlots-1)
		}
		seen[d.Slot] = true
	}
	return absolute("memory path", m.Path)
}

func (s *Spec) validBoot(hw *guest.Hardware) error {
	if !hw.HasFirmware(s.Firmware.Kind) {
		return bad("firmware %q: %s has %v", s.Firmware.Kind, s.Machine, hw.Firmware)
	}
	if s.Firmware.Kind == guest.UEFI {
		if err := absolute("firmware code", s.Firmware.Code); err != nil {
			return err
		}
		if err := absolute("firmware vars", s.Firmware.Vars); err != nil {
			return err
		}
	}
	if hw.DirectBoot && s.Kernel == nil {
		return bad("%s boots only a kernel given from outside; set kernel, or use q35", s.Machine)
	}
	if k := s.Kernel; k != nil {
		if err := absolute("kernel", k.Image); err != nil {
			return err
		}
		if k.Initrd != "" {
			if err := absolute("initrd", k.Initrd); err != nil {
				return err
			}
		}
		if len(k.Cmdline) > 2000 || strings.ContainsAny(k.Cmdline, "\x00\n") {
			return bad("kernel command line: one line of at most 2000 characters")
		}
	}
	for _, f := range s.FwCfg {
		if !fwCfgRE.MatchString(f.Name) {
			return bad("fw_cfg name %q: starts with opt/, at most 55 characters", f.Name)
		}
		if err := absolute("fw_cfg "+f.Name, f.Path); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spec) validNICs(hw *guest.Hardware) error {
	ids, slots, macs := map[string]bool{}, map[int]bool{}, map[string]bool{}
	for _, n := range s.NICs {
		if err := n.validate(hw); err != nil {
			return err
		}
		if ids[n.ID] || slots[n.Slot] || macs[n.MAC] {
			return bad("NIC %s: its id, slot %d or MAC %s is used twice", n.ID, n.Slot, n.MAC)
		}
		ids[n.ID], slots[n.Slot], macs[n.MAC] = true, true, true
	}
	return nil
}

func (n *NIC) validate(hw *guest.Hardware) error {
	if !validID(n.ID, 16) {
		return bad("NIC id %q: at most 16 of a-z, 0-9 and dashes, a letter first", n.ID)
	}
	if _, err := hw.NIC(n.Adapter, n.Slot); err != nil {
		return fmt.Errorf("NIC %s: %w", n.ID, err)
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() != n.MAC {
		return bad("NIC %s: MAC %q: six bytes as aa:bb:cc:dd:ee:ff, lower case, not multicast", n.ID, n.MAC)
	}
	row := hw.Adapters[n.Adapter]
	if n.Queues < 0 || n.Queues > row.Queues {
		return bad("NIC %s: %d queues: %s has at most %d", n.ID, n.Queues, n.Adapter, row.Queues)
	}
	if n.User != nil {
		if n.Queues > 1 {
			return bad("NIC %s: a user network has one queue", n.ID)
		}
		if err := n.User.validate(n.ID); err != nil {
			return err
		}
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > row.MTU) {
		return bad("NIC %s: MTU %d: %s takes 68 to %d", n.ID, n.MTU, n.Adapter, row.MTU)
	}
	return nil
}

func validID(id string, most int) bool { return len(id) <= most && idRE.MatchString(id) }

// absolute also keeps commas and control characters out: QEMU's options end at a comma.
func absolute(what, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == ',' || r == 0x7f }) {
		return bad("%s: path %q must be absolute, clean and without commas", what, path)
	}
	return nil
}
