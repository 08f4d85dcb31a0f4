package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fixed is a clock that stands still.
type fixed struct {
	clock.Clock
	t time.Time
}

func (f fixed) Now() time.Time { return f.t }

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

func meta(name string, age time.Duration) *v1.Meta {
	return &v1.Meta{Name: name, Uid: "u-" + name, Revision: 7, CreateTime: ago(age)}
}

// bench is an App whose output is kept and whose clock stands still.
func bench(t *testing.T, env map[string]string) (*App, *bytes.Buffer) {
	t.Helper()
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	var out bytes.Buffer
	a := &App{In: strings.NewReader(""), Out: &out, Err: &out, Clock: fixed{clock.Real(), noon}, Getenv: func(k string) string { return env[k] }, Version: "test"}
	a.defaults()
	return a, &out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata/golden", name+".txt")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-update writes it anew):\n%s", path, d)
	}
}

func sampleVMs() []object {
	return []object{
		&v1.VM{
			Meta: &v1.Meta{Name: "web", CreateTime: ago(26 * time.Hour), Labels: map[string]string{"tier": "front", "env": "prod"}},
			Spec: &v1.VMSpec{
				Description: "the shop", Power: v1.Power_POWER_ON, Cpus: 2, MemoryBytes: 1 << 30, Os: "linux",
				Disks:     []*v1.DiskSpec{{Name: "root", SizeBytes: 10 << 30, Image: "debian", Datastore: "fast", Bus: v1.DiskBus_DISK_BUS_VIRTIO_BLK, BootOrder: 1}, {Name: "data", SizeBytes: 512 << 20}},
				Nics:      []*v1.NICSpec{{Name: "nic0", Network: "lan", Mac: "52:54:00:00:00:01", Adapter: v1.NICAdapter_NIC_ADAPTER_VIRTIO}},
				CloudInit: &v1.CloudInit{Enabled: true, UserData: "#cloud-config\npackages:\n  - nginx\n"}, StopTimeout: durationpb.New(90 * time.Second),
			},
			Status: &v1.VMStatus{
				Phase: v1.VMPhase_VM_PHASE_RUNNING, Owner: "h1", Epoch: 3, Site: "berlin", Accelerator: "kvm", MachineType: "pc-q35-7.2", StartTime: ago(90 * time.Minute),
				Guest:           &v1.GuestStatus{Agent: true, Hostname: "web\x1b[31m", Addresses: []string{"127.0.0.1/8", "fe80::1/64", "10.1.0.7/24", "fd00::7/64"}},
				RestartRequired: []string{"spec.cpus"},
			},
		},
		&v1.VM{Meta: meta("golden", 400*24*time.Hour), Spec: &v1.VMSpec{Cpus: 1, MemoryBytes: 512 << 20, Template: true, Power: v1.Power_POWER_OFF}, Status: &v1.VMStatus{Phase: v1.VMPhase_VM_PHASE_OFF, Owner: "h2", Site: "paris"}},
		&v1.VM{Meta: meta("bad", 3*time.Minute+5*time.Second), Spec: &v1.VMSpec{Cpus: 16, MemoryBytes: 1536 << 20, Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 1536 << 20}}},
			Status: &v1.VMStatus{Phase: v1.VMPhase_VM_PHASE_IO_ERROR, Owner: "h1", Site: "berlin", Message: "no space left"}},
		&v1.VM{Meta: meta("new", 0), Spec: &v1.VMSpec{Cpus: 1, MemoryBytes: 128 << 20}},
	}
}

