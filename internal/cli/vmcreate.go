package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// vmFlags describe a VM.
type vmFlags struct {
	image, kernel, cmdline, os, description string
	cpus, maxCPUs                           int32
	memory, maxMemory                       bytesFlag
	disks, networks, nics, cdroms           []string
	datastore                               string
	machine, firmware, cpuModel             string
	hardware                                int32
	site, host, affinity, antiAffinity      string
	hostLabels                              []string
	prefer                                  bool
	keys                                    []string
	user, hostname, userData, netConfig     string
	noCloudInit                             bool
	restart                                 string
	startOrder                              int32
	stopTimeout                             time.Duration
	labels                                  labelFlags
}

func (f *vmFlags) add(a *App, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.image, "image", "", "image that the first disk starts from")
	fs.StringVar(&f.kernel, "kernel", "", "kernel image to boot directly, such as tiny")
	fs.StringVar(&f.cmdline, "cmdline", "", "added to the kernel image's command line")
	fs.StringVar(&f.os, "os", "", "guest operating system, a row of \"drover image os\" (default: the image's)")
	fs.StringVar(&f.description, "description", "", "a line for people")
	fs.Int32Var(&f.cpus, "cpus", 0, "virtual CPUs (default 1)")
	fs.Int32Var(&f.maxCPUs, "max-cpus", 0, "CPUs that it can grow to while it runs")
	fs.Var(&f.memory, "memory", "memory, such as 1G (default 512M)")
	fs.Var(&f.maxMemory, "max-memory", "memory that it can grow to while it runs")
	fs.StringArrayVar(&f.disks, "disk", nil, "disk: SIZE, or KEY=VALUE,… of "+diskKeys+" (repeatable)")
	fs.StringVar(&f.datastore, "datastore", "", "datastore of disks that name none")
	fs.StringArrayVar(&f.cdroms, "cdrom", nil, "ISO image for a CD-ROM drive (repeatable)")
	fs.StringArrayVar(&f.networks, "network", nil, "network to have a NIC on (repeatable)")
	fs.StringArrayVar(&f.nics, "nic", nil, "NIC: KEY=VALUE,… of "+nicKeys+" (repeatable)")
	fs.StringVar(&f.machine, "machine", "", "q35 or microvm (default q35)")
	fs.StringVar(&f.firmware, "firmware", "", "bios or uefi (default bios)")
	fs.StringVar(&f.cpuModel, "cpu-model", "", "QEMU CPU model (default: the hardware version's)")
	fs.Int32Var(&f.hardware, "hardware-version", 0, "virtual hardware version (default: the newest)")
	fs.StringVar(&f.site, "site", "", "site to run in")
	fs.StringVar(&f.host, "host", "", "host to run on")
	fs.StringArrayVar(&f.hostLabels, "host-label", nil, "label `KEY=VALUE` that the host must have (repeatable)")
	fs.StringVar(&f.affinity, "affinity", "", "group of VMs that share a host")
	fs.StringVar(&f.antiAffinity, "anti-affinity", "", "group of VMs that never share a host")
	fs.BoolVar(&f.prefer, "prefer", false, "prefer the wishes on site, host, labels and groups instead of insisting")
	fs.StringArrayVar(&f.keys, "ssh-key", nil, "SSH public key for the guest's user: a `FILE`, or the key itself (repeatable)")
	fs.StringVar(&f.user, "user", "", "user to make in the guest (default: the image's)")
	fs.StringVar(&f.hostname, "hostname", "", "host name in the guest (default: the VM's name)")
	fs.StringVar(&f.userData, "user-data", "", "cloud-init user data, a `FILE` (- is standard input)")
	fs.StringVar(&f.netConfig, "network-config", "", "cloud-init network config version 2, a `FILE`")
	fs.BoolVar(&f.noCloudInit, "no-cloud-init", false, "give the guest no cloud-init seed")
	fs.StringVar(&f.restart, "restart", "", "when to start again by itself: on-crash, always or never (default on-crash)")
	fs.Int32Var(&f.startOrder, "start-order", 0, "after a host's reboot: lowest first")
	fs.DurationVar(&f.stopTimeout, "stop-timeout", 0, "how long a stop may take before power is cut (default 90s)")
	f.labels.add(cmd, false)
	register(cmd, "image", a.names(imageKind(), `spec.kind = "DISK"`))
	register(cmd, "kernel", a.names(imageKind(), `spec.kind = "KERNEL"`))
	register(cmd, "cdrom", a.names(imageKind(), `spec.kind = "ISO"`))
	register(cmd, "network", a.names(networkKind(), ""))
	register(cmd, "site", a.names(siteKind(), ""))
	register(cmd, "host", a.names(hostKind(), ""))
	register(cmd, "datastore", a.names(datastoreKind(), ""))
	register(cmd, "machine", words(unit.Words(v1.MachineKind(0).Descriptor())...))
	register(cmd, "firmware", words(unit.Words(v1.Firmware(0).Descriptor())...))
	register(cmd, "restart", words(unit.Words(v1.RestartPolicy(0).Descriptor())...))
}

