package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/manifest"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/durationpb"
)

// secret asks for something that must not be seen, or reads it from standard input when that is no terminal.
func (a *App) secret(prompt string) (string, error) {
	if f, ok := terminal(a.In); ok {
		fmt.Fprint(a.Err, prompt+": ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.Err)
		return string(b), err
	}
	return a.line()
}

// maxLine bounds a line of standard input.
const maxLine = 64 << 10

// line reads one line of standard input, and nothing beyond it.
func (a *App) line() (string, error) {
	var b strings.Builder
	one := make([]byte, 1)
	for b.Len() < maxLine {
		n, err := a.In.Read(one)
		if n == 1 && one[0] == '\n' {
			break
		}
		if n == 1 {
			b.WriteByte(one[0])
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return strings.TrimRight(b.String(), "\r"), nil
}

// yesNo asks a question of a person at the terminal.
func (a *App) yesNo(question string) (bool, error) {
	f, ok := terminal(a.In)
	if !ok {
		return false, nil
	}
	fmt.Fprint(a.Err, question+" [y/N] ")
	s, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	s = strings.ToLower(strings.TrimSpace(s))
	return s == "y" || s == "yes", nil
}

func (a *App) userCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "user", Short: "People who may log in", Example: "  drover user create alice --role operator\n  drover user password alice"}
	var roles []string
	var display string
	var given bool
	mk := &cobra.Command{
		Use: "create NAME", Short: "Create a user", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Create a user. A password is made up and printed once, unless --password asks for one, on the terminal or from standard input.",
		Example: "  drover user create alice --role operator --display-name 'Alice A.'",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.CreateUserRequest{User: &v1.User{Meta: &v1.Meta{Name: args[0]}, Spec: &v1.UserSpec{DisplayName: display, Roles: roles}}}
			if given {
				var err error
				if req.Password, err = a.secret("Password for " + args[0]); err != nil {
					return err
				}
			}
			res, err := c.Auth.CreateUser(ctx, req)
			if err != nil {
				return err
			}
			if !a.people() {
				return manifest.JSON(a.Out, "", res)
			}
			if err := a.printDone(userKind(), res.GetUser(), "created"); err != nil || given {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "password: %s\n", res.GetPassword())
			return err
		}),
	}
	mk.Flags().StringSliceVar(&roles, "role", []string{"viewer"}, "admin, operator or viewer (repeatable)")
	mk.Flags().StringVar(&display, "display-name", "", "name for people")
	mk.Flags().BoolVar(&given, "password", false, "ask for the password instead of making one up")
	register(mk, "role", words("admin", "operator", "viewer"))
	mk.Flags().VarP(&choice{to: &a.output, of: []string{"table", "json"}}, "output", "o", "how to print: table, json")
	pw := &cobra.Command{
		Use: "password [NAME]", Short: "Change a password, one's own or as an administrator another's", Args: want("[NAME]"), ValidArgsFunction: a.firstArg(userKind()),
		Long:    "Change a password. The old one (for oneself) and the new one are asked for, or read as lines of standard input.",
		Example: "  drover user password\n  drover user password alice",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			me, err := c.Auth.WhoAmI(ctx, &v1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			req := &v1.SetPasswordRequest{}
			if len(args) > 0 {
				req.Name = args[0]
			}
			if me.GetKind() == "local" && req.Name == "" {
				return usage("say whose password: over the socket you are not a user of Drover")
			}
			if me.GetKind() != "local" && (req.Name == "" || req.Name == me.GetName()) {
				if req.OldPassword, err = a.secret("Old password"); err != nil {
					return err
				}
			}
			if req.NewPassword, err = a.secret("New password"); err != nil {
				return err
			}
			if _, tty := terminal(a.In); tty {
				again, err := a.secret("New password again")
				if err != nil {
					return err
				}
				if again != req.NewPassword {
					return usage("the two are not the same")
				}
			}
			if _, err := c.Auth.SetPassword(ctx, req); err != nil {
				return err
			}
			a.say("The password is changed; sessions and tokens of before are void.")
			return nil
		}),
	}
	cmd.AddCommand(mk, pw, a.listCommand(userKind(), "user"), a.showCommand(userKind()), a.rmCommand(userKind(), "Delete users; their tokens end with them", ""))
	return cmd
}

