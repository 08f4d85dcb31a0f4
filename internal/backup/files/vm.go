package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/accel"
	"drover/internal/backup"
	"drover/internal/guest"
	"drover/internal/nbd"
	"drover/internal/osimage/helperinit/wire"
)

// firstBus is the first virtio-mmio bus of disks; 0 is never heard of under TCG, 1 has the ports.
const (
	firstBus = 2
	lastBus  = 23
	maxDisks = lastBus - firstBus + 1
)

// sandbox is QEMU's seccomp filter, the same as for VMs.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// cacheMemory is what is kept of each disk here, in bytes.
const cacheMemory = 16 << 20

// vm is one helper.
type vm struct {
	cmd    *exec.Cmd
	ports  chan *conn // those that nobody uses
	conns  []*conn
	gone   chan struct{} // closed when QEMU has ended
	cancel context.CancelFunc
	work   sync.WaitGroup
	said   *tail
}

// ends closes files on the way out of start.
type ends []io.Closer

func (e ends) close() {
	for _, c := range e {
		c.Close()
	}
}

// start runs a helper over the disks. life ends it; ctx bounds the start alone.
func start(ctx, life context.Context, o Options, disks []backup.DiskReader) (_ *vm, err error) {
	if len(disks) > maxDisks {
		return nil, fmt.Errorf("file restore: the point has %d disks; the helper takes %d", len(disks), maxDisks)
	}
	cmdline, err := o.cmdline(ctx)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(life)
	v := &vm{gone: make(chan struct{}), cancel: cancel, ports: make(chan *conn, wire.Ports), said: &tail{max: 8 << 10}}
	var theirs, ours ends
	started := false
	defer func() {
		theirs.close()
		if !started {
			cancel()
			ours.close()
			v.work.Wait()
		}
	}()
	p := plan{}
	kernel, err := openFor(o.Image.Kernel, o.UID)
	if err != nil {
		return nil, fmt.Errorf("helper image: %w", err)
	}
	theirs = append(theirs, kernel)
	initrd, err := openFor(o.Image.Initrd, o.UID)
	if err != nil {
		return nil, fmt.Errorf("helper image: %w", err)
	}
	theirs = append(theirs, initrd)
	p.machine(o, cmdline, kernel, initrd)
	for i := range wire.Ports {
		nc, f, err := socketpair()
		if err != nil {
			return nil, err
		}
		theirs, ours = append(theirs, f), append(ours, nc)
		v.conns = append(v.conns, newConn(nc, o.Clock))
		p.port(i, f)
	}
	for i, d := range disks {
		nc, f, err := socketpair()
		if err != nil {
			return nil, err
		}
		theirs, ours = append(theirs, f), append(ours, nc)
		x := backup.NewExport(life, d, cacheMemory)
		srv := nbd.NewServer(nbd.ServerOptions{Handshake: o.Start, Stall: o.Stall, Memory: 16 << 20, Log: o.Log,
			Lookup: func(context.Context, string, nbd.Peer) (nbd.Export, func(), error) { return x, func() {}, nil }})
		v.work.Go(func() {
			defer x.Close()
			srv.ServeConn(life, nc)
		})
		overlay, err := newOverlay(o.Dir, x.Size(), o.Overlay)
		if err != nil {
			return nil, fmt.Errorf("file restore: overlay in %s: %w", o.Dir, err)
		}
		theirs = append(theirs, overlay)
		p.disk(i, f, overlay, o.Overlay)
	}
	if p.err != nil {
		return nil, p.err
	}
	v.cmd = exec.Command(o.QEMU, p.args...)
	v.cmd.ExtraFiles, v.cmd.Dir, v.cmd.Env = p.files, "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	v.cmd.Stdout, v.cmd.Stderr = v.said, v.said
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if o.UID != 0 {
		gid := o.GID
		if gid == 0 {
			gid = o.UID
		}
		v.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.UID, Gid: gid, Groups: kvmGroup(o.Accel)}
	}
	if err := v.run(); err != nil {
		return nil, fmt.Errorf("file restore: start QEMU: %w; install QEMU (Debian: qemu-system-x86)", err)
	}
	started = true
	context.AfterFunc(life, func() { v.cmd.Process.Kill() })
	if err := v.greet(ctx, o); err != nil {
		v.end()
		if s := v.said.String(); s != "" {
			err = fmt.Errorf("%w; it said: %s", err, s)
		}
		return nil, fmt.Errorf("file restore: the helper does not start: %w", err)
	}
	return v, nil
}

// run starts QEMU on a thread that lives as long as it does: Pdeathsig is tied to the thread.
func (v *vm) run() error {
	begun := make(chan error, 1)
	v.work.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := v.cmd.Start()
		begun <- err
		if err != nil {
			close(v.gone)
			return
		}
		v.cmd.Wait()
		v.cancel()
		for _, c := range v.conns {
			c.nc.Close()
		}
		close(v.gone)
	})
	return <-begun
}

// greet waits until the helper answers on all ports.
func (v *vm) greet(ctx context.Context, o Options) error {
	for _, c := range v.conns {
		var version uint16
		err := c.call(ctx, wire.TypeHello, wire.Hello(), o.Start, func(f wire.Frame) (err error) {
			if f.Type != wire.TypeHelloBack {
				return unexpected(f)
			}
			version, _, err = wire.ParseHelloBack(f.Payload)
			return err
		})
		if err != nil {
			return err
		}
		if version != wire.Version {
			return fmt.Errorf("its image speaks version %d of the protocol, and this drover %d; build it again with `drover image build helper`", version, wire.Version)
		}
		v.ports <- c
	}
	return nil
}

