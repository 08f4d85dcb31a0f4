package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/host"
	"drover/internal/hostnet"
	"drover/internal/osimage"
)

const (
	envNamespace = "DROVER_TEST_NAMESPACE"
	envAgent     = "DROVER_TEST_AGENT"
)

// TestMain runs everything in a network namespace of its own: TAPs and bridges never meet the machine's network. The
// binary is also the agent that tests kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv(envAgent); dir != "" {
		os.Exit(agentMain(dir))
	}
	if os.Getenv(envNamespace) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), envNamespace+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "make a network namespace (needs root):", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	n, err := hostnet.Current()
	if err == nil {
		err = n.SetUp("lo", true)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func agentMain(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := agentConfig(dir, os.Getenv("DROVER_TEST_TOKEN"), os.Stderr)
	cfg.Vault = vaultOf(repoIn(dir, newStalled(&backuptest.Memory{})))
	if err := host.Run(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return 1
	}
	return 0
}

func agentConfig(dir, token string, log io.Writer) host.Config {
	return host.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Listen: "127.0.0.1:0", ListenNBD: "127.0.0.1:0", JoinToken: token,
		Hostname: "h1", Version: "test", SampleInterval: time.Second,
		Datastores: datastores(dir),
		Log:        slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// datastores: a directory called small is a datastore, if a test made one.
func datastores(dir string) []host.DatastorePath {
	small := filepath.Join(dir, "small")
	if _, err := os.Stat(small); err != nil {
		return nil
	}
	return []host.DatastorePath{{Name: "small", Path: small}}
}

// bench is a manager, an agent and where they keep things.
type bench struct {
	*fakeManager
	t    *testing.T
	dir  string
	stop func() // ends the agent, leaving VMs alone
	log  *os.File

	afterwards func()   // run when all VMs are gone
	agentPID   int      // of an agent in a process of its own
	uplinks    []string // of agents in this process
	bootID     string   // what agents in this process take for the boot
	vault      backup.Repository
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "dh")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir}
	b.fakeManager = newManager(t, dir)
	if b.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	b.put(profile("default"), network("lan", 1, &v1.NetworkSpec{}), network("dmz", 2, &v1.NetworkSpec{}))
	t.Cleanup(b.cleanup)
	return b
}

// cleanup has an agent remove every VM, also after a failure.
func (b *bench) cleanup() {
	if b.t.Failed() {
		text, _ := os.ReadFile(b.log.Name())
		lines := strings.Split(string(text), "\n")
		b.t.Logf("agent's log:\n%s", strings.Join(lines[max(0, len(lines)-80):], "\n"))
	}
	if b.stop == nil {
		b.start()
	}
	b.mu.Lock()
	var uids []string
	for uid := range b.vms {
		uids = append(uids, uid)
	}
	b.fail, b.hostSt = nil, &v1.HostStatus{Vms: 1} // until the next heartbeat says otherwise
	b.mu.Unlock()
	for _, uid := range uids {
		b.remove(uid)
	}
	deadline := time.After(60 * time.Second)
	for {
		b.mu.Lock()
		n, changed := len(b.vms)+int(b.hostSt.GetVms()), b.changed
		b.mu.Unlock()
		if n == 0 {
			break
		}
		select {
		case <-changed:
			continue
		case <-deadline:
			b.t.Errorf("%d VMs were not removed", n)
		}
		break
	}
	b.stop()
	b.nothingLeft()
	b.leaveSwitch()
	if b.afterwards != nil {
		b.afterwards()
	}
	b.fakeManager.stop()
	b.log.Close()
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

// leaveSwitch removes the datapath, which outlives the agent.
func (b *bench) leaveSwitch() {
	_, _, pins := host.Traces(filepath.Join(b.dir, "state"))
	if err := os.RemoveAll(pins); err != nil {
		b.t.Error(err)
	}
	n, err := hostnet.Current()
	if err != nil {
		b.t.Fatal(err)
	}
	defer n.Close()
	links, err := n.Owned("switch")
	if err != nil {
		b.t.Error(err)
	}
	for _, l := range links {
		if err := n.Delete(l.Name, l.Mark); err != nil {
			b.t.Error(err)
		}
	}
}

// network is a network as the manager tells it.
func network(name string, number int32, spec *v1.NetworkSpec) *v1.AgentChange {
	return &v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_ADDED, Object: &v1.AgentChange_Network{Network: &v1.Network{
		Meta: &v1.Meta{Name: name, Generation: 1}, Spec: spec, Status: &v1.NetworkStatus{Vni: number},
	}}}
}