func sampleHosts() []object {
	return []object{
		&v1.Host{Meta: meta("h1", 50*time.Hour), Spec: &v1.HostSpec{Site: "berlin"}, Status: &v1.HostStatus{
			Phase: v1.HostPhase_HOST_PHASE_READY, Accelerator: &v1.Accelerator{Name: "kvm"}, Cpus: 16, CpuLoad: 0.95, MemoryBytes: 64 << 30, MemoryFreeBytes: 20 << 30, MemoryAllocatedBytes: 30 << 30,
			Vms: 3, VmsRunning: 2, Version: "1.0", QemuVersion: "7.2.22", Address: "10.0.0.1:7444", Os: "Debian GNU/Linux 12", Networks: []*v1.HostNetwork{{Network: "lan", Uplink: "eth1"}}}},
		&v1.Host{Meta: meta("h2", time.Hour), Spec: &v1.HostSpec{Site: "paris", Cordoned: true}, Status: &v1.HostStatus{Phase: v1.HostPhase_HOST_PHASE_READY, Accelerator: &v1.Accelerator{Name: "tcg"}, Cpus: 2, MemoryBytes: 4 << 30}},
		&v1.Host{Meta: meta("h3", time.Minute), Spec: &v1.HostSpec{Site: "paris"}, Status: &v1.HostStatus{Phase: v1.HostPhase_HOST_PHASE_UNREACHABLE}},
	}
}

func sampleSnapshots() []object {
	snap := func(name, parent string, age time.Duration, memory int64, current bool) *v1.Snapshot {
		return &v1.Snapshot{Meta: meta(name, age), Spec: &v1.SnapshotSpec{Memory: memory > 0, Description: "of " + name},
			Status: &v1.SnapshotStatus{Phase: v1.SnapshotPhase_SNAPSHOT_PHASE_READY, Parent: parent, MemorySizeBytes: memory, Current: current}}
	}
	failed := snap("db/broken", "", time.Hour, 0, false)
	failed.Status.Phase, failed.Status.Message = v1.SnapshotPhase_SNAPSHOT_PHASE_FAILED, "the disk is full"
	return []object{
		snap("web/b", "web/a", 2*time.Hour, 74<<20, false), snap("web/a", "", 3*time.Hour, 0, false), snap("web/c", "web/b", time.Hour, 0, true),
		snap("web/d", "web/a", time.Minute, 0, false), failed,
		// A parent that is not in the list, and a circle, which must not hang.
		snap("app/orphan", "app/gone", time.Minute, 0, false), snap("odd/x", "odd/y", time.Minute, 0, false), snap("odd/y", "odd/x", time.Minute, 0, false),
	}
}

