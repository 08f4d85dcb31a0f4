package cli

import (
	"drover/internal/host"

	"github.com/spf13/cobra"
)

// defaultVaultState is apart from that of a host with VMs: a machine may be both for a while.
const defaultVaultState = "/var/lib/drover/repositories"

func (a *App) repositoryServeCommand() *cobra.Command {
	f := hostFlags{cfg: host.Config{RepositoriesOnly: true}}
	var l logFlags
	cmd := &cobra.Command{
		Use: "serve", Short: "Be a host that serves repositories and runs no VMs", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Serve repositories on this machine until SIGTERM or SIGINT: as a host of the installation on which no VM is ever placed. It needs neither QEMU nor KVM, and no more rights than
its state directory and the repositories' directories ask for. The first start needs a token, from "drover host token" on the manager; repositories are then made
by "drover repository create NAME --host THIS". After a restart it opens them again by itself.`,
		Example: "  drover repository serve --join TOKEN\n  drover repository serve --join @/root/token --state /srv/drover --listen 10.0.0.5:7444\n  drover repository create east --host vault1 --location /srv/backup",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			cfg.Log, cfg.Version, cfg.Tunnel = l.logger(a.Err), a.Version, nil
			return ended(cmd.Context(), host.Run(cmd.Context(), cfg))
		},
	}
	f.addCommon(cmd, defaultVaultState, "directory for the machine's identity, the repositories' keys and indexes")
	l.add(cmd)
	return cmd
}