// spec is the VM that the flags describe.
func (f *vmFlags) spec(a *App, name string) (*v1.VM, error) {
	s := &v1.VMSpec{
		Description: f.description, Cpus: f.cpus, MaxCpus: f.maxCPUs, MemoryBytes: int64(f.memory), MaxMemoryBytes: int64(f.maxMemory),
		Os: f.os, KernelImage: f.kernel, KernelCmdline: f.cmdline, StartOrder: f.startOrder,
	}
	vm := &v1.VM{Meta: &v1.Meta{Name: name}, Spec: s}
	var err error
	if vm.Meta.Labels, err = f.labels.labels(nil); err != nil {
		return nil, err
	}
	for _, add := range []func(*App, *v1.VMSpec) error{f.hardwareOf, f.disksOf, f.nicsOf, f.placementOf, f.cloudInitOf} {
		if err := add(a, s); err != nil {
			return nil, err
		}
	}
	if s.RestartPolicy, err = flagEnum[v1.RestartPolicy]("restart", f.restart, s.RestartPolicy); err != nil {
		return nil, err
	}
	if f.stopTimeout != 0 {
		s.StopTimeout = durationpb.New(f.stopTimeout)
	}
	return vm, nil
}

func (f *vmFlags) hardwareOf(_ *App, s *v1.VMSpec) (err error) {
	hw := &v1.Hardware{Version: f.hardware, CpuModel: f.cpuModel}
	if hw.Machine, err = flagEnum[v1.MachineKind]("machine", f.machine, hw.Machine); err != nil {
		return err
	}
	if hw.Firmware, err = flagEnum[v1.Firmware]("firmware", f.firmware, hw.Firmware); err != nil {
		return err
	}
	if f.hardware != 0 || f.cpuModel+f.machine+f.firmware != "" {
		s.Hardware = hw
	}
	return nil
}

func (f *vmFlags) disksOf(_ *App, s *v1.VMSpec) error {
	var taken []string
	for _, text := range f.disks {
		d, err := parseDisk("disk", text)
		if err != nil {
			return err
		}
		s.Disks = append(s.Disks, d)
		if d.Name != "" {
			taken = append(taken, d.Name)
		}
	}
	if f.image != "" {
		switch {
		case len(s.Disks) == 0:
			s.Disks = []*v1.DiskSpec{{Image: f.image}}
		case s.Disks[0].Image != "":
			return usage("--image %s: the first --disk names image %s already", f.image, s.Disks[0].Image)
		default:
			s.Disks[0].Image = f.image
		}
	}
	for i, d := range s.Disks {
		if d.Name == "" {
			first := ""
			if i == 0 {
				first = "root"
			}
			d.Name = freeName(taken, "disk", first)
			taken = append(taken, d.Name)
		}
		if d.Datastore == "" {
			d.Datastore = f.datastore
		}
		if d.SizeBytes == 0 && d.Image == "" {
			return usage("disk %s: give a size, or an image that has one", d.Name)
		}
	}
	for i, image := range f.cdroms {
		s.Cdroms = append(s.Cdroms, &v1.CDROMSpec{Name: fmt.Sprintf("cdrom%d", i), Image: image})
	}
	return nil
}

func (f *vmFlags) nicsOf(_ *App, s *v1.VMSpec) error {
	for _, n := range f.networks {
		s.Nics = append(s.Nics, &v1.NICSpec{Network: n})
	}
	for _, text := range f.nics {
		n, err := parseNIC("nic", text)
		if err != nil {
			return err
		}
		s.Nics = append(s.Nics, n)
	}
	var taken []string
	for _, n := range s.Nics {
		if n.Name != "" {
			taken = append(taken, n.Name)
		}
	}
	for _, n := range s.Nics {
		if n.Name == "" {
			n.Name = freeName(taken, "nic", "")
			taken = append(taken, n.Name)
		}
	}
	return nil
}

func (f *vmFlags) placementOf(_ *App, s *v1.VMSpec) error {
	p := &v1.PlacementSpec{Site: f.site, Host: f.host, AffinityGroup: f.affinity, AntiAffinityGroup: f.antiAffinity, Preferred: f.prefer}
	if len(f.hostLabels) > 0 {
		labels, err := (&labelFlags{set: f.hostLabels}).labels(nil)
		if err != nil {
			return usage("--host-label: give KEY=VALUE")
		}
		p.HostLabels = labels
	}
	if f.site+f.host+f.affinity+f.antiAffinity != "" || p.HostLabels != nil {
		s.Placement = p
	} else if f.prefer {
		return usage("--prefer: there is no wish to prefer; give --site, --host, --host-label, --affinity or --anti-affinity")
	}
	return nil
}