func TestTables(t *testing.T) {
	lists := map[*kind][]object{
		vmKind(): sampleVMs(), hostKind(): sampleHosts(), snapshotKind(): sampleSnapshots(),
		siteKind(): {&v1.Site{Meta: meta("berlin", time.Hour), Spec: &v1.SiteSpec{TimeZone: "Europe/Berlin", Description: "rack 12"}, Status: &v1.SiteStatus{Hosts: 2, HostsReady: 1, Vms: 40}}},
		networkKind(): {
			&v1.Network{Meta: meta("lan", time.Hour), Spec: &v1.NetworkSpec{Sites: []string{"berlin", "paris"}, Prefixes: []string{"10.1.0.0/24"}, Physical: &v1.PhysicalSegment{}}, Status: &v1.NetworkStatus{Hosts: []string{"h1"}, Nics: 3, Vni: 4711, Mtu: 1500}},
			&v1.Network{Meta: meta("stretched", time.Hour), Spec: &v1.NetworkSpec{Physical: &v1.PhysicalSegment{Vlan: 30, SiteVlans: map[string]int32{"paris": 130}, Team: "back"}, Overlay: &v1.Overlay{Encrypted: true}, Profile: "secure"}, Status: &v1.NetworkStatus{Vni: 5, Mtu: 1350}},
		},
		profileKind(): sampleProfiles(), portKind(): samplePorts(),
		datastoreKind(): {
			&v1.Datastore{Meta: meta("fast", time.Hour), Spec: &v1.DatastoreSpec{Host: "h1", Path: "/srv/fast"}, Status: &v1.DatastoreStatus{Ready: true, CapacityBytes: 1 << 40, FreeBytes: 300 << 30, ProvisionedBytes: 2 << 40, Filesystem: "xfs"}},
			&v1.Datastore{Meta: meta("lost", time.Hour), Spec: &v1.DatastoreSpec{Host: "h1", Path: "/srv/lost"}, Status: &v1.DatastoreStatus{Message: "is not a directory"}},
		},
		imageKind(): {
			&v1.Image{Meta: meta("debian", time.Hour), Spec: &v1.ImageSpec{Kind: v1.ImageKind_IMAGE_KIND_DISK, Os: "linux"}, Status: &v1.ImageStatus{Phase: v1.ImagePhase_IMAGE_PHASE_READY, SizeBytes: 400 << 20, VirtualSizeBytes: 2 << 30, UsedBy: 2, SourceFormat: "qcow2", SourceCompression: "xz", Sha256: "ab12"}},
			&v1.Image{Meta: meta("liar", time.Minute), Status: &v1.ImageStatus{Phase: v1.ImagePhase_IMAGE_PHASE_FAILED, Message: "has a backing file"}},
		},
		diskKind(): {&v1.Disk{Meta: meta("web/root", time.Hour), Spec: &v1.DiskSpec{SizeBytes: 10 << 30, Datastore: "fast", Format: v1.DiskFormat_DISK_FORMAT_QCOW2, Bus: v1.DiskBus_DISK_BUS_VIRTIO_SCSI, Image: "debian"}, Status: &v1.DiskStatus{Attached: true, AllocatedBytes: 1234 << 20, Layers: []string{"a.qcow2", "b.qcow2"}}}},
		nicKind():  {&v1.NIC{Meta: meta("web/nic0", time.Hour), Spec: &v1.NICSpec{Network: "lan", Mac: "52:54:00:00:00:01", Adapter: v1.NICAdapter_NIC_ADAPTER_E1000, LinkDown: true}, Status: &v1.NICStatus{Addresses: []string{"10.1.0.7/24"}, Device: "tap0"}}},
		taskKind(): {
			&v1.Task{Meta: meta("t1", time.Minute), Spec: &v1.TaskSpec{Kind: "image.import", TargetKind: "image", Target: "debian", Principal: "user:alice"}, Status: &v1.TaskStatus{State: v1.TaskState_TASK_STATE_RUNNING, Progress: 0.42, Step: "convert", StartTime: ago(30 * time.Second)}},
			&v1.Task{Meta: meta("t2", time.Hour), Spec: &v1.TaskSpec{Kind: "snapshot.create", TargetKind: "snapshot", Target: "web/a"}, Status: &v1.TaskStatus{State: v1.TaskState_TASK_STATE_FAILED, Message: "disk full", StartTime: ago(time.Hour), EndTime: ago(59 * time.Minute)}},
		},
		repositoryKind(): sampleRepositories(), policyKind(): samplePolicies(), pointKind(): samplePoints(),
		userKind():  {&v1.User{Meta: meta("alice", time.Hour), Spec: &v1.UserSpec{Roles: []string{"admin", "viewer"}, Disabled: true, DisplayName: "Alice A."}}},
		tokenKind(): {&v1.Token{Meta: meta("k1", time.Hour), Spec: &v1.TokenSpec{User: "alice", Description: "ci", Scopes: []string{"read"}, ExpireTime: ago(-48 * time.Hour)}, Status: &v1.TokenStatus{LastUsed: ago(time.Minute)}}},
	}
	if len(lists) != len(kinds()) {
		t.Errorf("%d kinds are tried, there are %d", len(lists), len(kinds()))
	}
	for k, items := range lists {
		t.Run(k.name, func(t *testing.T) {
			a, out := bench(t, nil)
			for _, a.output = range []string{"", "wide"} {
				if err := a.printList(k, items); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, "list-"+k.name, out.String())
		})
	}
}