func (a *App) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Tokens for tools, and log-ins", Example: "  drover token create ci --scope write --lifetime 720h\n  drover token list"}
	var scopes []string
	var lifetime time.Duration
	var description string
	mk := &cobra.Command{
		Use: "create NAME", Short: "Create a token for a tool and print its secret once", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Create an API token that acts for you, within its scopes. Its secret is printed once; give it to tools in " + envToken + ", or as \"Authorization: Bearer …\".",
		Example: "  drover token create ci --scope write --lifetime 720h\n  drover token create prometheus --scope metrics",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.CreateTokenRequest{Name: args[0], Description: description, Scopes: scopes}
			if lifetime != 0 {
				req.Lifetime = durationpb.New(lifetime)
			}
			res, err := c.Auth.CreateToken(ctx, req)
			if err != nil {
				return err
			}
			if !a.people() {
				return manifest.JSON(a.Out, "", res)
			}
			a.say("token/%s created, expires in %s; this is shown once:", res.GetToken().GetMeta().GetName(), unit.Span(res.GetToken().GetSpec().GetExpireTime().AsTime().Sub(a.now())))
			_, err = fmt.Fprintln(a.Out, res.GetSecret())
			return err
		}),
	}
	mk.Flags().StringSliceVar(&scopes, "scope", []string{"read"}, "read, write, admin or metrics (repeatable)")
	mk.Flags().DurationVar(&lifetime, "lifetime", 0, "how long it is good (default 90 days, at most 2 years)")
	mk.Flags().StringVar(&description, "description", "", "what it is for")
	register(mk, "scope", words("read", "write", "admin", "metrics"))
	mk.Flags().VarP(&choice{to: &a.output, of: []string{"table", "json"}}, "output", "o", "how to print: table, json")
	cmd.AddCommand(mk, a.listCommand(tokenKind(), "token"), a.rmCommand(tokenKind(), "End tokens and log-ins at once", ""))
	return cmd
}

func (a *App) whoamiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "whoami", Short: "Who the manager takes you for, and which manager that is", Args: want(), ValidArgsFunction: cobra.NoFileCompletions, Example: "  drover whoami",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			me, err := c.Auth.WhoAmI(ctx, &v1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			switch a.output {
			case "json":
				return manifest.JSON(a.Out, "", me)
			case "yaml":
				return manifest.YAML(a.Out, "", me)
			case "name":
				_, err := fmt.Fprintln(a.Out, me.GetName())
				return err
			}
			info, err := c.Manager.GetInfo(ctx, &v1.InfoRequest{})
			if err != nil {
				return err
			}
			for _, row := range [][2]string{
				{"Name", me.GetName()}, {"Known by", me.GetKind()}, {"From", me.GetSource()}, {"Roles", strings.Join(me.GetRoles(), ", ")}, {"Scopes", strings.Join(me.GetScopes(), ", ")},
				{"Manager", c.Target.String()}, {"Version", info.GetVersion()}, {"Cluster", info.GetClusterUid()}, {"CA", info.GetCaFingerprint()},
				{"State", info.GetState()}, {"Up", unit.Age(a.now(), info.GetStartTime())}, {"Hosts", fmt.Sprint(info.GetHosts())}, {"VMs", fmt.Sprint(info.GetVms())},
			} {
				if row[1] == "" {
					continue
				}
				if _, err := fmt.Fprintf(a.Out, "%-10s %s\n", row[0]+":", table.Clean(row[1])); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	a.outputFlag(cmd)
	return cmd
}
