package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/host"
	"drover/internal/httpapi"
	"drover/internal/manager"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// What "drover up" makes if it isn't there.
const (
	defaultSite    = "default"
	defaultNetwork = "lan"
	innerNetwork   = "inner"
)

// upFlags are manager and host in one.
type upFlags struct {
	state, listen, hostListen, socket, hostname string
	advertise                                   []string
	uplinks                                     []string
	datastores                                  []string
	qemu, shm                                   string
}

func (a *App) upCommand() *cobra.Command {
	var f upFlags
	var l logFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Be manager and host in one, on this machine: the quickest start", Args: want(),
		Long: `Run a manager and a host's agent in one process until SIGTERM or SIGINT. The first start makes a site "default", lets this machine
join it, and prints the administrator's password. VMs get a network "inner", which joins hosts by an overlay, and with --uplink a network "lan", which leaves by
that NIC untagged.
Other machines join later by "drover host". VMs run on when this ends.`,
		Example: "  sudo drover up\n  sudo drover up --uplink eth1\n  sudo drover up --uplink eth1 --uplink eth2 --datastore fast=/srv/fast",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			log := l.logger(a.Err)
			mc := manager.Config{StateDir: filepath.Join(f.state, "manager"), Listen: f.listen, Socket: f.socket, Advertise: f.advertise, Logger: log, Version: a.Version}
			if err := mc.Validate(); err != nil {
				return usageError{err, cmd}
			}
			hc, err := f.host(mc)
			if err != nil {
				return err
			}
			hc.Log, hc.Version = log, a.Version
			return a.up(cmd.Context(), mc, hc)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.state, "state", filepath.Dir(manager.DefaultState), "directory for both, in manager and host below it")
	fs.StringVar(&f.listen, "listen", manager.DefaultListen, "`address:port` of the API")
	fs.StringVar(&f.hostListen, "host-listen", "127.0.0.1:7444", "`address:port` of the host's own API")
	fs.StringVar(&f.socket, "socket", "", "Unix socket of the manager (default STATE/manager/manager.sock)")
	fs.StringSliceVar(&f.advertise, "advertise", nil, "addresses and names by which hosts and people reach the manager (default: this machine's)")
	fs.StringVar(&f.hostname, "hostname", "", "name of the host (default: the machine's)")
	fs.StringArrayVar(&f.uplinks, "uplink", nil, "`NIC` that VMs' frames leave by (repeatable)")
	fs.StringArrayVar(&f.datastores, "datastore", nil, "one more datastore, `NAME=PATH` (repeatable)")
	fs.StringVar(&f.qemu, "qemu", "", "system emulator (default qemu-system-x86_64 in PATH)")
	fs.StringVar(&f.shm, "shm", "", "directory in a tmpfs for guests' memory (default below /dev/shm)")
	l.add(cmd)
	return cmd
}

// host is the configuration of the host beside the manager.
func (f *upFlags) host(m manager.Config) (host.Config, error) {
	h, port, err := net.SplitHostPort(m.Listen)
	if err != nil {
		return host.Config{}, usage("--listen: %v", err)
	}
	if ip := net.ParseIP(h); h == "" || ip != nil && ip.IsUnspecified() {
		h = "127.0.0.1"
	}
	hf := hostFlags{datastores: f.datastores, cfg: host.Config{
		Manager: net.JoinHostPort(h, port), StateDir: filepath.Join(f.state, "host"), Listen: f.hostListen, Hostname: f.hostname, QEMU: f.qemu, ShmDir: f.shm,
	}}
	hf.cfg.Uplinks = f.uplinks
	return hf.config()
}

// up runs both roles until ctx ends or one fails.
func (a *App) up(ctx context.Context, mc manager.Config, hc host.Config) error {
	g, gctx := errgroup.WithContext(ctx)
	ready := make(chan struct{})
	g.Go(func() error {
		return httpapi.Run(gctx, mc, func(m *manager.Manager) {
			a.managerReady(m)
			close(ready)
		})
	})
	g.Go(func() error {
		select {
		case <-ready:
		case <-gctx.Done():
			return nil
		}
		token, err := a.prepare(gctx, mc, hc)
		if err != nil {
			return err
		}
		hc.JoinToken = token
		return host.Run(gctx, hc)
	})
	return ended(ctx, g.Wait())
}

// prepare makes what a first start needs, over the socket like any client, and a join token if this machine hasn't joined.
func (a *App) prepare(ctx context.Context, mc manager.Config, hc host.Config) (token string, err error) {
	c, err := client.New(client.Target{Socket: mc.Socket})
	if err != nil {
		return "", err
	}
	defer c.Close()
	exists := func(err error) error {
		if isCode(err, connect.CodeAlreadyExists) {
			return nil
		}
		return err
	}
	networks := map[string]*v1.NetworkSpec{innerNetwork: {Description: "made by drover up", Overlay: &v1.Overlay{}}}
	if len(hc.Uplinks) > 0 {
		networks[defaultNetwork] = &v1.NetworkSpec{Description: "made by drover up", Physical: &v1.PhysicalSegment{}}
	}
	for name, spec := range networks {
		_, err := c.Network.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: name}, Spec: spec}})
		if exists(err) != nil {
			return "", fmt.Errorf("network %s: %w", name, err)
		}
	}
	a.say("Manager: https://%s and %s", mc.Listen, mc.Socket)
	if mc.StateDir != manager.DefaultState || mc.Socket != filepath.Join(manager.DefaultState, "manager.sock") {
		a.say("Use it: export %s=%s", envSocket, mc.Socket)
	}
	a.say("Try:     drover image build tiny && drover vm create hello --kernel tiny --memory 128M --start && drover vm console hello")
	if host.Joined(hc.StateDir) {
		return "", nil
	}
	_, err = c.Site.Create(ctx, &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: defaultSite}, Spec: &v1.SiteSpec{Description: "made by drover up"}}})
	if exists(err) != nil {
		return "", fmt.Errorf("site %s: %w", defaultSite, err)
	}
	name := hc.Hostname
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return "", err
		}
		name, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	t, err := c.Host.CreateJoinToken(ctx, &v1.CreateJoinTokenRequest{Host: name, Site: defaultSite})
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return t.GetToken(), nil
}
