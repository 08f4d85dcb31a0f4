package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/cli/client"
)

// FleetConfig says what runs in a lab: a manager and one agent for each host.
type FleetConfig struct {
	Config
	// Drover is the command whose arguments "manager" and "host" are the roles. Empty: this executable.
	Drover []string
	// Datastores are more directories for disks, by host and name.
	Datastores map[string]map[string]string
	// HostTimeout is how long the manager takes a silent host for present; 0: the manager's default.
	HostTimeout time.Duration
	// Progress hears of each step of Start; nil is allowed.
	Progress func(string) `json:"-"`
}

// Fleet is a lab with its processes. Closing it leaves all running.
type Fleet struct {
	*Lab
	// API speaks to the manager over its Unix socket.
	API *client.Client

	cfg FleetConfig
}

// NetworkName is the network that VMs of all sites are on. Sites are routed: it is one segment in each.
const NetworkName = "lan"

const (
	fleetFile     = "fleet.json"
	managerPort   = "7443"
	agentPort     = "7444"
	managerSocket = "manager.sock"
)

// readyTimeout bounds the start of manager and agents, on a machine whose processors are shared.
const readyTimeout = 2 * time.Minute

// DataRoot is where labs under DefaultRoot keep what may get large. Others keep it in their state directories.
const DataRoot = "/var/lib/drover-lab"

// dataDir is where a lab's images, disks and databases are.
func dataDir(root, name string) string {
	if root == DefaultRoot {
		return filepath.Join(DataRoot, name)
	}
	return filepath.Join(labDir(root, name), "data")
}

// DataDir is where the lab's images, disks and databases are. It goes with the lab.
func (l *Lab) DataDir() string { return dataDir(l.cfg.Root, l.cfg.Name) }

// StateDir is the state directory of the manager or of a host.
func (l *Lab) StateDir(node string) string { return filepath.Join(l.DataDir(), node) }

// RunDir is the run directory of a host's agent.
func (l *Lab) RunDir(host string) string { return filepath.Join(l.dir, "run", host) }

// Socket is the manager's, for DROVER_SOCKET.
func (l *Lab) Socket() string { return filepath.Join(l.dir, managerSocket) }

// UpFleet brings up a lab, starts in it what does not run, and waits until every host is ready. It is idempotent, like Up.
func UpFleet(ctx context.Context, c FleetConfig) (*Fleet, error) {
	if len(c.Drover) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("the drover binary: %w", err)
		}
		c.Drover = []string{self}
	}
	say := c.Progress
	if say == nil {
		say = func(string) {}
	}
	say("network: sites, switches, routers, WAN")
	l, err := Up(ctx, c.Config)
	if err != nil {
		return nil, err
	}
	c.Config = l.cfg
	if err := writeJSON(filepath.Join(l.dir, fleetFile), c); err != nil {
		return nil, fmt.Errorf("lab %s: %w", l.Name(), err)
	}
	f, err := newFleet(l, c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := f.start(ctx, say); err != nil {
		f.Close()
		return nil, fmt.Errorf("lab %s: %w", l.Name(), err)
	}
	return f, nil
}

func newFleet(l *Lab, c FleetConfig) (*Fleet, error) {
	api, err := client.New(client.Target{Socket: l.Socket()})
	if err != nil {
		return nil, err
	}
	return &Fleet{Lab: l, API: api, cfg: c}, nil
}

// OpenFleet finds a fleet that was brought up. root is as in Config.
func OpenFleet(root, name string) (*Fleet, error) {
	l, err := Open(root, name)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(l.dir, fleetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s has a network alone, no manager and hosts: run drover lab up --name %s", name, name)
	}
	var c FleetConfig
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return newFleet(l, c)
}

// Close drops connections to the manager.
func (f *Fleet) Close() { f.API.Close() }

// hostNames are the hosts, site by site.
func (f *Fleet) hostNames() []string {
	var out []string
	for _, n := range f.Topology().Hosts("") {
		out = append(out, n.Name)
	}
	return out
}

// removeTraces removes what hosts leave outside of their directories. Nothing of the lab runs any more. It goes by the
// state directories that there are, not by what the lab's state says, which may be lost.
func removeTraces(ctx context.Context, data string) error {
	entries, err := os.ReadDir(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		failed = append(failed, removeHostTraces(ctx, filepath.Join(data, e.Name())))
	}
	return errors.Join(failed...)
}

// removeCgroup removes a cgroup and those in it. Processes in it were killed: the kernel may take a moment to see that
// it is empty.
func removeCgroup(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() && err == nil {
			err = removeCgroup(ctx, filepath.Join(dir, e.Name()))
		}
	}
	if err != nil {
		return err
	}
	return retry(ctx, func() error {
		if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// retry calls try until it succeeds or ctx ends, for what the kernel or another process tells nobody about.
func retry(ctx context.Context, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// firstLine is for errors that are shown in one line.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
