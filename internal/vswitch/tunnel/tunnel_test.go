package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

const (
	serveEnv = "DROVER_TEST_TUNNEL_SERVE"
	startEnv = "DROVER_TEST_TUNNEL_START"
)

// order is what a process of the test that plays the agent gets.
type order struct {
	Namespace string
	Dir       string
	Config    Config
}

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serveEnv) != "":
		ctx, stop := signalContext()
		defer stop()
		if err := Serve(ctx, os.Args[1:], slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(startEnv) != "":
		if err := playAgent(os.Getenv(startEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

func playAgent(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	n, err := hostnet.Open(o.Namespace)
	if err != nil {
		return err
	}
	os.Unsetenv(startEnv)
	os.Setenv(serveEnv, "1")
	return New(options(n, o.Dir)).Apply(context.Background(), o.Config)
}

func options(n *hostnet.Net, dir string) Options {
	return Options{Net: n, Name: "dtun0", Mark: hostnet.Mark{Kind: "switch", ID: "tunnel"}, Dir: dir, Command: []string{"/proc/self/exe"}, Log: slog.New(slog.DiscardHandler)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is one host of the test.
type site struct {
	*hostnet.Net
	cfg Config
	dir string
	tun *Tunnel
}

func (s *site) run(t testing.TB, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Run(cmd); err != nil {
		t.Fatalf("%s: %v: %v\n%s", s.Name(), args, err, out.String())
	}
	return out.String()
}

// sites makes two hosts with an underlay between them, 10.8.0.1 and 10.8.0.2, and says who is whose peer.
func sites(t *testing.T) (a, b *site) {
	t.Helper()
	mark := hostnet.Mark{Kind: "test", ID: "tunnel"}
	var out []*site
	for i := range 2 {
		name := fmt.Sprintf("drovertest-%d-tun%d", os.Getpid(), i)
		t.Cleanup(func() { must(t, hostnet.DeleteNamespace(name)) })
		must(t, hostnet.CreateNamespace(nil, name))
		n, err := hostnet.Open(name)
		must(t, err)
		t.Cleanup(func() { n.Close() })
		dir, err := os.MkdirTemp("", "tun")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		key, err := LoadKey(filepath.Join(dir, "key"))
		must(t, err)
		out = append(out, &site{n, Config{Key: key, Port: Port, Address: netip.MustParseAddr(fmt.Sprintf("fd64:726f:7665::%d", i+1)), MTU: 1420}, dir, New(options(n, dir))})
	}
	a, b = out[0], out[1]
	must(t, a.EnsureVeth(nil, b.Net, hostnet.Veth{A: "up0", B: "up0", MarkA: mark, MarkB: mark}))
	for i, s := range out {
		must(t, s.SetUp("up0", true))
		must(t, s.EnsureAddress(nil, "up0", netip.MustParsePrefix(fmt.Sprintf("10.8.0.%d/24", i+1))))
		other := out[1-i]
		s.cfg.Peers = []Peer{{other.cfg.Key.PublicKey(), netip.MustParseAddrPort(fmt.Sprintf("10.8.0.%d:%d", 2-i, Port)), other.cfg.Address}}
		t.Cleanup(func() {
			ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
			defer stop()
			if err := s.tun.Remove(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	must(t, a.WaitUp(ctx, "up0"))
	must(t, b.WaitUp(ctx, "up0"))
	return a, b
}

// secret is what must not be on the wire.
const secret = "DROVERSECRET"

// wire counts frames on the underlay until it is called, and those with the secret in them.
func wire(t *testing.T, s *site) func() (frames, plain int) {
	t.Helper()
	up, err := s.Link("up0")
	must(t, err)
	var fd int
	must(t, s.Do(func() (err error) {
		proto := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, proto); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: up.Index})
	}))
	return func() (frames, plain int) {
		defer unix.Close(fd)
		buf := make([]byte, 70000)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return frames, plain
			}
			frames++
			if bytes.Contains(buf[:n], []byte(secret)) {
				plain++
			}
		}
	}
}

func TestTunnel(t *testing.T) {
	t.Setenv(serveEnv, "1") // for the processes that are started
	a, b := sites(t)
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	must(t, a.tun.Apply(ctx, a.cfg))
	// b's agent is a process that ends as soon as it has made its tunnel.
	text, err := json.Marshal(order{b.Name(), b.dir, b.cfg})
	must(t, err)
	agent := exec.CommandContext(ctx, "/proc/self/exe")
	agent.Env = append(os.Environ(), startEnv+"="+string(text), serveEnv+"=")
	if out, err := agent.CombinedOutput(); err != nil {
		t.Fatalf("agent of b: %v\n%s", err, out)
	}
	hex := fmt.Sprintf("%x", secret)
	count := wire(t, a)
	a.run(t, "ping", "-c3", "-i0.2", "-w10", "-p", hex, b.cfg.Address.String())
	for i, s := range []*site{a, b} {
		s.run(t, "ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789", "local", s.cfg.Address.String(), "remote", s.cfg.Peers[0].Address.String(), "udp6zerocsumtx", "udp6zerocsumrx")
		s.run(t, "ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", "vx0")
		s.run(t, "ip", "link", "set", "vx0", "up", "mtu", "1350")
	}
	a.run(t, "ping", "-c3", "-i0.2", "-w10", "-s", "1300", "-M", "do", "-p", hex, "10.9.0.2")
	frames, plain := count()
	if frames < 12 || plain != 0 {
		t.Errorf("%d of %d frames on the wire show what is in them", plain, frames)
	}
	count = wire(t, a)
	a.run(t, "ping", "-c1", "-w10", "-p", hex, "10.8.0.2") // beside the tunnel
	if _, plain := count(); plain == 0 {
		t.Error("the capture does not find the secret where it must be")
	}

	// A new agent adopts b's tunnel: the session goes on.
	before, err := b.Link("dtun0")
	must(t, err)
	must(t, b.tun.Apply(ctx, b.cfg))
	after, err := b.Link("dtun0")
	must(t, err)
	if before.Index != after.Index || after.Mark.ID != "tunnel" || after.MTU != 1420 {
		t.Errorf("after adoption the device is %+v, before %+v", after, before)
	}
	peers, err := b.tun.Peers(ctx)
	must(t, err)
	if len(peers) != 1 || peers[0].Handshake.IsZero() || peers[0].Received == 0 || peers[0].Endpoint.Addr() != netip.MustParseAddr("10.8.0.1") {
		t.Errorf("peers of b: %+v", peers)
	}
	logThroughput(t, a, b)

	// A peer that is taken away is not heard any more, and comes back.
	without := b.cfg
	without.Peers = nil
	must(t, b.tun.Apply(ctx, without))
	if err := a.Run(exec.CommandContext(ctx, "ping", "-c1", "-w1", b.cfg.Address.String())); err == nil {
		t.Error("a host that is no peer is answered")
	}
	must(t, b.tun.Apply(ctx, b.cfg))
	b.run(t, "ping", "-c1", "-w10", a.cfg.Address.String())

	// The process dies: Wait says so, Apply makes another.
	waited := make(chan error, 1)
	go func() { waited <- a.tun.Wait(ctx) }()
	c, done, err := dial(ctx, a.tun.socket())
	must(t, err)
	must(t, a.tun.end(c))
	done()
	must(t, <-waited)
	must(t, a.tun.Apply(ctx, a.cfg))
	a.run(t, "ping", "-c1", "-w10", b.cfg.Address.String())

	must(t, a.tun.Remove(ctx))
	if l, err := a.Link("dtun0"); err == nil {
		t.Errorf("after Remove there is %+v", l)
	}
	must(t, a.tun.Remove(ctx))
}

// logThroughput is no test: it tells what this machine does.
func logThroughput(t *testing.T, a, b *site) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "--forceflush", "-B", "10.9.0.2")
	out, err := server.StdoutPipe()
	must(t, err)
	must(t, b.Start(server))
	defer func() { _ = server.Wait() }()
	buf := make([]byte, 4096)
	if _, err := out.Read(buf); err != nil { // it says that it listens
		t.Fatal(err)
	}
	var res struct {
		End struct {
			SumReceived struct {
				BPS float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	text := a.run(t, "iperf3", "-c", "10.9.0.2", "-t", "2", "-J")
	must(t, json.Unmarshal([]byte(text), &res))
	t.Logf("TCP in VXLAN in WireGuard in user space: %.2f Gbit/s", res.End.SumReceived.BPS/1e9)
}

func TestStartFails(t *testing.T) {
	a, _ := sites(t)
	opt := options(a.Net, a.dir)
	opt.Command = []string{"/bin/sh", "-c", "echo broken >&3; exit 1"}
	err := New(opt).Apply(t.Context(), a.cfg)
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a process that fails: %v, want what it said", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	opt.Command = []string{"/bin/sh", "-c", "exec sleep 20"}
	if err := New(opt).Apply(ctx, a.cfg); err == nil {
		t.Error("a process that never serves was waited for, and taken")
	}
}
