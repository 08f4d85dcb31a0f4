package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"
	"drover/internal/pki"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func (a *App) loginCommand() *cobra.Command {
	var user, name, fingerprint, tokenFile string
	cmd := &cobra.Command{
		Use: "login --server https://HOST:7443", Short: "Log in to a manager on another machine", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Log in to a manager and remember it as a context, which commands then use.

At the first time the manager shows the fingerprint of its certificate authority, and you are asked whether it is the right one: compare it
with what "drover whoami" prints on the manager's machine, or give it by --fingerprint, or the certificate by --ca. From then on only a manager
under that authority is believed. The password is asked for, or read from standard input.`,
		Example: "  drover login --server https://manager.example:7443\n  drover login --server manager.example --user alice --fingerprint sha256:1f2e… < password\n  drover login --server manager.example --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			server := a.global.server
			if server == "" {
				server = a.Getenv(envServer)
			}
			if server == "" {
				return usageError{errors.New("give the manager by --server https://HOST:7443"), cmd}
			}
			return a.login(cmd.Context(), server, user, name, fingerprint, tokenFile)
		},
	}
	cmd.Flags().StringVar(&user, "user", "admin", "who to log in as")
	cmd.Flags().StringVar(&name, "name", "", "name of the context (default: the server's)")
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "the only CA to believe: sha256:HEX")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "use the token in this `file` instead of a password")
	return cmd
}

func (a *App) login(ctx context.Context, server, user, name, fingerprint, tokenFile string) error {
	server, err := client.ParseServer(server)
	if err != nil {
		return usageError{err: err}
	}
	cfg, path, err := a.config()
	if err != nil {
		return err
	}
	if path == "" {
		return usage("there is nowhere to remember it: set HOME or XDG_CONFIG_HOME")
	}
	if name == "" {
		if name, _, err = net.SplitHostPort(server); err != nil {
			return usageError{err: err}
		}
		name = strings.ReplaceAll(name, ":", "-")
	}
	if !contextName.MatchString(name) {
		return usage("context %q: a name has letters, digits, '.', '_' and '-'; give another by --name", name)
	}
	trust, err := a.trust(ctx, cfg, server, fingerprint)
	if err != nil {
		return err
	}
	x := client.Context{Name: name, Server: server, CA: string(trust.PEM())}
	if tokenFile != "" {
		if x.Token, err = a.readText("token-file", tokenFile); err != nil {
			return err
		}
		x.Token = strings.TrimSpace(x.Token)
	}
	c, err := client.New(client.Target{Server: server, CA: trust, Token: x.Token})
	if err != nil {
		return err
	}
	defer c.Close()
	a.client = c // for the wording of errors
	if x.Token == "" {
		password, err := a.secret("Password of " + user)
		if err != nil {
			return err
		}
		res, err := c.Auth.Login(ctx, &v1.LoginRequest{User: user, Password: password})
		if err != nil {
			return err
		}
		x.User, x.Token, x.Expires = user, res.GetToken(), res.GetExpireTime().AsTime()
	} else {
		me, err := c.Auth.WhoAmI(ctx, &v1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		x.User = me.GetName()
	}
	cfg.Put(x)
	cfg.Current = name
	if err := cfg.Save(path); err != nil {
		return err
	}
	a.say("Logged in to https://%s as %s; context %s is used from now on.", server, x.User, name)
	return nil
}

// trust finds out which CA to believe for a server: that of --ca, that of --fingerprint, the one that was trusted before, or after a
// question the one that the manager shows.
func (a *App) trust(ctx context.Context, cfg *client.Config, server, fingerprint string) (*pki.Trust, error) {
	file := a.global.ca
	if file == "" {
		file = a.Getenv(envCA)
	}
	switch {
	case file != "" && fingerprint != "":
		return nil, usage("give --ca or --fingerprint, not both")
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, usage("--ca: %v", err)
		}
		return pki.ParseTrust(b)
	case fingerprint != "":
		want, err := client.ParseFingerprint(fingerprint)
		if err != nil {
			return nil, usageError{err: err}
		}
		t, err := client.Meet(ctx, server, func(got pki.Fingerprint) error {
			if !got.Equal(want) {
				return &failure{code: exitDenied, err: fmt.Errorf("the manager at %s has the CA %s, not %s", server, got, want), hint: "someone may be in between; nothing was sent"}
			}
			return nil
		})
		return t, met(err)
	}
	if x := cfg.ByServer(server); x != nil && x.CA != "" {
		return pki.ParseTrust([]byte(x.CA))
	}
	t, err := client.Meet(ctx, server, func(got pki.Fingerprint) error {
		a.say("This manager has not been met before. Its certificate authority is\n\n  %s\n\nCompare that with \"drover whoami\" on the manager's machine.", got)
		ok, err := a.yesNo("Is it the same?")
		if err == nil && !ok {
			err = &failure{code: exitDenied, err: fmt.Errorf("the manager at %s is not trusted", server), hint: "give its CA by --fingerprint " + got.String() + " if that is right, or by --ca FILE"}
		}
		return err
	})
	return t, met(err)
}

// met makes a connection that did not come about an error of exit code 7.
func met(err error) error {
	var f *failure
	var op *net.OpError
	var dns *net.DNSError
	if err == nil || errors.As(err, &f) {
		return err
	}
	if errors.As(err, &op) || errors.As(err, &dns) || errors.Is(err, context.DeadlineExceeded) {
		return &failure{code: exitUnavailable, err: err}
	}
	return &failure{code: exitDenied, err: err}
}

func (a *App) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout [CONTEXT]", Short: "End a log-in and forget it", Args: want("[CONTEXT]"), ValidArgsFunction: a.contextArg, Example: "  drover logout",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, path, err := a.config()
			if err != nil {
				return err
			}
			name := cfg.Current
			if a.global.context != "" {
				name = a.global.context
			}
			if len(args) > 0 {
				name = args[0]
			}
			x := cfg.Find(name)
			if x == nil {
				return &failure{code: exitNotFound, err: fmt.Errorf("there is no context %q", name), hint: "drover context list shows those that there are"}
			}
			end := a.endSession(cmd.Context(), *x)
			cfg.Remove(name)
			if err := cfg.Save(path); err != nil {
				return err
			}
			if end != nil && !isCode(end, connect.CodeUnauthenticated) {
				text, _ := a.told(end)
				a.say("drover: the manager was not told, so the log-in ends there by itself: %s", table.Clean(text))
			}
			a.say("Context %s is forgotten.", name)
			return nil
		},
	}
}

func (a *App) endSession(ctx context.Context, x client.Context) error {
	trust, err := pki.ParseTrust([]byte(x.CA))
	if err != nil {
		return err
	}
	c, err := client.New(client.Target{Server: x.Server, CA: trust, Token: x.Token})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Auth.Logout(ctx, &v1.LogoutRequest{})
	return err
}

func (a *App) contextArg(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	if cfg, _, err := a.config(); err == nil && len(args) == 0 {
		for _, x := range cfg.Contexts {
			out = append(out, x.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// localContext stands for the manager on this machine.
const localContext = "local"

func (a *App) contextCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "context", Short: "Managers that you are logged in to", Example: "  drover context list\n  drover context use berlin"}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Args: want(), ValidArgsFunction: cobra.NoFileCompletions, Example: "  drover context list",
		RunE: func(*cobra.Command, []string) error {
			cfg, _, err := a.config()
			if err != nil {
				return err
			}
			t := &table.Table{Headers: []string{"", "NAME", "SERVER", "USER", "EXPIRES IN"}}
			row := func(name, server, user, expires string) {
				mark := " "
				if name == cfg.Current || name == localContext && cfg.Current == "" {
					mark = "*"
				}
				t.Add(table.Text(mark), table.Text(name), table.Text(server), table.Text(user), table.Text(expires))
			}
			row(localContext, "the socket of this machine", "", "")
			for _, x := range cfg.Contexts {
				expires := ""
				if !x.Expires.IsZero() {
					expires = unit.Span(x.Expires.Sub(a.now()))
				}
				row(x.Name, "https://"+x.Server, x.User, expires)
			}
			t.Headers[0] = " "
			return t.Write(a.Out, a.coloured(a.Out))
		},
	}
	use := &cobra.Command{
		Use: "use CONTEXT", Short: "Use a context from now on; local is the manager on this machine", Args: want("CONTEXT"), ValidArgsFunction: a.contextArg, Example: "  drover context use berlin\n  drover context use local",
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, path, err := a.config()
			if err != nil {
				return err
			}
			cfg.Current = args[0]
			if args[0] == localContext {
				cfg.Current = ""
			} else if cfg.Find(args[0]) == nil {
				return &failure{code: exitNotFound, err: fmt.Errorf("there is no context %q", args[0]), hint: "drover context list shows those that there are"}
			}
			return cfg.Save(path)
		},
	}
	cmd.AddCommand(list, use)
	return cmd
}
