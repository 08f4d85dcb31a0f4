package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"drover/internal/hostnet"
	"drover/internal/qemu"
	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

// firstLine is the first that the test guest prints.
const firstLine = "drover-tiny: init"

// kit is what it takes to start a VM by hand when it is off.
type kit struct {
	PID  int       `json:"pid"`
	Spec qemu.Spec `json:"spec"`
}

// kitOf reads the kit of a VM that the host runs now. It is an error if the process was started with other arguments
// than those that prepare is going to use.
func (r *rig) kitOf(uid string) (*kit, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, "r", "vms", uid, "state.json"))
	if err != nil {
		return nil, err
	}
	k := new(kit)
	if err := json.Unmarshal(b, k); err != nil {
		return nil, err
	}
	plan, err := qemu.Make(&k.Spec)
	if err != nil {
		return nil, err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k.PID))
	if err != nil {
		return nil, err
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if !slices.Equal(args[1:], plan.Args) {
		return nil, fmt.Errorf("QEMU of VM %s runs with\n%q, not with its plan\n%q", k.Spec.Name, args[1:], plan.Args)
	}
	return k, nil
}

// handUser is the user of guests that are started by hand: none of the agent's.
const handUser = 1<<30 - 2

// hand is a guest that is about to be started by hand: everything is open, only QEMU is missing.
type hand struct {
	name, dir string
	bin       string
	args      []string
	files     []*os.File
	conns     []net.Conn
	serial    net.Conn
	monitor   net.Conn
	runs      chan time.Time // when QEMU has let its CPUs go
	cmd       *os.Process
	memory    string
}

// prepare opens what the VM's plan needs. dir is the guest's own, bridge its network's.
func (k *kit) prepare(dir, bridge string, n *hostnet.Net) (_ *hand, err error) {
	spec := k.Spec
	h := &hand{name: spec.Name, dir: dir, memory: spec.Memory.Path + ".hand"}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	spec.Memory.Path = h.memory
	plan, err := qemu.Make(&spec)
	if err != nil {
		return nil, err
	}
	h.args = plan.Args
	if h.bin, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := makeRAM(h.memory, spec.Memory.MiB<<20); err != nil {
		return nil, err
	}
	for _, fd := range plan.FDs {
		var f *os.File
		switch fd.Source {
		case qemu.FromMonitor, qemu.FromSerial, qemu.FromAgent:
			f, err = h.listen(fd.Source)
		case qemu.FromFile:
			f, err = readable(fd.Path, dir)
		case qemu.FromLayer:
			mode := os.O_RDONLY
			if fd.Write {
				mode = os.O_RDWR
			}
			f, err = os.OpenFile(fd.Path, mode, 0)
		case qemu.FromTAP:
			f, err = tap(n, bridge, hostnet.Name("bt", spec.UUID))
		default:
			err = fmt.Errorf("descriptor from %q", fd.Source)
		}
		if err != nil {
			return nil, err
		}
		h.files = append(h.files, f)
	}
	return h, nil
}

func makeRAM(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Chown(handUser, handUser), f.Close())
}

// listen makes a socket that is listening, and connects to it.
func (h *hand) listen(source qemu.Source) (*os.File, error) {
	path := filepath.Join(h.dir, string(source))
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	h.conns = append(h.conns, c)
	switch source {
	case qemu.FromSerial:
		h.serial = c
	case qemu.FromMonitor:
		h.monitor = c
	}
	return f, nil
}

// readable opens a file that QEMU's user may open again; one that it may not read is copied.
func readable(path, dir string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil || st.Mode()&0o004 != 0 {
		f, oerr := os.Open(path)
		return f, errors.Join(err, oerr)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	copied := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(copied, b, 0o644); err != nil {
		return nil, err
	}
	return os.Open(copied)
}

// tap is a TAP like the agent's, on the same bridge.
func tap(n *hostnet.Net, bridge, name string) (*os.File, error) {
	var u unwind.Stack
	t := hostnet.TAP{Name: name, Mark: hostnet.Mark{Kind: "bench", ID: name}, VNetHdr: true, Owner: handUser, MTU: 1500}
	if err := n.EnsureTAP(&u, t); err != nil {
		return nil, err
	}
	if err := n.Attach(&u, bridge, name); err != nil {
		return nil, err
	}
	u.Commit() // it goes with the namespace
	return n.OpenTAP(name, t.VNetHdr)
}

// bridgeOf is the bridge that the host's agent made for its network.
func bridgeOf(n *hostnet.Net) (string, error) {
	links, err := n.Owned("network")
	if err != nil {
		return "", err
	}
	if len(links) != 1 {
		return "", fmt.Errorf("%d bridges of networks, want the one of lan", len(links))
	}
	return links[0].Name, nil
}

// start starts QEMU and waits for the guest's first line; it gives the moments of both.
func (h *hand) start(ctx context.Context) (began, line time.Time, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return began, line, err
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, Files: append([]*os.File{null, null, os.Stderr}, h.files...),
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: handUser, Gid: handUser}},
	}
	h.runs = make(chan time.Time, 1)
	go h.letGo()
	began = time.Now()
	if h.cmd, err = os.StartProcess(h.bin, append([]string{filepath.Base(h.bin)}, h.args...), attr); err != nil {
		return began, line, err
	}
	// QEMU has its own copies, and only its end of a socket shows when it has ended.
	for _, f := range h.files {
		f.Close()
	}
	h.files = nil
	stop := context.AfterFunc(ctx, func() { h.serial.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := h.serial.SetReadDeadline(time.Now().Add(settle)); err != nil {
		return began, line, err
	}
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), firstLine) {
		n, err := h.serial.Read(buf)
		line = time.Now()
		text.Write(buf[:n])
		if err != nil {
			return began, line, fmt.Errorf("console of %s by hand: %w", h.name, err)
		}
	}
	go io.Copy(io.Discard, h.serial) // ends when close closes it
	return began, line, nil
}

// letGo asks QEMU to let its CPUs go, which it reads as soon as it can, and waits for the answer. It ends with the
// connection at the latest.
func (h *hand) letGo() {
	_, err := io.WriteString(h.monitor, `{"execute":"qmp_capabilities"}`+"\n"+`{"execute":"cont","id":"go"}`+"\n")
	in := bufio.NewScanner(h.monitor)
	for err == nil && in.Scan() {
		if strings.Contains(in.Text(), `"id": "go"`) {
			break
		}
	}
	h.runs <- time.Now()
}

// close ends QEMU and frees what the guest had.
func (h *hand) close() {
	if h.cmd != nil {
		_ = h.cmd.Signal(unix.SIGKILL)
		_, _ = h.cmd.Wait()
	}
	for _, f := range h.files {
		f.Close()
	}
	for _, c := range h.conns {
		c.Close()
	}
	os.Remove(h.memory)
}
