package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"

	"github.com/spf13/cobra"
)

// completeTimeout bounds how long a shell waits at the Tab key.
const completeTimeout = 2 * time.Second

// names completes the names of a kind that begin with what is typed. What goes wrong is silence: a shell has no place for errors.
func (a *App) names(k *kind, filter string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(ctx, completeTimeout)
		defer cancel()
		c, err := a.api()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		items, _, err := k.all(ctx, c, &v1.ListRequest{Filter: filter}, 1000)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, o := range items {
			if n := o.GetMeta().GetName(); strings.HasPrefix(n, typed) {
				out = append(out, n)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// firstArg completes the first argument only.
func (a *App) firstArg(k *kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(k, "")(cmd, args, typed)
	}
}

// everyArg completes any number of different names.
func (a *App) everyArg(k *kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		all, d := a.names(k, "")(cmd, args, typed)
		given := map[string]bool{}
		for _, x := range args {
			given[x] = true
		}
		var out []cobra.Completion
		for _, n := range all {
			if !given[n] {
				out = append(out, n)
			}
		}
		return out, d
	}
}

// partArg completes a VM, then the parts of kind k of that VM.
func (a *App) partArg(k *kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return a.names(vmKind(), "")(cmd, args, typed)
		case 1:
			prefix := args[0] + "/"
			all, d := a.names(k, "")(cmd, args, prefix+typed)
			for i := range all {
				all[i] = strings.TrimPrefix(all[i], prefix)
			}
			return all, d
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// words completes from a fixed set.
func words(of ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(of, cobra.ShellCompDirectiveNoFileComp)
}

func (a *App) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Write the script that completes commands, flags and names in a shell",
		Long: `Write a shell's completion script. Names of objects are asked from the manager as you press Tab.

  bash:  source <(drover completion bash)                     in ~/.bashrc
  zsh:   drover completion zsh > "${fpath[1]}/_drover"
  fish:  drover completion fish > ~/.config/fish/completions/drover.fish`,
		Example: "  source <(drover completion bash)",
		Args:    want("SHELL"), ValidArgsFunction: words("bash", "zsh", "fish"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			}
			return usageError{fmt.Errorf("shell %q: there are bash, zsh and fish", args[0]), cmd}
		},
	}
}
