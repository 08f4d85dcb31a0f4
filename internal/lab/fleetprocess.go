package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/accel"
	"drover/internal/clock"
	"drover/internal/host"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// start starts what does not run, and waits until all of it works.
func (f *Fleet) start(ctx context.Context, say func(string)) error {
	say("manager")
	if err := f.startManager(ctx); err != nil {
		return err
	}
	if err := f.records(ctx); err != nil {
		return err
	}
	say(fmt.Sprintf("%d hosts", len(f.hostNames())))
	probed, err := probeMachine(ctx)
	if err != nil {
		return err
	}
	for _, h := range f.hostNames() {
		if err := f.startHost(ctx, h, probed); err != nil {
			return err
		}
	}
	return f.AwaitHosts(ctx)
}

// alive reports whether a node's process runs.
func (f *Fleet) alive(node string) (Process, bool) {
	procs, err := f.Processes()
	i := slices.IndexFunc(procs, func(p Process) bool { return p.Name == node })
	if err != nil || i < 0 {
		return Process{}, false
	}
	return procs[i], true
}

// spawn starts a role on its node.
func (f *Fleet) spawn(node string, args ...string) error {
	argv := append(slices.Clone(f.cfg.Drover), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	if _, err := f.Start(node, node, cmd); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it outlives this process; while this one lives, it is reaped
	return nil
}

func (f *Fleet) startManager(ctx context.Context) error {
	n, err := f.topo.Node(nodeManager)
	if err != nil {
		return err
	}
	if _, ok := f.alive(nodeManager); !ok {
		state := f.StateDir(nodeManager)
		if err := os.MkdirAll(state, 0o700); err != nil {
			return err
		}
		args := []string{"manager", "--state", state, "--listen", net.JoinHostPort(n.Address.Addr().String(), managerPort), "--socket", f.Socket()}
		if f.cfg.HostTimeout != 0 {
			args = append(args, "--host-timeout", f.cfg.HostTimeout.String())
		}
		if err := f.spawn(nodeManager, args...); err != nil {
			return err
		}
	}
	return f.AwaitManager(ctx)
}

// AwaitManager waits until the manager answers.
func (f *Fleet) AwaitManager(ctx context.Context) error {
	err := retry(ctx, func() error {
		_, err := f.API.Manager.GetInfo(ctx, &v1.InfoRequest{})
		if err != nil && ctx.Err() == nil {
			if _, ok := f.alive(nodeManager); !ok {
				return nil
			}
		}
		return err
	})
	if _, ok := f.alive(nodeManager); !ok {
		err = errors.New("it ended")
	}
	if err != nil {
		return fmt.Errorf("the manager does not answer: %w (log: %s)", err, tail(f.LogPath(nodeManager)))
	}
	return nil
}

// LogPath is the log of the manager, of a host's agent, or of the lab's daemon.
func (l *Lab) LogPath(process string) string { return filepath.Join(l.dir, process+".log") }

// records makes the sites and the network that are missing.
func (f *Fleet) records(ctx context.Context) error {
	var prefixes []string
	for _, s := range f.topo.Sites {
		prefixes = append(prefixes, s.Guests.String())
		_, err := f.API.Site.Create(ctx, &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: s.Name}, Spec: &v1.SiteSpec{Description: "site of lab " + f.Name()}}})
		if err := existing(err); err != nil {
			return fmt.Errorf("create site %s: %w", s.Name, err)
		}
	}
	_, err := f.API.Network.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{
		Meta: &v1.Meta{Name: NetworkName},
		Spec: &v1.NetworkSpec{Description: "guests of lab " + f.Name(), Mtu: int32(f.Lab.cfg.MTU), Prefixes: prefixes, Physical: &v1.PhysicalSegment{}},
	}})
	if err := existing(err); err != nil {
		return fmt.Errorf("create network %s: %w", NetworkName, err)
	}
	return nil
}

func existing(err error) error {
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		return nil
	}
	return err
}

func (f *Fleet) startHost(ctx context.Context, name string, probed *accel.Result) error {
	if _, ok := f.alive(name); ok {
		return nil
	}
	n, err := f.topo.Node(name)
	if err != nil {
		return err
	}
	m, err := f.topo.Node(nodeManager)
	if err != nil {
		return err
	}
	state, run := f.StateDir(name), f.RunDir(name)
	if err := errors.Join(os.MkdirAll(state, 0o700), os.MkdirAll(run, 0o711)); err != nil {
		return err
	}
	args := []string{"host", "--manager", net.JoinHostPort(m.Address.Addr().String(), managerPort), "--state", state, "--run", run,
		"--listen", net.JoinHostPort(n.Address.Addr().String(), agentPort)}
	for _, u := range n.Uplinks {
		args = append(args, "--uplink", u)
	}
	for _, store := range slices.Sorted(maps.Keys(f.cfg.Datastores[name])) {
		args = append(args, "--datastore", store+"="+f.cfg.Datastores[name][store])
	}
	if probed != nil {
		r := *probed
		if boot := f.bootID(name); boot != "" {
			r.BootID = boot
			args = append(args, "--boot-id", boot)
		}
		if err := host.TellAccelerator(state, &r); err != nil {
			return err
		}
	}
	if !host.Joined(state) {
		t, err := f.API.Host.CreateJoinToken(ctx, &v1.CreateJoinTokenRequest{Host: name, Site: n.Site})
		if err != nil {
			return fmt.Errorf("join token for host %s: %w", name, err)
		}
		// Arguments can be read by everybody.
		file := filepath.Join(state, "join")
		if err := os.WriteFile(file, []byte(t.GetToken()), 0o600); err != nil {
			return err
		}
		args = append(args, "--join", "@"+file)
	}
	return f.spawn(name, args...)
}