// end kills the helper and waits until nothing of it is left.
func (v *vm) end() {
	v.cancel()
	v.work.Wait()
}

func (o *Options) cmdline(ctx context.Context) (string, error) {
	if o.Accel != guest.TCG {
		return o.Image.Cmdline, nil
	}
	khz := o.TSCKHz
	if khz == 0 {
		var err error
		if khz, err = accel.TSCKHz(ctx); err != nil {
			return "", err
		}
	}
	// A microvm has neither HPET nor PM timer to calibrate by.
	return fmt.Sprintf("%s tsc_early_khz=%d", strings.TrimSpace(o.Image.Cmdline), khz), nil
}

// plan collects arguments and the descriptors that QEMU inherits, from 3 on.
type plan struct {
	args  []string
	files []*os.File
	err   error
}

func (p *plan) add(args ...string) { p.args = append(p.args, args...) }

func (p *plan) fd(f *os.File) int {
	p.files = append(p.files, f)
	return len(p.files) + 2
}

func (p *plan) json(option string, v map[string]any) {
	b, err := json.Marshal(v)
	p.err = errors.Join(p.err, err)
	p.add(option, string(b))
}

func (p *plan) machine(o Options, cmdline string, kernel, initrd *os.File) {
	cpu := "Westmere-v1"
	if o.Accel == guest.KVM {
		cpu = "Westmere-v2"
	}
	p.add("-name", "drover-helper", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-sandbox", sandbox,
		"-machine", "microvm,accel="+string(o.Accel)+",acpi=on,ioapic2=on,pcie=off,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,x-option-roms=off,usb=off,dump-guest-core=off",
		"-global", "virtio-mmio.force-legacy=off", "-cpu", cpu, "-smp", "1", "-m", fmt.Sprintf("%dM", o.Memory),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-bios", "bios-microvm.bin",
		"-kernel", fmt.Sprintf("/proc/self/fd/%d", p.fd(kernel)), "-initrd", fmt.Sprintf("/proc/self/fd/%d", p.fd(initrd)), "-append", cmdline,
		"-device", "virtio-serial-device,id=ports,bus=virtio-mmio-bus.1,max_ports=8")
}

func (p *plan) port(i int, f *os.File) {
	p.add("-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, p.fd(f)),
		"-device", fmt.Sprintf("virtserialport,bus=ports.0,nr=%d,chardev=port%d,name=%s%d", i+1, i, wire.PortPrefix, i))
}

func (p *plan) disk(i int, conn, overlay *os.File, most int64) {
	p.json("-blockdev", map[string]any{"driver": "nbd", "node-name": fmt.Sprintf("nbd%d", i), "read-only": true, "server": map[string]any{"type": "fd", "str": fmt.Sprint(p.fd(conn))}, "export": ""})
	p.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", p.fd(overlay), i))
	p.json("-blockdev", map[string]any{"driver": "file", "node-name": fmt.Sprintf("file%d", i), "filename": fmt.Sprintf("/dev/fdset/%d", i), "cache": noFlush()})
	// A node of a fixed size: what does not fit is an error in the helper, not space that is missing here.
	p.json("-blockdev", map[string]any{"driver": "raw", "node-name": fmt.Sprintf("room%d", i), "file": fmt.Sprintf("file%d", i), "size": most, "cache": noFlush()})
	p.json("-blockdev", map[string]any{"driver": "qcow2", "node-name": fmt.Sprintf("disk%d", i), "file": fmt.Sprintf("room%d", i), "backing": fmt.Sprintf("nbd%d", i), "cache": noFlush()})
	p.json("-device", map[string]any{"driver": "virtio-blk-device", "bus": fmt.Sprintf("virtio-mmio-bus.%d", firstBus+i), "drive": fmt.Sprintf("disk%d", i), "serial": fmt.Sprintf("d%d", i),
		"num-queues": 1, "werror": "report", "rerror": "report"})
}

func noFlush() map[string]any { return map[string]any{"direct": false, "no-flush": true} }

func socketpair() (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	for _, fd := range pair {
		// A hint; the system's limit may be lower.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	nc, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return nc, theirs, nil
}

// openFor opens a file that QEMU opens again by /proc/self/fd. One that others may not read is copied into memory that uid owns.
func openFor(path string, uid uint32) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil || uid == 0 || st.Mode()&0o004 != 0 {
		return f, err
	}
	defer f.Close()
	fd, err := unix.MemfdCreate("helper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	m := os.NewFile(uintptr(fd), path)
	_, err = io.Copy(m, io.LimitReader(f, 1<<30))
	if err = errors.Join(err, m.Chown(int(uid), -1)); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func kvmGroup(a guest.Accel) []uint32 {
	var st unix.Stat_t
	if a != guest.KVM || unix.Stat("/dev/kvm", &st) != nil || st.Mode&0o006 == 0o006 || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}

// tail keeps the end of what is written to it, without control characters: it quotes the guest.
type tail struct {
	max int
	mu  sync.Mutex // guards b
	b   []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append([]byte(nil), t.b[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\r' {
			return -1
		}
		if r < ' ' && r != '\n' || r == 0x7f {
			return '?'
		}
		return r
	}, string(t.b)))
}
