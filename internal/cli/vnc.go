package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func (a *App) vmVNCCommand() *cobra.Command {
	var listen string
	var once bool
	cmd := &cobra.Command{
		Use: "vnc NAME", Short: "Open a VM's screen to VNC viewers on this machine", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long: `Listen on a local port and connect VNC viewers that come there with the VM's screen, until interrupted.
Everybody who reaches the port sees and uses the screen: there is no password, so it listens on loopback only unless told otherwise.`,
		Example: "  drover vm vnc web\n  drover vm vnc web --listen 127.0.0.1:5901 --once",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if _, err := c.VM.Get(ctx, &v1.GetRequest{Name: args[0]}); err != nil {
				return err
			}
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
			if err != nil {
				return usage("--listen %s: %v", listen, err)
			}
			if _, err := fmt.Fprintf(a.Out, "vnc://%s\n", l.Addr()); err != nil {
				return errors.Join(err, l.Close())
			}
			a.say("Connect a VNC viewer to %s; Ctrl-C ends.", l.Addr())
			return a.serveVNC(ctx, c, args[0], l, once)
		}),
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "`address:port` to listen on; port 0 is any that is free")
	cmd.Flags().BoolVar(&once, "once", false, "end when the first viewer leaves")
	return cmd
}

// serveVNC passes connections on until ctx ends, which is no error.
func (a *App) serveVNC(ctx context.Context, c *client.Client, vm string, l net.Listener, once bool) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	h := c.HTTP1()
	defer h.CloseIdleConnections()
	g.Go(func() error {
		for {
			conn, err := l.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if once {
				l.Close()
				return bridgeVNC(ctx, h, c.Base, vm, conn)
			}
			g.Go(func() error {
				if err := bridgeVNC(ctx, h, c.Base, vm, conn); err != nil && ctx.Err() == nil {
					a.report(err)
				}
				return nil
			})
		}
	})
	return g.Wait()
}

// bridgeVNC connects a viewer with the VM and closes both ends.
func bridgeVNC(ctx context.Context, h *http.Client, base, vm string, conn net.Conn) error {
	defer conn.Close()
	ws, res, err := websocket.Dial(ctx, base+"/ws/vnc/"+url.PathEscape(vm), &websocket.DialOptions{HTTPClient: h, Subprotocols: []string{"binary"}})
	if err != nil {
		if res != nil {
			return httpError(res)
		}
		return err
	}
	defer ws.CloseNow()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	remote := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	done := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from) // either side going away is how it ends
		done <- struct{}{}
	}
	go pass(remote, conn)
	go pass(conn, remote)
	select {
	case <-done:
	case <-ctx.Done():
	}
	cancel()
	conn.Close()
	remote.Close()
	return nil
}

var codeByStatus = map[int]connect.Code{
	http.StatusBadRequest: connect.CodeInvalidArgument, http.StatusNotFound: connect.CodeNotFound, http.StatusConflict: connect.CodeAborted,
	http.StatusForbidden: connect.CodePermissionDenied, http.StatusUnauthorized: connect.CodeUnauthenticated, http.StatusServiceUnavailable: connect.CodeUnavailable,
	http.StatusTooManyRequests: connect.CodeResourceExhausted, http.StatusPreconditionFailed: connect.CodeFailedPrecondition,
}

// httpError is the error in an answer that is not an RPC's: JSON with code and message, as Connect writes it.
func httpError(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return err
	}
	code, text := connectBody(body)
	if code == 0 {
		if code = codeByStatus[res.StatusCode]; code == 0 {
			code = connect.CodeUnknown
		}
		if text = strings.TrimSpace(string(body)); text == "" {
			text = res.Status
		}
	}
	return connect.NewError(code, errors.New(text))
}
