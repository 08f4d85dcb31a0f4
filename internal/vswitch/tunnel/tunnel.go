package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// Port is where tunnels listen by default: WireGuard's own.
const Port = 51820

// Keepalive is how often a silent peer is sent something, so that firewalls between sites remember the way.
const Keepalive = 25 * time.Second

// Overhead is what WireGuard adds to a packet, over IPv4 and IPv6.
const (
	Overhead4 = 60
	Overhead6 = 80
)

// Prefix is where all hosts' addresses inside the tunnels are.
var Prefix = netip.MustParsePrefix("fd64:726f:7665::/48")

// Options say where a tunnel is kept.
type Options struct {
	Net  *hostnet.Net
	Name string // of the device
	Mark hostnet.Mark
	// Dir has the socket and the log of the process. Only root may enter it; it is made. At most 90 bytes long.
	Dir string
	// Command starts the process that calls Serve with the arguments that are added.
	Command []string
	Log     *slog.Logger
}

// Config is the device as it should be.
type Config struct {
	Key     Key
	Port    int        // UDP
	Address netip.Addr // inside
	MTU     int        // of packets inside
	Peers   []Peer
}

// Peer is another host.
type Peer struct {
	Key      Key            // public
	Endpoint netip.AddrPort // overlay address and tunnel port
	Address  netip.Addr     // inside
}

// Validate checks that no two peers are alike.
func (c Config) Validate() error {
	if c.Key == (Key{}) || c.Port < 1 || c.Port > 65535 || !Prefix.Contains(c.Address) || c.MTU < 1280 || c.MTU > 65535 {
		return fmt.Errorf("tunnel: port %d, address %v, MTU %d: want a key, a UDP port, an address in %v, and an MTU that IPv6 can use", c.Port, c.Address, c.MTU, Prefix)
	}
	keys, addrs := map[Key]bool{c.Key.PublicKey(): true}, map[netip.Addr]bool{c.Address: true}
	for _, p := range c.Peers {
		if keys[p.Key] || addrs[p.Address] || !Prefix.Contains(p.Address) || !p.Endpoint.IsValid() || p.Endpoint.Port() == 0 {
			return fmt.Errorf("tunnel: peer %v at %v with address %v: the key or address is another's, or the address is not in %v", p.Key, p.Endpoint, p.Address, Prefix)
		}
		keys[p.Key], addrs[p.Address] = true, true
	}
	return nil
}

// PeerStatus is how a peer stands.
type PeerStatus struct {
	Key       Key
	Endpoint  netip.AddrPort // where it answered from
	Handshake time.Time      // the last; zero: never
	Received  uint64         // bytes
	Sent      uint64
}

// Tunnel is a host's tunnel device. Its methods may be called from several goroutines.
type Tunnel struct {
	opt Options

	mu     sync.Mutex
	kernel bool
	child  *os.Process // started by us and not yet waited for
	told   map[Key]netip.AddrPort
}

// New makes nothing yet; Apply does.
func New(opt Options) *Tunnel { return &Tunnel{opt: opt, told: map[Key]netip.AddrPort{}} }

func (t *Tunnel) socket() string { return filepath.Join(t.opt.Dir, t.opt.Name+".sock") }

// Kernel says whether the kernel does the work, once Apply has been called.
func (t *Tunnel) Kernel() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kernel
}

// Apply makes or adopts the device and brings it to cfg. Call it also when the process died (Wait): it starts another.
func (t *Tunnel) Apply(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.ensure(ctx, cfg)
	if err == nil {
		err = t.configure(ctx, cfg)
	}
	if err == nil {
		err = t.opt.Net.EnsureAddress(nil, t.opt.Name, netip.PrefixFrom(cfg.Address, Prefix.Bits()))
	}
	if err != nil {
		return fmt.Errorf("tunnel device %s: %w", t.opt.Name, err)
	}
	for _, p := range cfg.Peers {
		t.told[p.Key] = p.Endpoint
	}
	return nil
}

