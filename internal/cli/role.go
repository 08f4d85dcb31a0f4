package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/host"
	"drover/internal/httpapi"
	"drover/internal/manager"
	"drover/internal/vswitch/tunnel"

	"github.com/spf13/cobra"
)

// defaultHostState is where an agent keeps what must survive.
const defaultHostState = "/var/lib/drover/host"

// logFlags say how a role writes its log.
type logFlags struct{ format, level string }

func (f *logFlags) add(cmd *cobra.Command) {
	f.format, f.level = "text", "info"
	cmd.Flags().Var(&choice{to: &f.format, of: []string{"text", "json"}}, "log-format", "text or json")
	cmd.Flags().Var(&choice{to: &f.level, of: []string{"debug", "info", "warn", "error"}}, "log-level", "debug, info, warn or error")
}

func (f *logFlags) logger(w io.Writer) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(f.level)); err != nil {
		l = slog.LevelInfo // choice lets only known ones in
	}
	o := &slog.HandlerOptions{Level: l}
	if f.format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// managerFlags are the manager's.
type managerFlags struct {
	cfg manager.Config
}

func (f *managerFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.cfg.StateDir, "state", manager.DefaultState, "directory for all that must not be lost")
	fs.StringVar(&f.cfg.Listen, "listen", manager.DefaultListen, "`address:port` of the API")
	fs.StringSliceVar(&f.cfg.Advertise, "advertise", nil, "addresses and names by which hosts and people reach it (default: this machine's)")
	fs.StringVar(&f.cfg.Socket, "socket", "", "Unix socket (default STATE/manager.sock)")
	fs.StringSliceVar(&f.cfg.Etcd, "etcd", nil, "`endpoints` of an external etcd (default: one inside)")
	fs.StringVar(&f.cfg.EtcdCA, "etcd-ca", "", "PEM `file` for an external etcd over TLS")
	fs.StringVar(&f.cfg.EtcdCert, "etcd-cert", "", "PEM `file` for an external etcd over TLS")
	fs.StringVar(&f.cfg.EtcdKey, "etcd-key", "", "PEM `file` for an external etcd over TLS")
	fs.StringVar(&f.cfg.SMTP.Server, "smtp-server", "", "`host:port` of the server that takes the manager's mail, such as mail.example.org:587 (default: no mail)")
	fs.StringVar(&f.cfg.SMTP.From, "smtp-from", "", "`address` that mail comes from")
	fs.StringVar(&f.cfg.SMTP.User, "smtp-user", "", "user to log in as at the mail server (default: none)")
	fs.StringVar(&f.cfg.SMTP.PasswordFile, "smtp-password-file", "", "`file` with that user's password")
	fs.StringVar(&f.cfg.SMTP.CA, "smtp-ca", "", "PEM `file` of the mail server's CA (default: the system's)")
	fs.BoolVar(&f.cfg.SMTP.Plain, "smtp-plain", false, "send mail also if the server offers no TLS")
	fs.DurationVar(&f.cfg.HostTimeout, "host-timeout", 0, "how long a host may be silent before it is called unreachable (default 15s)")
}

func (a *App) managerCommand() *cobra.Command {
	var f managerFlags
	var l logFlags
	cmd := &cobra.Command{
		Use: "manager", Short: "Be the manager: API, placement, state", Args: a.noSuchCommand,
		Long: `Run the manager until SIGTERM or SIGINT. The first start makes an administrator, whose password is printed once.
VMs run on while the manager is away.`,
		Example: "  drover manager\n  drover manager --state /srv/drover --listen 10.0.0.1:7443 --etcd https://e1:2379,https://e2:2379 --etcd-ca ca.pem",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := f.cfg
			cfg.Logger, cfg.Version = l.logger(a.Err), a.Version
			if err := cfg.Validate(); err != nil {
				return usageError{err, cmd}
			}
			return ended(cmd.Context(), httpapi.Run(cmd.Context(), cfg, a.managerReady))
		},
	}
	f.add(cmd)
	l.add(cmd)
	cmd.AddCommand(a.managerBackupCommand(), a.managerRestoreCommand())
	return cmd
}

// ended makes the end of a role by a signal no error.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// managerReady prints the password that the first start made.
func (a *App) managerReady(m *manager.Manager) {
	if m.FirstPassword != "" {
		fmt.Fprintf(a.Out, "User admin was made. Its password, shown this once:  %s\n", m.FirstPassword)
	}
}

func (a *App) managerBackupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Save all that the manager knows to a file (- is standard output)", Args: want("FILE"),
		Long:    "Save the state and the CA of a running manager: enough to make it anew. Images, disks and history are not in it. The file holds the CA's key: whoever has it can be the manager.",
		Example: "  drover manager backup drover-$(date +%F).tar",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if args[0] == "-" {
				if _, tty := terminal(a.Out); tty {
					return usage("backup -: an archive is not for a terminal; send it to a file")
				}
				return backupTo(ctx, c, a.Out)
			}
			return backupFile(ctx, c, args[0])
		}),
	}
}

func backupTo(ctx context.Context, c *client.Client, w io.Writer) error {
	s, err := c.Manager.Backup(ctx, &v1.BackupStateRequest{})
	return each(s, err, func(m *v1.BackupStateResponse) error {
		_, err := w.Write(m.GetData())
		return err
	})
}

