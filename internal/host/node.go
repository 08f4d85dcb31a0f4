package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"time"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/qemu"
	"drover/internal/qga"
	"drover/internal/resource"
)

// node is what the manager may ask of the host. Every call names VM, uid and epoch, and only the present ones count.
type node struct {
	droverv1connect.UnimplementedNodeServiceHandler
	a        *agent
	browsing browsing
}

// Limits of Exec (vm.proto).
const (
	execDefault = 30 * time.Second
	execMost    = 10 * time.Minute
	execInput   = 1 << 20
)

func (n *node) find(uid string, epoch int64) (*machine, error) {
	m := n.a.machine(uid)
	if m == nil {
		return nil, &resource.Error{Code: resource.NotFound, Kind: resource.KindVM, Name: uid, Reason: "VM_NOT_HERE",
			Message: "is not on host " + n.a.id.Host}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if have := m.vm.GetStatus().GetEpoch(); !m.held || epoch != have {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.vm.GetMeta().GetName(), Reason: "EPOCH_STALE",
			Message: fmt.Sprintf("host %s knows epoch %d of it, not %d", n.a.id.Host, have, epoch)}
	}
	return m, nil
}

// running is find for what needs QEMU.
func (n *node) running(uid string, epoch int64) (*machine, *qemu.Process, error) {
	m, err := n.find(uid, epoch)
	if err != nil {
		return nil, nil, err
	}
	p := m.process()
	if p == nil {
		return nil, nil, m.notRunning()
	}
	return m, p, nil
}

func (m *machine) notRunning() error {
	return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.name(), Reason: "NOT_RUNNING",
		Message: "is not running", Remedy: "start it first"}
}

// Reset presses the reset button.
func (n *node) Reset(ctx context.Context, req *v1.NodeVMRequest) (*v1.NodeVMResponse, error) {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	err = m.ask(ctx, func(ctx context.Context) error {
		return m.once(req.GetOperation(), "reset", func() error {
			p := m.process()
			if p == nil {
				return m.notRunning()
			}
			if err := p.QMP().SystemReset(ctx); err != nil {
				return fmt.Errorf("reset VM %s: %w", m.name(), err)
			}
			m.event(v1.Severity_SEVERITY_INFO, "VM_RESET", "reset")
			return nil
		})
	})
	return &v1.NodeVMResponse{}, err
}

// Exec runs a program in the guest.
func (n *node) Exec(ctx context.Context, req *v1.NodeExecRequest) (*v1.ExecResponse, error) {
	m, _, err := n.running(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	x := req.GetExec()
	if len(x.GetStdin()) > execInput {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: m.name(), Field: "stdin", Reason: "TOO_LONG",
			Message: "standard input is longer than 1 MiB"}
	}
	wait := execDefault
	if d := x.GetTimeout(); d != nil {
		wait = min(d.AsDuration(), execMost)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	g := m.watchOfGuest()
	if g == nil {
		return nil, m.notRunning()
	}
	st, err := g.client.Run(ctx, qga.Command{Path: x.GetPath(), Args: x.GetArgs(), Env: x.GetEnv(), Input: x.GetStdin()})
	if err != nil {
		return nil, m.guestError("run "+x.GetPath(), err)
	}
	return &v1.ExecResponse{ExitCode: int32(st.Code), Signal: int32(st.Signal), Stdout: st.Out, Stderr: st.Err, Truncated: st.Truncated}, nil
}

// guestError tells what the guest agent did not do.
func (m *machine) guestError(what string, err error) error {
	e := &resource.Error{Code: resource.Unavailable, Kind: resource.KindVM, Name: m.name(), Reason: "GUEST_AGENT",
		Message: fmt.Sprintf("cannot %s in the guest: %v", what, err), Err: err}
	var refused *qga.Error
	switch {
	case errors.As(err, &refused):
		e.Code, e.Reason = resource.Precondition, "GUEST_REFUSED"
	case errors.Is(err, qga.ErrSilent):
		e.Remedy = "see that the guest has booted and that qemu-guest-agent runs in it"
	}
	return e
}

// Screenshot is the screen as PNG.
func (n *node) Screenshot(ctx context.Context, req *v1.NodeVMRequest) (*v1.ScreenshotResponse, error) {
	m, p, err := n.running(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out bytes.Buffer
	screen, err := p.Screen(ctx)
	if err == nil {
		err = png.Encode(&out, screen)
	}
	if err != nil {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.name(), Reason: "NO_SCREENSHOT",
			Message: fmt.Sprintf("no picture of the screen: %v", err), Err: err}
	}
	return &v1.ScreenshotResponse{Png: out.Bytes()}, nil
}

// Attach connects to the serial console or the VNC server.
func (n *node) Attach(ctx context.Context, stream *connect.BidiStream[v1.AttachInput, v1.AttachOutput]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	var m *machine
	if first.GetUid() == "" {
		m = n.a.named(first.GetVm())
	} else {
		m = n.a.expect(ctx, first.GetUid())
	}
	if m == nil {
		return &resource.Error{Code: resource.NotFound, Kind: resource.KindVM, Name: first.GetVm(), Reason: "VM_NOT_HERE",
			Message: "is not on host " + n.a.id.Host}
	}
	switch first.GetChannel() {
	case v1.Channel_CHANNEL_VNC:
		return n.attachVNC(ctx, m, stream)
	default:
		return n.attachSerial(ctx, m, first, stream)
	}
}

func (n *node) attachSerial(ctx context.Context, m *machine, first *v1.AttachInput, stream *connect.BidiStream[v1.AttachInput, v1.AttachOutput]) error {
	send := func(b []byte) error { return stream.Send(&v1.AttachOutput{Data: b}) }
	if first.GetReadOnly() {
		backlog := int64(first.GetBacklog())
		if backlog == 0 && !first.GetFollow() {
			backlog = -1 // what was printed, all of it
		}
		return m.console.view(ctx, backlog, first.GetFollow(), send)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	input := make(chan error, 1)
	go func() {
		defer cancel()
		if len(first.GetData()) > 0 {
			if _, err := m.console.Write(first.GetData()); err != nil {
				input <- err
				return
			}
		}
		input <- receive(stream, m.console)
	}()
	err := m.console.view(ctx, int64(first.GetBacklog()), true, send)
	select {
	case in := <-input:
		if in != nil {
			return in
		}
		if errors.Is(err, context.Canceled) {
			return nil
		}
	default:
	}
	return err
}

// receive writes what the viewer types until it stops.
func receive(stream *connect.BidiStream[v1.AttachInput, v1.AttachOutput], to io.Writer) error {
	for {
		in, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(in.GetData()); err != nil && !errors.Is(err, errNoLine) {
			return err
		}
	}
}

func (n *node) attachVNC(ctx context.Context, m *machine, stream *connect.BidiStream[v1.AttachInput, v1.AttachOutput]) error {
	p := m.process()
	if p == nil {
		return m.notRunning()
	}
	conn, err := p.VNC(ctx)
	if err != nil {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.name(), Reason: "NO_SCREEN",
			Message: fmt.Sprintf("has no screen to connect to: %v", err), Err: err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// This ends when the handler does: the stream's end makes Receive fail.
	go func() {
		defer conn.Close()
		_ = receive(stream, conn)
	}()
	buf := make([]byte, 32<<10)
	for {
		k, err := conn.Read(buf)
		if k > 0 {
			if err := stream.Send(&v1.AttachOutput{Data: buf[:k]}); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}