// AwaitHosts waits until every host is ready.
func (f *Fleet) AwaitHosts(ctx context.Context) error {
	want := f.hostNames()
	ready := map[string]bool{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// An agent that ends says so nowhere but in its log.
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		_ = retry(ctx, func() error {
			for _, h := range want {
				if _, ok := f.alive(h); !ok {
					cancel(fmt.Errorf("the agent of host %s ended (log: %s)", h, tail(f.LogPath(h))))
				}
			}
			return errPending
		})
	}()
	err := follow(ctx, f.API.Host.Watch, &v1.WatchRequest{}, func(c *v1.HostChange) bool {
		h := c.GetHost()
		ready[h.GetMeta().GetName()] = h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY && c.GetKind() != v1.ChangeKind_CHANGE_KIND_DELETED
		return !slices.ContainsFunc(want, func(n string) bool { return !ready[n] })
	})
	if err != nil {
		missing := slices.DeleteFunc(slices.Clone(want), func(n string) bool { return ready[n] })
		err = fmt.Errorf("hosts %v are not ready: %w", missing, errors.Join(context.Cause(ctx), err))
	}
	cancel(nil)
	<-watch
	return err
}

// errPending makes retry go on.
var errPending = errors.New("not yet")

// follow reads a watch until done says so. A broken stream, as by a killed manager, is begun anew.
func follow[Q, M any](ctx context.Context, watch func(context.Context, *Q) (*connect.ServerStreamForClient[M], error), req *Q, done func(*M) bool) error {
	return retry(ctx, func() error {
		s, err := watch(ctx, req)
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
			if done(s.Msg()) {
				return nil
			}
		}
		return errors.Join(errPending, s.Err())
	})
}

// Kill ends the process of the manager or of a host's agent as a crash would, and waits for its end.
func (f *Fleet) Kill(ctx context.Context, node string) error {
	p, ok := f.alive(node)
	if !ok {
		return nil
	}
	return kill(ctx, p.PID, p.alive)
}

// Stop asks the process of the manager or of a host's agent to end, and waits for it.
func (f *Fleet) Stop(ctx context.Context, node string) error {
	p, ok := f.alive(node)
	if !ok {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil || !p.alive() {
		return nil // it ended just now
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop %s: %w", node, err)
	}
	return waitExit(ctx, p.PID, fd)
}

// Revive starts the manager's or a host's process if it does not run. It waits for the manager, not for a host.
func (f *Fleet) Revive(ctx context.Context, node string) error {
	if node == nodeManager {
		return f.startManager(ctx)
	}
	probed, err := probeMachine(ctx)
	if err != nil {
		return err
	}
	return f.startHost(ctx, node, probed)
}

// bootFile keeps a host's pretended boot.
func (f *Fleet) bootFile(name string) string { return filepath.Join(f.dir, "boot-"+name) }

func (f *Fleet) bootID(name string) string {
	b, err := os.ReadFile(f.bootFile(name))
	if err != nil {
		return ""
	}
	return string(b)
}

// Crash does to a host what a power cut does: agent and QEMUs end at once, and what is not on disk is gone. The next
// Revive is its next boot.
func (f *Fleet) Crash(ctx context.Context, name string) error {
	if err := f.Kill(ctx, name); err != nil {
		return err
	}
	n, err := f.Net(name)
	if err != nil {
		return err
	}
	defer n.Close()
	inode, err := n.Inode()
	if err != nil {
		return err
	}
	if err := killIn(ctx, map[uint64]bool{inode: true}); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(f.RunDir(name)), removeHostTraces(ctx, f.StateDir(name))); err != nil {
		return err
	}
	links, err := n.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Mark.Kind != "lab" && l.Name != "lo" {
			err = errors.Join(err, n.Delete(l.Name, l.Mark))
		}
	}
	return errors.Join(err, os.WriteFile(f.bootFile(name), []byte("lab-"+fmt.Sprint(clock.Real().Now().UnixNano())), 0o600))
}

// removeHostTraces removes what a host leaves outside of its directories. Nothing of it runs any more.
func removeHostTraces(ctx context.Context, state string) error {
	shm, cgroup, pins := host.Traces(state)
	err := errors.Join(os.RemoveAll(shm), os.RemoveAll(pins))
	if cgroup != "" {
		err = errors.Join(err, removeCgroup(ctx, cgroup))
	}
	return err
}

// probeMachine finds the accelerator once for all hosts: they are one machine. The result is kept over labs.
func probeMachine(ctx context.Context) (*accel.Result, error) {
	boot, err := accel.BootID()
	if err != nil {
		return nil, err
	}
	version, err := accel.Version(ctx, "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return host.Probe(ctx, slog.New(slog.DiscardHandler))
	}
	path := filepath.Join(dir, "drover", "accelerator.json")
	r := new(accel.Result)
	err = readJSON(path, r)
	if err == nil && r.Current(boot, version) {
		return r, nil
	}
	if r, err = host.Probe(ctx, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := writeJSON(path, r); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return r, nil
}