// profile is a port profile as the manager tells it; change makes it differ from "default".
func profile(name string, change ...func(*v1.PortProfileSpec)) *v1.AgentChange {
	const on, off = v1.Toggle_TOGGLE_ON, v1.Toggle_TOGGLE_OFF
	e := &v1.PortProfileSpec{
		Security: &v1.Security{Promiscuous: off, ForgedTransmits: off, MacChanges: off, MacLimit: 1},
		Guards: &v1.Guards{IpSource: off, Arp: off, Nd: off, DhcpSnooping: off, DhcpServer: on, DhcpRate: 15, Ra: on, Bpdu: on, Control: on, VirtualRouter: on,
			Storm: &v1.StormControl{Broadcast: 1000, Multicast: 5000, UnknownUnicast: 2000}},
		PrivateRole: v1.PrivateRole_PRIVATE_ROLE_NONE, Trunk: &v1.Trunk{}, Qos: &v1.QoS{In: &v1.Rate{LimitBps: -1}, Out: &v1.Rate{LimitBps: -1}}, Mirror: &v1.Mirror{},
	}
	for _, c := range change {
		c(e)
	}
	return &v1.AgentChange{Kind: v1.ChangeKind_CHANGE_KIND_ADDED, Object: &v1.AgentChange_Profile{Profile: &v1.PortProfile{
		Meta: &v1.Meta{Name: name, Generation: int64(1 + len(change))}, Status: &v1.PortProfileStatus{Effective: e},
	}}}
}

// nothingLeft looks for what VMs leave: processes, sockets, TAPs, memory, disks, cgroups.
func (b *bench) nothingLeft() {
	b.t.Helper()
	for _, pattern := range []string{"run/vms/*", "state/vms/*", "state/datastore/vms/*", "small/vms/*"} {
		if left, _ := filepath.Glob(filepath.Join(b.dir, pattern)); len(left) > 0 {
			b.t.Errorf("left over: %v", left)
		}
	}
	n, err := hostnet.Current()
	if err != nil {
		b.t.Fatal(err)
	}
	defer n.Close()
	if taps, err := n.Owned(hostnet.MarkNIC); err != nil || len(taps) > 0 {
		b.t.Errorf("TAPs left over: %v %v", taps, err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), b.shm()) {
			b.t.Errorf("process left over: %s: %s", p, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	if left, _ := filepath.Glob(b.shm() + "/*"); len(left) > 0 {
		b.t.Errorf("memory left over: %v", left)
	}
	if err := os.Remove(b.shm()); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) shm() string {
	c := agentConfig(b.dir, "", io.Discard)
	if err := c.Validate(); err != nil {
		b.t.Fatal(err)
	}
	return c.ShmDir
}

// start runs an agent in this process.
func (b *bench) start() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := agentConfig(b.dir, b.token.Text(), b.log)
	cfg.BootID = b.bootID
	cfg.Uplinks = b.uplinks
	cfg.Vault = vaultOf(repoIn(b.dir, b.vault))
	go func() { done <- host.Run(ctx, cfg) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("agent: %v", err)
		}
		b.stop = nil
	}
}

// spawn runs an agent in a process of its own, and returns how to kill it.
func (b *bench) spawn() (kill func()) {
	b.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAgent+"="+b.dir, "DROVER_TEST_TOKEN="+b.token.Text())
	cmd.Stdout, cmd.Stderr = b.log, b.log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.agentPID = cmd.Process.Pid
	b.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		b.stop = nil
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		b.stop = nil
	}
}

// tiny publishes the test guest's image.
func (b *bench) tiny() {
	b.t.Helper()
	r, err := osimage.BuildTiny(b.t.Context(), osimage.Tiny{}, osimage.Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.image("tiny", r.Path, v1.ImageKind_IMAGE_KIND_KERNEL)
}

func tinySpec() *v1.VMSpec {
	return &v1.VMSpec{Power: v1.Power_POWER_ON, KernelImage: "tiny", MemoryBytes: 128 << 20}
}

// console reads a VM's serial console until it says a text.
func (b *bench) console(uid, until string, within time.Duration) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), within)
	defer cancel()
	stream, err := b.node(b.hostAddress()).Attach(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	defer stream.CloseRequest()
	if err := stream.Send(&v1.AttachInput{Uid: uid, Channel: v1.Channel_CHANNEL_SERIAL, Backlog: -1, ReadOnly: true, Follow: true}); err != nil {
		b.t.Fatal(err)
	}
	var text strings.Builder
	for !strings.Contains(text.String(), until) {
		out, err := stream.Receive()
		if err != nil {
			b.t.Fatalf("console ended before %q: %v; it said:\n%s", until, err, text.String())
		}
		text.Write(out.GetData())
	}
	return text.String()
}

const boot = 60 * time.Second // a guest's start under TCG, on a busy machine

func TestStartConsoleStop(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.start()
	uid := b.vm("web", tinySpec())
	r := b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if st := r.GetStatus(); st.GetAccelerator() == "" || st.GetMachineType() == "" || st.GetObservedGeneration() != 1 {
		t.Errorf("status of a running VM: %v", st)
	}
	b.console(uid, "drover-tiny: ready", boot)
	b.await(uid, "the guest agent's word", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	began := time.Now()
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("the guest took %v to shut down: it was not asked by the power button", took)
	}
	b.awaitEvent("VM_STOPPED", 5*time.Second)
	b.power(uid, v1.Power_POWER_ON)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	b.power(uid, v1.Power_POWER_OFF, 0)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
}
