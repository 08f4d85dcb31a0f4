package attack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/resource"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// lanNet is the network that all are on: untagged on the uplink, since not every kernel has VLAN devices, which the router would need.
const lanNet = 66

// guest is a namespace with one adapter, eth0.
type guest struct {
	name    string
	net     *hostnet.Net
	mac     table.MAC
	ip4     netip.Addr
	ip6     netip.Addr
	ifindex uint32 // of the switch's port; 0: behind the uplink
	slot    uint32
}

func (g *guest) macText() string {
	m := g.mac
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// rig is a switch with an attacker, a victim and a bystander on ports, and a router behind the uplink.
type rig struct {
	t                                   *testing.T
	sw                                  *hostnet.Net
	dp                                  *vswitch.Datapath
	in                                  compile.Input
	attacker, victim, bystander, router *guest
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	prefix := "drovertest-atk" + strings.ToLower(rand.Text()[:6]) + "-"
	namespace := func(name string) *hostnet.Net {
		must(t, hostnet.CreateNamespace(nil, prefix+name))
		t.Cleanup(func() { must(t, hostnet.DeleteNamespace(prefix+name)) })
		n, err := hostnet.Open(prefix + name)
		must(t, err)
		t.Cleanup(func() { n.Close() })
		return n
	}
	r := &rig{t: t, sw: namespace("sw")}
	must(t, r.sw.SetSysctl("ipv6.conf.default.disable_ipv6", "1"))
	make := func(name string, last byte) *guest {
		return &guest{
			name: name, net: namespace(name), mac: table.MAC{2, 0x66, 0, 0, 0, last},
			ip4: netip.AddrFrom4([4]byte{10, 66, 0, last}), ip6: netip.MustParseAddr(fmt.Sprintf("fd66::%x", last)),
		}
	}
	r.attacker, r.victim, r.bystander, r.router = make("att", 0x66), make("vic", 0x10), make("by", 0x20), make("rt", 1)
	r.open()
	r.in = compile.Input{
		Host: "h1", Site: "here",
		Networks:      []*v1.Network{{Meta: &v1.Meta{Name: "lan"}, Spec: &v1.NetworkSpec{Physical: &v1.PhysicalSegment{}, Vni: lanNet}}},
		Profiles:      map[string]compile.Profile{"secure": {Effective: secure()}, "open": {Effective: unguarded()}},
		Registrations: map[table.FDBKey]compile.Registration{},
	}
	r.uplink()
	for i, g := range []*guest{r.attacker, r.victim, r.bystander} {
		r.plug(g, uint32(10+i))
	}
	r.apply()
	return r
}

// open makes the datapath in a bpffs of the test's own.
func (r *rig) open() {
	t, dir := r.t, r.t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, r.sw.Do(func() (err error) {
		r.dp, err = vswitch.Open(t.Context(), vswitch.Config{Dir: filepath.Join(dir, "switch")})
		return err
	}))
	t.Cleanup(func() { must(t, r.dp.Remove()) })
}

// secure is the built-in profile with what it inherits.
func secure() *v1.PortProfileSpec {
	all := resource.BuiltinProfiles()
	p := proto.Clone(all[resource.DefaultProfile]).(*v1.PortProfileSpec)
	proto.Merge(p, all[resource.SecureProfile])
	return p
}

// unguarded lets a port do what a port of a plain switch can.
func unguarded() *v1.PortProfileSpec {
	return &v1.PortProfileSpec{Security: &v1.Security{ForgedTransmits: v1.Toggle_TOGGLE_ON}}
}

func (r *rig) mark(id string) hostnet.Mark {
	return hostnet.Mark{Kind: "attack", ID: r.sw.Name() + "/" + id}
}

// ip runs ip(8) in a namespace.
func (r *rig) ip(n *hostnet.Net, args ...string) string {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), "ip", append([]string{"-n", n.Name()}, args...)...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// addresses gives a guest its addresses. Nobody has them yet, so nobody is asked.
func (r *rig) addresses(g *guest) {
	r.ip(g.net, "addr", "add", g.ip4.String()+"/24", "dev", "eth0")
	r.ip(g.net, "addr", "add", g.ip6.String()+"/64", "dev", "eth0", "nodad")
}

// uplink is a cable from the switch to the router.
func (r *rig) uplink() {
	t, g := r.t, r.router
	must(t, r.sw.EnsureVeth(nil, g.net, hostnet.Veth{A: "up0", B: "eth0", MarkA: r.mark("up0"), MarkB: r.mark(g.name), MACB: g.mac[:]}))
	must(t, r.sw.SetUp("up0", true))
	must(t, g.net.SetUp("eth0", true))
	r.addresses(g)
	l, err := r.sw.Link("up0")
	must(t, err)
	must(t, r.dp.Attach(t.Context(), vswitch.Device{Ifindex: l.Index, Name: "up0", Kind: vswitch.KindUplink}))
	team := compile.Team{Name: compile.DefaultTeam}
	for i := range team.Buckets {
		team.Buckets[i] = uint32(l.Index)
	}
	r.in.Uplinks = []compile.Uplink{{Name: "up0", Ifindex: uint32(l.Index), Slot: 1, MAC: table.MAC(l.MAC), MTU: 1500, Team: compile.DefaultTeam}}
	r.in.Teams = []compile.Team{team}
}