func (f *vmFlags) cloudInitOf(a *App, s *v1.VMSpec) (err error) {
	c := &v1.CloudInit{Enabled: true, Hostname: f.hostname, User: f.user}
	for _, k := range f.keys {
		keys, err := readKeys(k)
		if err != nil {
			return err
		}
		c.SshAuthorizedKeys = append(c.SshAuthorizedKeys, keys...)
	}
	if c.UserData, err = a.readText("user-data", f.userData); err != nil {
		return err
	}
	if c.NetworkConfig, err = a.readText("network-config", f.netConfig); err != nil {
		return err
	}
	asked := c.UserData+c.NetworkConfig+c.User+c.Hostname != "" || len(c.SshAuthorizedKeys) > 0
	if f.noCloudInit {
		if asked {
			return usage("--no-cloud-init: contradicts --ssh-key, --user, --hostname, --user-data and --network-config")
		}
		return nil
	}
	static := slices.ContainsFunc(s.Nics, func(n *v1.NICSpec) bool { return len(n.Addresses) > 0 }) // which the guest learns of by the seed
	if asked || static || f.image != "" && f.kernel == "" {
		s.CloudInit = c
	}
	return nil
}

// maxText bounds what is read for user data; the manager's own bound is lower.
const maxText = 1 << 20

// readText reads a file that a flag names; "-" is standard input, "" nothing.
func (a *App) readText(flag, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	var r io.Reader = a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", usage("--%s: %v", flag, err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return "", usage("--%s %s: %v", flag, file, err)
	}
	if len(b) > maxText {
		return "", usage("--%s %s: is larger than %s", flag, file, unit.Size(maxText))
	}
	return string(b), nil
}

// readKeys takes a public key as it is, or the keys in a file.
func readKeys(s string) ([]string, error) {
	if strings.HasPrefix(s, "ssh-") || strings.HasPrefix(s, "ecdsa-") || strings.HasPrefix(s, "sk-") {
		return []string{strings.TrimSpace(s)}, nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return nil, usage("--ssh-key: %v", err)
	}
	if strings.Contains(string(b), "PRIVATE KEY") {
		return nil, usage("--ssh-key %s: is a private key; give the public one, %s.pub", s, s)
	}
	var keys []string
	for l := range strings.SplitSeq(string(b), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			keys = append(keys, l)
		}
	}
	if len(keys) == 0 {
		return nil, usage("--ssh-key %s: holds no key", s)
	}
	return keys, nil
}

// flagEnum reads a flag's value of an enum; empty is the zero value.
func flagEnum[E ~int32](flag, s string, zero protoreflect.Enum) (E, error) {
	if s == "" {
		return 0, nil
	}
	n, err := unit.ParseEnum(zero.Descriptor(), s)
	if err != nil {
		return 0, usage("--%s: %v", flag, err)
	}
	return E(n), nil
}

func (a *App) vmCreateCommand() *cobra.Command {
	var f vmFlags
	var w waitFlags
	var start, template, dry bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a VM",
		Long: `Create a VM from an image, from a kernel image, or with empty disks. The manager finds a host that has room for it.
Sizes are ` + unit.SizeHelp + `.`,
		Example: `  drover vm create web --image debian --cpus 2 --memory 1G --disk 10G --network lan --ssh-key ~/.ssh/id_ed25519.pub --start
  drover vm create probe --kernel tiny --memory 128M --nic network=lan,adapter=e1000 --start
  drover vm create old --firmware bios --disk size=20G,bus=sata --cdrom installer --nic network=lan,adapter=rtl8139`,
		Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			vm, err := f.spec(a, args[0])
			if err != nil {
				return err
			}
			vm.Spec.Template = template
			if start {
				vm.Spec.Power = v1.Power_POWER_ON
			}
			made, err := c.VM.Create(ctx, &v1.CreateVMRequest{Vm: vm, ValidateOnly: dry})
			if err != nil {
				return err
			}
			if dry {
				return a.printDone(vmKind(), made, "would be created on host "+made.GetStatus().GetOwner())
			}
			return a.settle(ctx, c, made, w, start, "created on host "+made.GetStatus().GetOwner())
		}),
	}
	f.add(a, cmd)
	cmd.Flags().BoolVar(&start, "start", false, "start it at once")
	cmd.Flags().BoolVar(&template, "template", false, "make it a template: it never runs, linked clones start from it")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check everything, create nothing")
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// settle waits until a new VM is made, and runs if it shall; then it prints what was done.
func (a *App) settle(ctx context.Context, c *client.Client, vm *v1.VM, w waitFlags, start bool, done string) error {
	if w.on() {
		phases := []v1.VMPhase{v1.VMPhase_VM_PHASE_OFF}
		if start {
			phases = []v1.VMPhase{v1.VMPhase_VM_PHASE_RUNNING}
			done += ", running"
		}
		got, err := a.waitVM(ctx, c, vm.GetMeta().GetName(), vm.GetMeta().GetGeneration(), w.timeout, phases...)
		if err != nil {
			return err
		}
		vm = got
	}
	return a.printDone(vmKind(), vm, done)
}