func TestDescribe(t *testing.T) {
	a, out := bench(t, nil)
	if err := a.printOne(vmKind(), sampleVMs()[0]); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsRune(out.String(), 0x1b) {
		t.Error("a control sequence of the guest got through")
	}
	golden(t, "show-vm", out.String())
}

func TestTree(t *testing.T) {
	a, out := bench(t, nil)
	if err := a.printTree(out, sampleSnapshots()); err != nil {
		t.Fatal(err)
	}
	golden(t, "tree", out.String())
}

func TestBoard(t *testing.T) {
	b := newBoard()
	for _, o := range append(sampleHosts(), sampleVMs()...) {
		b.put(o)
	}
	b.use["vm/web"] = usageOf{0.97, 900 << 20, 0, 1 << 20, 2048, 10}
	b.problem = "the manager\x1b[2J does not answer"
	a, out := bench(t, nil)
	out.WriteString(strings.Join(b.lines(a.now(), false), "\n") + "\n")
	golden(t, "top", out.String())
	coloured := strings.Join(b.lines(a.now(), true), "\n")
	if !strings.Contains(coloured, "\x1b[31m97%\x1b[0m") || strings.Contains(coloured, "\x1b[2J") {
		t.Errorf("coloured: %q", coloured)
	}
}

func sampleProfiles() []object {
	on, off := v1.Toggle_TOGGLE_ON, v1.Toggle_TOGGLE_OFF
	all := &v1.Guards{IpSource: on, Arp: on, Nd: on, DhcpSnooping: on, DhcpServer: on, Ra: on, Bpdu: on, Control: on, VirtualRouter: on}
	return []object{
		&v1.PortProfile{Meta: meta("secure", time.Hour), Spec: &v1.PortProfileSpec{Description: "all guards"}, Status: &v1.PortProfileStatus{Ports: 12, Effective: &v1.PortProfileSpec{Guards: all}}},
		&v1.PortProfile{Meta: meta("router", time.Minute), Spec: &v1.PortProfileSpec{Parent: "default"}, Status: &v1.PortProfileStatus{Ports: 1, Effective: &v1.PortProfileSpec{
			Guards: &v1.Guards{Bpdu: on, Ra: off}, Security: &v1.Security{ForgedTransmits: on}, Trunk: &v1.Trunk{Vlans: []string{"10", "20-29"}},
			PrivateRole: v1.PrivateRole_PRIVATE_ROLE_COMMUNITY, Community: 7,
			Qos: &v1.QoS{In: &v1.Rate{LimitBps: 100e6}, Out: &v1.Rate{LimitBps: 2500e6}}}}},
	}
}

func samplePorts() []object {
	return []object{
		&v1.Port{Meta: meta("web/nic0", time.Hour), Spec: &v1.PortSpec{Network: "lan", Profile: "secure", Mac: "52:54:00:00:00:01"}, Status: &v1.PortStatus{
			Host: "h1", Device: "dt1", Active: true, Generation: 3, ObservedGeneration: 3, Uplink: "up0", Bindings: []*v1.Binding{{Address: "10.1.0.7"}},
			Counters: &v1.PortCounters{InBytes: 5 << 20, OutBytes: 7 << 10, Drops: []*v1.DropCounter{{Reason: "ARP", Packets: 4}, {Reason: "SOURCE_IP", Packets: 3}}}}},
		&v1.Port{Meta: meta("db/nic0", time.Hour), Spec: &v1.PortSpec{Network: "lan", Profile: "web"}, Status: &v1.PortStatus{Host: "h1", Device: "dt2", Active: true, Generation: 4, ObservedGeneration: 3}},
		&v1.Port{Meta: meta("old/nic0", time.Hour), Spec: &v1.PortSpec{Network: "lan", Profile: "web"}},
		&v1.Port{Meta: meta("bad/nic0", time.Hour), Spec: &v1.PortSpec{Network: "lan"}, Status: &v1.PortStatus{Device: "dt3", Conditions: []*v1.Condition{{Status: true, Message: "no uplink"}}}},
	}
}
