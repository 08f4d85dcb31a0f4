package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Exec runs a command on a node and returns its output; with a failure, the error
// carries what it wrote to standard error.
func (l *Lab) Exec(ctx context.Context, node, name string, args ...string) ([]byte, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := l.run(node, cmd); err != nil {
		return out.Bytes(), fmt.Errorf("%s on %s: %w: %s", name, node, err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

func (l *Lab) run(node string, cmd *exec.Cmd) error {
	n, err := l.Net(node)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Run(cmd)
}

// Shell runs an interactive shell, or the command given, on a node with this
// process's terminal. /sys still shows the links of the machine: use ip.
func (l *Lab) Shell(ctx context.Context, node string, command ...string) error {
	if len(command) == 0 {
		sh := os.Getenv("SHELL")
		if sh == "" {
			sh = "/bin/sh"
		}
		command = []string{sh}
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "DROVER_LAB="+l.cfg.Name, "DROVER_LAB_NODE="+node,
		"PS1="+l.cfg.Name+"/"+node+" \\$ ")
	return l.run(node, cmd)
}

// Start starts a long-lived process on a node in a session of its own, with its
// output appended to NAME.log in the lab's directory, and records it: Down ends
// it. name is unique in the lab. The caller may Wait on cmd; the process outlives it.
func (l *Lab) Start(node, name string, cmd *exec.Cmd) (Process, error) {
	if _, err := l.topo.Node(node); err != nil {
		return Process{}, err
	}
	return start(l.dir, l.topo, node, name, cmd)
}

func start(dir string, t Topology, node, name string, cmd *exec.Cmd) (p Process, err error) {
	at, err := t.Node(node)
	if err != nil {
		return p, err
	}
	if err := freeName(dir, name); err != nil {
		return p, err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if cmd.Stdout == nil && cmd.Stderr == nil {
		log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return p, fmt.Errorf("start %s: %w", name, err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	l := Lab{topo: t}
	n, err := l.Net(at.Name)
	if err != nil {
		return p, err
	}
	defer n.Close()
	if err := n.Start(cmd); err != nil {
		return p, fmt.Errorf("start %s on %s: %w", name, node, err)
	}
	p = Process{Name: name, Node: node, PID: cmd.Process.Pid}
	p.Start, err = startTime(p.PID)
	if err == nil || errors.Is(err, errGone) { // it is ours to reap, so its pid stays
		err = record(dir, p)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("start %s on %s: %w", name, node, err), cmd.Process.Kill(), cmd.Wait())
	}
	return p, err
}

// Processes lists the recorded processes that are alive.
func (l *Lab) Processes() ([]Process, error) {
	all, err := recorded(l.dir)
	if err != nil {
		return nil, err
	}
	alive := all[:0]
	for _, p := range all {
		if p.alive() {
			alive = append(alive, p)
		}
	}
	return alive, nil
}

// Dial connects from a node. Only addresses, no names: there is no resolver.
func (l *Lab) Dial(ctx context.Context, node, network, address string) (conn net.Conn, err error) {
	n, err := l.Net(node)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	// With a numeric address the dialer makes its socket on this thread; for a name
	// it would ask the machine's resolver on others.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", node, err)
	}
	err = n.Do(func() (err error) {
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a node.
func (l *Lab) Listen(ctx context.Context, node, network, address string) (ln net.Listener, err error) {
	n, err := l.Net(node)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	err = n.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return ln, err
}

// ListenPacket is Listen for datagrams.
func (l *Lab) ListenPacket(ctx context.Context, node, network, address string) (pc net.PacketConn, err error) {
	n, err := l.Net(node)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	err = n.Do(func() (err error) {
		pc, err = (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		return err
	})
	return pc, err
}