// plug puts a guest on a port with the profile "secure".
func (r *rig) plug(g *guest, slot uint32) {
	t, port := r.t, "p-"+g.name
	must(t, r.sw.EnsureVeth(nil, g.net, hostnet.Veth{A: port, B: "eth0", MarkA: r.mark(port), MarkB: r.mark(g.name), MACB: g.mac[:]}))
	must(t, r.sw.SetUp(port, true))
	must(t, g.net.SetUp("eth0", true))
	r.addresses(g)
	l, err := r.sw.Link(port)
	must(t, err)
	g.ifindex, g.slot = uint32(l.Index), slot
	must(t, r.dp.Attach(t.Context(), vswitch.Device{Ifindex: l.Index, Name: port, Kind: vswitch.KindPort}))
	p := compile.Port{Name: g.name + "/n0", Ifindex: g.ifindex, Slot: slot, MAC: g.mac, Network: "lan", Profile: "secure", Addresses: []netip.Addr{g.ip4, g.ip6}, Peer: true}
	r.in.Ports = append(r.in.Ports, p)
	r.in.Registrations[table.FDBKey{Net: lanNet, MAC: g.mac}] = compile.Registration{Port: p.Name, Host: "h1", Addresses: p.Addresses}
}

func (r *rig) apply() {
	c := compile.Compile(r.in)
	if len(c.Problems) > 0 {
		r.t.Fatalf("compile: %v", c.Problems)
	}
	must(r.t, r.dp.Apply(r.t.Context(), c.Tables))
}

// profile gives the attacker's port another profile.
func (r *rig) profile(name string) {
	i := slices.IndexFunc(r.in.Ports, func(p compile.Port) bool { return p.Ifindex == r.attacker.ifindex })
	r.in.Ports[i].Profile = name
	r.apply()
}

// dropped is how many frames that came in from g were dropped, by reason.
func (r *rig) dropped(slot uint32) map[table.Reason]uint64 {
	r.t.Helper()
	all, err := r.dp.Counters([]uint32{slot})
	must(r.t, err)
	out := map[table.Reason]uint64{}
	for reason, n := range all[slot].Drops {
		out[reason] = n.Packets
	}
	return out
}

// neighbours are the MACs that a guest believes others to have.
func (r *rig) neighbours(g *guest) map[netip.Addr]string {
	r.t.Helper()
	out := map[netip.Addr]string{}
	for line := range strings.Lines(r.ip(g.net, "neigh")) {
		f := strings.Fields(line)
		if i := slices.Index(f, "lladdr"); i > 0 && i+1 < len(f) {
			a, err := netip.ParseAddr(f[0])
			must(r.t, err)
			out[a] = f[i+1]
		}
	}
	return out
}

// belongings are a guest's addresses and routes, without what changes by itself.
func (r *rig) belongings(g *guest) string {
	return r.ip(g.net, "-o", "addr", "show", "dev", "eth0") + r.ip(g.net, "route") + r.ip(g.net, "-6", "route")
}

// tool is a running attack.
type tool struct {
	cmd  *exec.Cmd
	out  strings.Builder
	done chan error
	in   interface{ Close() error }
}

// start runs a tool in a guest. It has a standard input that says nothing: some end when theirs does.
func (r *rig) start(g *guest, argv ...string) *tool {
	t := r.t
	t.Helper()
	x := &tool{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan error, 1)}
	x.cmd.Stdout, x.cmd.Stderr = &x.out, &x.out
	x.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	x.cmd.Dir = t.TempDir()
	x.cmd.Env = append(os.Environ(), "TERM=dumb", "HOME="+x.cmd.Dir)
	in, err := x.cmd.StdinPipe()
	must(t, err)
	x.in = in
	if err := g.net.Start(x.cmd); err != nil {
		t.Fatalf("%s is needed (make deps): %v", argv[0], err)
	}
	go func() { x.done <- x.cmd.Wait() }()
	return x
}

// stop ends a tool and all that it started. It says so if the tool had ended with an error by itself.
func (x *tool) stop() error {
	x.in.Close()
	select {
	case err := <-x.done:
		return err
	default:
	}
	// Without a chance to tidy up: some would mend what they broke.
	err := unix.Kill(-x.cmd.Process.Pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	select {
	case <-x.done:
	case <-time.After(5 * time.Second):
		err = errors.Join(err, errors.New("it does not end"))
	}
	return err
}

// said is the end of what a tool printed. It has ended.
func (x *tool) said() string {
	s := x.out.String()
	return s[max(0, len(s)-500):]
}
