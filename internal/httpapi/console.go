package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
)

// attachment is a stream to a VM's console or screen at its host.
type attachment struct {
	*connect.BidiStreamForClientSimple[v1.AttachInput, v1.AttachOutput]
}

// attach opens a stream to a VM's host. It ends with ctx.
func attach(ctx context.Context, node droverv1connect.NodeServiceClient, vm *v1.VM, first *v1.AttachInput) (attachment, error) {
	st, err := node.Attach(ctx)
	if err != nil {
		return attachment{}, err
	}
	// The HTTP/2 client of net/http does not look at ctx while it waits for more of the request's body.
	context.AfterFunc(ctx, func() { _ = st.CloseRequest() })
	first.Vm, first.Uid = vm.Meta.Name, vm.Meta.Uid
	return attachment{st}, st.Send(first)
}

// receive copies what comes from the host to out until the host or out ends.
func (a attachment) receive(out func([]byte) error) error {
	for {
		msg, err := a.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpc.FromError(err)
		}
		if err := out(msg.Data); err != nil {
			return err
		}
	}
}

// pump carries bytes both ways until one side ends. in fails or returns io.EOF when the caller has gone.
func (a attachment) pump(stop context.CancelCauseFunc, in func() ([]byte, error), out func([]byte) error) error {
	go func() { // ends when the caller's side ends, at the latest with its request
		for {
			data, err := in()
			if err == nil {
				err = a.Send(&v1.AttachInput{Data: data})
			}
			if err != nil {
				stop(err)
				return
			}
		}
	}()
	return a.receive(out)
}

func (s vms) Console(ctx context.Context, st *connect.BidiStream[v1.ConsoleInput, v1.ConsoleOutput]) error {
	first, err := st.Receive()
	if err != nil {
		return &resource.Error{Code: resource.Invalid, Reason: "VM_MISSING", Message: "the first message must name a VM"}
	}
	vm, node, err := s.m.At(first.Vm)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a, err := attach(ctx, node, vm, &v1.AttachInput{Channel: v1.Channel_CHANNEL_SERIAL, Backlog: first.Backlog, Data: first.Data})
	if err != nil {
		return rpc.FromError(err)
	}
	err = a.pump(stop,
		func() ([]byte, error) {
			m, err := st.Receive()
			return m.GetData(), err
		},
		func(b []byte) error { return st.Send(&v1.ConsoleOutput{Data: b}) })
	if errors.Is(context.Cause(ctx), io.EOF) {
		return nil // the caller hung up
	}
	return err
}

func (s vms) ConsoleLog(ctx context.Context, req *v1.ConsoleLogRequest, st *connect.ServerStream[v1.ConsoleOutput]) error {
	vm, node, err := s.m.At(req.Name)
	if err != nil {
		return err
	}
	a, err := attach(ctx, node, vm, &v1.AttachInput{Channel: v1.Channel_CHANNEL_SERIAL, Backlog: -1, ReadOnly: true, Follow: req.Follow})
	if err != nil {
		return rpc.FromError(err)
	}
	return a.receive(func(b []byte) error { return st.Send(&v1.ConsoleOutput{Data: b}) })
}

// vnc carries a VM's screen over a websocket, as noVNC speaks it: binary messages of the RFB protocol.
func (s *Server) vnc(w http.ResponseWriter, r *http.Request) {
	if err := may(r.Context(), auth.VerbConsole, resource.KindVM); err != nil {
		(auditor{s}).done(r.Context(), "VNC", resource.KindVM, r.PathValue("vm"), err)
		s.refuse(w, r, r.Context(), err)
		return
	}
	vm, node, err := s.m.At(r.PathValue("vm"))
	if err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	(auditor{s}).streamed(r.Context(), "VNC", vm.Meta.Name)
	// The library refuses other origins than this server's own, so that no foreign page rides on a browser's log-in.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}})
	if err != nil {
		return // Accept has answered
	}
	conn.SetReadLimit(1 << 20)
	ctx, stop := context.WithCancelCause(r.Context())
	defer stop(nil)
	a, err := attach(ctx, node, vm, &v1.AttachInput{Channel: v1.Channel_CHANNEL_VNC})
	if err == nil {
		err = a.pump(stop,
			func() ([]byte, error) {
				_, b, err := conn.Read(ctx)
				return b, err
			},
			func(b []byte) error { return conn.Write(ctx, websocket.MessageBinary, b) })
	}
	if err != nil && context.Cause(ctx) == nil {
		conn.Close(websocket.StatusInternalError, text(rpc.FromError(err).Error(), 120)) // RFC 6455, 5.5: at most 123 bytes
		return
	}
	conn.Close(websocket.StatusNormalClosure, "")
}
