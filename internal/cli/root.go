package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Main runs one command line, args without the program's name, and returns the exit code. SIGINT and SIGTERM end the
// command's context; a second one ends the process.
func (a *App) Main(ctx context.Context, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := a.New()
	root.SetArgs(args)
	_, err := root.ExecuteContextC(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err != nil && ctx.Err() != nil && exitOf(err) != exitInterrupted && errors.Is(err, context.Canceled) {
		err = context.Canceled
	}
	return a.report(err)
}

// Groups of commands in the help of the program.
const (
	groupRole   = "role"
	groupObject = "object"
	groupMany   = "many"
	groupPeople = "people"
)

// New builds the command tree.
func (a *App) New() *cobra.Command {
	a.defaults()
	root := &cobra.Command{
		Use:   "drover",
		Short: "Run virtual machines on KVM, on one host or on many in several sites",
		Long: `Drover runs, moves, guards, backs up and upgrades virtual machines.

"drover up" makes this machine a manager and a host in one. All other commands talk to a manager: to the one
on this machine over its socket, or to one that you logged in to.`,
		Example: `  drover up                                  # manager and host on this machine
  drover image build tiny
  drover vm create hello --kernel tiny --memory 128M --start
  drover vm console hello
  drover top`,
		SilenceErrors: true, SilenceUsage: true,
		Version: a.Version,
		Args:    a.noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetVersionTemplate("drover {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{err, cmd} })
	root.AddGroup(
		&cobra.Group{ID: groupRole, Title: "Roles of this machine:"},
		&cobra.Group{ID: groupObject, Title: "Objects:"},
		&cobra.Group{ID: groupMany, Title: "Many objects at once:"},
		&cobra.Group{ID: groupPeople, Title: "People and access:"},
	)
	root.CompletionOptions.DisableDefaultCmd = true
	f := root.PersistentFlags()
	f.StringVar(&a.global.context, "context", "", "log-in to use, by name ("+envContext+")")
	f.StringVar(&a.global.socket, "socket", "", "Unix socket of the manager on this machine ("+envSocket+")")
	f.StringVar(&a.global.server, "server", "", "manager to talk to, https://HOST:PORT ("+envServer+"; token in "+envToken+")")
	f.StringVar(&a.global.ca, "ca", "", "PEM `file` of the CA of that manager ("+envCA+")")
	f.StringVar(&a.global.colour, "color", "auto", "colours: auto, always or never")
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupRole, a.upCommand(), a.managerCommand(), a.hostCommand())
	add(groupObject, a.vmCommand(), a.snapshotCommand(), a.siteCommand(), a.datastoreCommand(), a.networkCommand(),
		a.profileCommand(), a.portCommand(), a.switchCommand(),
		a.repositoryCommand(), a.backupCommand(), a.restoreCommand(), a.policyCommand(),
		a.imageCommand(), a.taskCommand(), a.eventCommand(), a.metricsCommand())
	add(groupMany, a.applyCommand(), a.getCommand(), a.deleteCommand(), a.topCommand())
	add(groupPeople, a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.contextCommand(), a.userCommand(), a.tokenCommand(), a.auditCommand())
	root.AddCommand(a.versionCommand(), a.completionCommand(), &cobra.Command{Use: "exit-codes", Short: "Exit codes of all commands", Long: exitHelp})
	for _, more := range a.More {
		c := more(a)
		if c.GroupID == "" {
			c.GroupID = groupRole
		}
		root.AddCommand(c)
	}
	a.finish(root)
	return root
}

// finish makes mistakes in arguments usage errors, and sorts out what a command with subcommands does by itself.
func (a *App) finish(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			err := args(cmd, given)
			var use usageError
			if err == nil || errors.As(err, &use) {
				return err
			}
			return usageError{err, cmd}
		}
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = a.noSuchCommand
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.DisableFlagsInUseLine = true
	for _, c := range cmd.Commands() {
		a.finish(c)
	}
}

func (a *App) noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("there is no command %q", args[0])
	if path := shortPath(cmd); path != "" {
		text = path + ": " + text
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{errors.New(text), cmd}
}

// shortPath is a command's path without the program.
func shortPath(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.CommandPath(), " ")
	return rest
}

// want checks the number of arguments and names the missing one. Names in brackets may be left out; one with dots takes many.
func want(names ...string) cobra.PositionalArgs {
	least, most := 0, len(names)
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
		if strings.HasSuffix(strings.Trim(n, "[]"), "…") {
			most = -1
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usageError{fmt.Errorf("%s: %s is missing", shortPath(cmd), names[len(args)]), cmd}
		case most >= 0 && len(args) > most:
			return usageError{fmt.Errorf("%s: %q is one argument too many", shortPath(cmd), args[most]), cmd}
		}
		return nil
	}
}

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Version of this program", Args: want(), Example: "  drover version",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.Out, "drover %s\n", a.Version)
			return err
		},
	}
}