// ensure makes the device by the kernel, or by a process of its own. One that a process holds is kept, though the kernel may have learned since.
func (t *Tunnel) ensure(ctx context.Context, cfg Config) error {
	if !t.alive(ctx) {
		err := t.opt.Net.EnsureWireGuard(nil, t.opt.Name, t.opt.Mark, cfg.MTU)
		t.kernel = err == nil
		if !errors.Is(err, hostnet.ErrUnsupported) {
			return err
		}
		if err := t.start(ctx, cfg.MTU); err != nil {
			return err
		}
	}
	return t.opt.Net.AdoptTUN(nil, t.opt.Name, t.opt.Mark, cfg.MTU)
}

// alive says whether a process answers. One that is gone is waited for, if it was our child.
func (t *Tunnel) alive(ctx context.Context) bool {
	_, done, err := dial(ctx, t.socket())
	if err == nil {
		done()
		return true
	}
	if t.child != nil && ctx.Err() == nil {
		_, _ = t.child.Wait()
		t.child = nil
	}
	return false
}

// start starts the process in a session of its own and waits until it serves.
func (t *Tunnel) start(ctx context.Context, mtu int) error {
	if err := os.MkdirAll(t.opt.Dir, 0o700); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(t.opt.Dir, t.opt.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.Close()
		return err
	}
	defer log.Close()
	args := append(append([]string(nil), t.opt.Command...), t.opt.Name, t.socket(), strconv.Itoa(mtu))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = log, log, []*os.File{w}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends the agent does not end it
	err = t.opt.Net.Start(cmd)
	w.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, _ := io.ReadAll(io.LimitReader(r, 4096)) // ends when the process closes its end, or dies
	if string(said) != "ok" {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		return fmt.Errorf("the tunnel's process did not come up: %s (log: %s)", said, log.Name())
	}
	t.child = cmd.Process
	t.told = map[Key]netip.AddrPort{}
	t.opt.Log.Info("started a tunnel", "device", t.opt.Name, "pid", cmd.Process.Pid)
	return nil
}

func (t *Tunnel) configure(ctx context.Context, cfg Config) error {
	if t.kernel {
		return t.configureKernel(cfg, t.told)
	}
	lines, err := ask(ctx, t.socket(), "get=1\n\n")
	if err != nil {
		return err
	}
	now, err := parseState(lines)
	if err != nil {
		return err
	}
	_, err = ask(ctx, t.socket(), change(now, cfg, t.told))
	return err
}

// Peers tells how each peer stands.
func (t *Tunnel) Peers(ctx context.Context) ([]PeerStatus, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kernel {
		return t.kernelPeers()
	}
	lines, err := ask(ctx, t.socket(), "get=1\n\n")
	if err != nil {
		return nil, fmt.Errorf("tunnel device %s: %w", t.opt.Name, err)
	}
	st, err := parseState(lines)
	if err != nil {
		return nil, err
	}
	var out []PeerStatus
	for k, p := range st.peers {
		out = append(out, PeerStatus{k, p.endpoint, p.handshake, p.rx, p.tx})
	}
	return out, nil
}

// Wait returns nil when the process is gone and Apply is needed, or ctx's error. Of the kernel's device it returns only with ctx.
func (t *Tunnel) Wait(ctx context.Context) error {
	if !t.Kernel() {
		if c, done, err := dial(ctx, t.socket()); err == nil {
			defer done()
			_, _ = c.Read(make([]byte, 1)) // it never speaks unasked
		}
		return ctx.Err()
	}
	<-ctx.Done()
	return ctx.Err()
}

// Remove ends the process, or deletes the kernel's device: the host leaves the overlay.
func (t *Tunnel) Remove(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, done, err := dial(ctx, t.socket()); err == nil {
		defer done()
		if err := t.end(c); err != nil {
			return fmt.Errorf("end the process of tunnel %s: %w", t.opt.Name, err)
		}
		for err == nil { // until it hangs up
			_, err = c.Read(make([]byte, 1))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("end the process of tunnel %s: %w", t.opt.Name, context.Cause(ctx))
		}
		if t.child != nil {
			_, _ = t.child.Wait()
			t.child = nil
		}
	}
	_ = os.Remove(t.socket())
	return t.opt.Net.Delete(t.opt.Name, t.opt.Mark)
}

// end asks the process at the other end of c to end. The kernel says who that is: it can't be another that has its number now.
func (t *Tunnel) end(c net.Conn) error {
	rc, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	return unix.Kill(int(cred.Pid), unix.SIGTERM)
}
