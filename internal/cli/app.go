package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"drover/internal/cli/client"
	"drover/internal/clock"
	"drover/internal/manager"
	"drover/internal/pki"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// App is what all commands share.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Clock    clock.Clock
	// Version of the binary.
	Version string
	// More makes commands of packages above this one.
	More []func(*App) *cobra.Command

	global struct{ context, socket, server, ca, colour string }
	output string
	client *client.Client
}

// Environment variables that stand for global flags.
const (
	envServer  = "DROVER_SERVER"
	envSocket  = "DROVER_SOCKET"
	envContext = "DROVER_CONTEXT"
	envCA      = "DROVER_CA"
	envToken   = "DROVER_TOKEN"
)

func (a *App) defaults() {
	if a.In == nil {
		a.In = os.Stdin
	}
	if a.Out == nil {
		a.Out = os.Stdout
	}
	if a.Err == nil {
		a.Err = os.Stderr
	}
	if a.Getenv == nil {
		a.Getenv = os.Getenv
	}
	if a.Clock == nil {
		a.Clock = clock.Real()
	}
	if a.Version == "" {
		a.Version = "unknown"
	}
}

func (a *App) now() time.Time { return a.Clock.Now() }

// terminal is the file behind a stream if that is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// coloured says whether a stream gets colours.
func (a *App) coloured(w io.Writer) bool {
	switch a.global.colour {
	case "always":
		return true
	case "never":
		return false
	}
	_, ok := terminal(w)
	return ok && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}

// say writes a line to standard error, for people.
func (a *App) say(format string, args ...any) { fmt.Fprintf(a.Err, format+"\n", args...) }

// api is the client for the chosen manager, made once.
func (a *App) api() (*client.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	c, err := client.New(t)
	if err != nil {
		return nil, usageError{err: err}
	}
	a.client = c
	return c, nil
}

// target chooses the manager: flags before the environment, that before the current context, that before the socket of this machine.
func (a *App) target() (client.Target, error) {
	first := func(xs ...string) string {
		for _, x := range xs {
			if x != "" {
				return x
			}
		}
		return ""
	}
	g := &a.global
	socket, server, name := g.socket, g.server, g.context
	if first(socket, server, name) == "" {
		socket, server, name = a.Getenv(envSocket), a.Getenv(envServer), a.Getenv(envContext)
	}
	if socket != "" {
		return client.Target{Socket: socket, Token: a.Getenv(envToken)}, nil
	}
	cfg, _, err := a.config()
	if err != nil {
		return client.Target{}, err
	}
	if server == "" {
		name = first(name, cfg.Current)
	}
	if server == "" && name == "" {
		return client.Target{Socket: manager.DefaultState + "/manager.sock", Token: a.Getenv(envToken)}, nil
	}
	var x *client.Context
	if server != "" {
		if server, err = client.ParseServer(server); err != nil {
			return client.Target{}, usageError{err: err}
		}
		x = cfg.ByServer(server)
	} else if x = cfg.Find(name); x == nil {
		return client.Target{}, usage("there is no context %q; `drover context list` shows those that there are", name)
	}
	t := client.Target{Server: server, Token: a.Getenv(envToken)}
	var ca []byte
	if x != nil {
		t.Server, t.Token, ca = x.Server, first(t.Token, x.Token), []byte(x.CA)
	}
	if file := first(g.ca, a.Getenv(envCA)); file != "" {
		if ca, err = os.ReadFile(file); err != nil {
			return t, usage("CA: %v", err)
		}
	}
	if len(ca) == 0 {
		return t, &failure{code: exitDenied, err: fmt.Errorf("nothing is known of the manager at %s", t.Server), hint: "log in first: drover login --server https://" + t.Server}
	}
	if t.CA, err = pki.ParseTrust(ca); err != nil {
		return t, usage("%v", err)
	}
	return t, nil
}

// config is the remembered contexts and the file that they are in.
func (a *App) config() (*client.Config, string, error) {
	path, err := client.Path(a.Getenv)
	if err != nil {
		return &client.Config{}, "", nil //nolint:nilerr // without a home directory there are no contexts
	}
	c, err := client.LoadConfig(path)
	return c, path, err
}

// call is the work of a client command: it gets the context, the client and the arguments.
type call func(ctx context.Context, c *client.Client, args []string) error

// run makes a command's RunE from a call.
func (a *App) run(f call) func(*cobra.Command, []string) error {
	return a.runCmd(func(ctx context.Context, c *client.Client, _ *cobra.Command, args []string) error {
		return f(ctx, c, args)
	})
}

// runCmd is run for what asks which flags were given.
func (a *App) runCmd(f func(context.Context, *client.Client, *cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		return f(cmd.Context(), c, cmd, args)
	}
}