// backupFile writes to a file that is there whole or not at all.
func backupFile(ctx context.Context, c *client.Client, file string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(backupTo(ctx, c, f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (a *App) managerRestoreCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make a manager's state directory from a backup", Args: want("FILE"),
		Long: `Make the state directory of a manager that is gone from a backup; then start it by "drover manager". The directory must be
empty or not there. Hosts find the manager at the address that they know. Images must be imported again.`,
		Example: "  drover manager restore drover-2026-01-31.tar --state /var/lib/drover/manager",
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := manager.Restore(cmd.Context(), args[0], state, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "%s restored from %s, made %s\n", state, args[0], info.Created.Local().Format(time.RFC1123))
			return err
		},
	}
	cmd.Flags().StringVar(&state, "state", manager.DefaultState, "directory to make")
	return cmd
}

// hostFlags are the agent's.
type hostFlags struct {
	cfg        host.Config
	datastores []string
}

// addCommon adds the flags of every agent.
func (f *hostFlags) addCommon(cmd *cobra.Command, state, what string) {
	fs := cmd.Flags()
	fs.StringVar(&f.cfg.Manager, "manager", "", "`address:port` of the manager (default: as the token says; kept from the first start on)")
	fs.StringVar(&f.cfg.JoinToken, "join", "", "one-time `token` of the first start, from \"drover host token\"; @FILE reads it")
	fs.StringVar(&f.cfg.StateDir, "state", state, what)
	fs.StringVar(&f.cfg.RunDir, "run", "", "directory for sockets (default STATE/run)")
	fs.StringVar(&f.cfg.Listen, "listen", ":7444", "`address:port` of the host's own API")
	fs.StringVar(&f.cfg.Advertise, "advertise", "", "`address:port` that the manager calls (default: the address on the way to it)")
	fs.StringVar(&f.cfg.Hostname, "hostname", "", "name to join with when the token names none (default: the machine's)")
}

func (f *hostFlags) add(cmd *cobra.Command) {
	f.addCommon(cmd, defaultHostState, "directory for what must survive a reboot, disks included")
	fs := cmd.Flags()
	fs.StringArrayVar(&f.cfg.Uplinks, "uplink", nil, "`NIC` that VMs' frames leave by: with others the team \"default\", unless the host's record names teams (repeatable)")
	fs.StringVar(&f.cfg.ListenNBD, "listen-nbd", "", "`address:port` where disks of protection points and imports are served over NBD with TLS (default: port 7445 beside --listen)")
	fs.StringVar(&f.cfg.OverlayAddress, "overlay-address", "", "`address` where other hosts reach this one for overlays (default: the address on the way to the manager)")
	fs.StringArrayVar(&f.datastores, "datastore", nil, "one more datastore, `NAME=PATH` (repeatable)")
	fs.StringVar(&f.cfg.QEMU, "qemu", "", "system emulator (default qemu-system-x86_64 in PATH)")
	fs.StringVar(&f.cfg.ShmDir, "shm", "", "directory in a tmpfs for guests' memory (default below /dev/shm)")
	fs.StringVar(&f.cfg.BootID, "boot-id", "", "for tests: stands for the kernel's boot id")
	if err := fs.MarkHidden("boot-id"); err != nil {
		panic("host: no flag boot-id")
	}
}

// config is what the flags say.
func (f *hostFlags) config() (host.Config, error) {
	cfg := f.cfg
	for _, s := range f.datastores {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return cfg, usage("--datastore %q: give NAME=PATH", s)
		}
		cfg.Datastores = append(cfg.Datastores, host.DatastorePath{Name: name, Path: path})
	}
	if file, ok := strings.CutPrefix(cfg.JoinToken, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return cfg, usage("--join: %v", err)
		}
		cfg.JoinToken = strings.TrimSpace(string(b))
	}
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("the drover binary: %w", err)
	}
	cfg.Tunnel = []string{self, "host", tunnelCommand}
	return cfg, nil
}

// tunnelCommand is what an agent starts for encrypted tunnels; it outlives the agent.
const tunnelCommand = "serve-tunnel"

func (a *App) serveTunnelCommand() *cobra.Command {
	var l logFlags
	cmd := &cobra.Command{
		Use: tunnelCommand + " DEVICE SOCKET MTU", Hidden: true, Short: "Serve a host's encrypted tunnel; agents start it", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ended(cmd.Context(), tunnel.Serve(cmd.Context(), args, l.logger(a.Err)))
		},
	}
	l.add(cmd)
	return cmd
}

// needRoot says that a role must be root.
func needRoot() error {
	if os.Geteuid() != 0 {
		return &failure{code: exitPrecondition, err: errors.New("a host's agent must be root: it makes TAP devices, cgroups and users for VMs"), hint: "run it by sudo"}
	}
	return nil
}

// agentGC is how much garbage an agent keeps, in percent of what lives. What it takes, guests do not get, and it has
// little to do: bench/vm measures both.
const agentGC = 25

// spareMemory has the process collect garbage early, unless the environment says how.
func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(agentGC)
	}
}

func (a *App) hostCommand() *cobra.Command {
	var f hostFlags
	var l logFlags
	cmd := &cobra.Command{
		Use: "host", Short: "Be a host: run VMs; and commands about hosts", Args: a.noSuchCommand,
		Long: `Without a subcommand: run the host's agent until SIGTERM or SIGINT. VMs run on while the agent is away, and it takes them over
again when it starts. The first start needs a token, from "drover host token" on the manager.`,
		Example: "  drover host --join TOKEN --uplink eth1\n  drover host --join @/root/token --datastore fast=/srv/fast\n  drover host list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			cfg.Log, cfg.Version = l.logger(a.Err), a.Version
			if err := needRoot(); err != nil {
				return err
			}
			spareMemory()
			return ended(cmd.Context(), host.Run(cmd.Context(), cfg))
		},
	}
	f.add(cmd)
	l.add(cmd)
	cmd.AddCommand(a.hostCommands()...)
	cmd.AddCommand(a.serveTunnelCommand())
	return cmd
}
