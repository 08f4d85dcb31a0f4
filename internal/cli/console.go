package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// escapeKey ends a console: Ctrl-].
const escapeKey = 0x1d

func (a *App) vmConsoleCommand() *cobra.Command {
	var backlog int32
	cmd := &cobra.Command{
		Use: "console NAME", Short: "Use a VM's serial console", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Connect the terminal to a VM's serial console. All keys go to the guest, but for Ctrl-], which ends the session.",
		Example: "  drover vm console web\n  drover vm console web --backlog -1",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.console(ctx, c, args[0], backlog)
		}),
	}
	cmd.Flags().Int32Var(&backlog, "backlog", 2048, "bytes of what was printed before to show first (-1: all that is kept)")
	return cmd
}

func (a *App) console(ctx context.Context, c *client.Client, name string, backlog int32) error {
	// An unknown VM is told before the terminal changes.
	vm, err := c.VM.Get(ctx, &v1.GetRequest{Name: name})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.VM.Console(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&v1.ConsoleInput{Vm: name, Backlog: backlog}); err != nil {
		return consoleError(s, err)
	}
	in, tty := terminal(a.In)
	if tty {
		a.say("Serial console of VM %s on host %s. Ctrl-] ends the session.", name, vm.GetStatus().GetOwner())
		restore, err := rawTerminal(in)
		if err != nil {
			return err
		}
		defer func() {
			restore()
			a.say("\r\nSession ended; the VM runs on.")
		}()
	}
	received := make(chan error, 1)
	go func() { received <- a.receive(s) }()
	typed := make(chan error, 1)
	if tty {
		k, err := keysOf(ctx, in)
		if err != nil {
			cancel()
			<-received
			return err
		}
		ended := make(chan struct{})
		defer func() {
			cancel()
			<-ended
			k.close()
		}()
		go func() {
			defer close(ended)
			typed <- a.typeIn(s, k, true)
		}()
	} else {
		go func() { typed <- a.typeIn(s, a.In, false) }()
	}
	for {
		select {
		case err := <-received:
			return err
		case err := <-typed:
			if errors.Is(err, errEscape) {
				cancel()
				<-received
				return nil
			}
			if err != nil {
				cancel()
				<-received
				return err
			}
			typed = nil // the input has ended; what the guest prints still comes
		case <-ctx.Done():
			<-received
			return ctx.Err()
		}
	}
}

var errEscape = errors.New("escape key")

type consoleStream = connect.BidiStreamForClientSimple[v1.ConsoleInput, v1.ConsoleOutput]

// receive prints what the guest prints, as it is: the console is the guest's.
func (a *App) receive(s *consoleStream) error {
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := a.Out.Write(m.GetData()); err != nil {
			return err
		}
	}
}

// typeIn sends what is typed. On a terminal the escape key ends it.
func (a *App) typeIn(s *consoleStream, from io.Reader, tty bool) error {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		data := buf[:n]
		if i := bytes.IndexByte(data, escapeKey); tty && i >= 0 {
			return errEscape
		}
		if n > 0 {
			if serr := s.Send(&v1.ConsoleInput{Data: bytes.Clone(data)}); serr != nil {
				return consoleError(s, serr)
			}
		}
		if errors.Is(err, io.EOF) {
			return s.CloseRequest()
		}
		if err != nil {
			return err
		}
	}
}

// consoleError is the reason behind a failed Send, which itself only says that the stream is over.
func consoleError(s *consoleStream, err error) error {
	if errors.Is(err, io.EOF) {
		return nil // the receiving side has the reason
	}
	return err
}

// rawTerminal turns off the terminal's own handling of keys. The caller must call restore, which may be called twice.
func rawTerminal(f *os.File) (restore func(), err error) {
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() {
		// Nothing more can be done about a terminal that is gone.
		_ = term.Restore(int(f.Fd()), state)
	}, nil
}

func (a *App) vmLogCommand() *cobra.Command {
	var follow, raw bool
	cmd := &cobra.Command{
		Use: "log NAME", Short: "Print what a VM printed on its serial console", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Print what is kept of a VM's serial console. On a terminal the guest's control sequences are left out.",
		Example: "  drover vm log web\n  drover vm log web --follow",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			var out io.Writer = a.Out
			if _, tty := terminal(a.Out); tty && !raw {
				out = &plainWriter{w: a.Out}
			}
			s, err := c.VM.ConsoleLog(ctx, &v1.ConsoleLogRequest{Name: args[0], Follow: follow})
			return each(s, err, func(m *v1.ConsoleOutput) error {
				_, err := out.Write(m.GetData())
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().BoolVar(&raw, "raw", false, "leave control sequences in")
	return cmd
}

// plainWriter leaves out control characters and escape sequences (ECMA-48 CSI and strings), also when they are cut in pieces.
type plainWriter struct {
	w     io.Writer
	state byte // 0, or what has begun: 'e' an escape, '[' a control sequence, ']' a string, '\\' an escape in a string
}

func (p *plainWriter) Write(b []byte) (int, error) {
	out := make([]byte, 0, len(b))
	for _, x := range b {
		switch p.state {
		case 'e':
			switch {
			case x == '[':
				p.state = '['
			case x == ']' || x == 'P' || x == '_' || x == '^' || x == 'X':
				p.state = ']'
			case x >= 0x20 && x < 0x30: // an intermediate byte: one more comes
			default:
				p.state = 0
			}
			continue
		case '[':
			if x >= 0x40 && x < 0x7f {
				p.state = 0
			}
			continue
		case ']':
			switch x {
			case 0x07, 0x18, 0x1a, '\n':
				p.state = 0
			case 0x1b:
				p.state = '\\'
			}
			continue
		case '\\':
			p.state = 0
			continue
		}
		switch {
		case x == 0x1b:
			p.state = 'e'
		case x == '\n' || x == '\t' || x >= 0x20 && x != 0x7f:
			out = append(out, x)
		}
	}
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
