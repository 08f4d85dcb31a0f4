package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/clock"
	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

const (
	daemonName = "daemon"
	// readyEnv tells the daemon that file 3 is a pipe to report on: "ok", or why not.
	readyEnv = "DROVER_LAB_READY"
	readyOK  = "ok"
)

// Daemon carries a lab's WAN and DHCP and answers on its control socket, until ctx
// ends. When the lab's owner is gone, it takes the lab down first. It is the body
// of "drover lab daemon NAME ROOT", which Up starts.
func Daemon(ctx context.Context, root, name string, clk clock.Clock, log *slog.Logger) (err error) {
	report := reporter()
	defer func() { report(err) }()
	dir := labDir(root, name)
	s, err := load(dir)
	if err != nil {
		return err
	}
	log = log.With("lab", name)
	var u unwind.Stack // never committed: it is the way down
	defer u.Undo(ctx, &err)
	lock, err := os.OpenFile(filepath.Join(dir, "daemon.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	u.Push("unlock", func(context.Context) error { return lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lab %s: its daemon runs already: %w", name, err)
	}
	d := &daemon{cfg: s.Config, topo: plan(s.Config), log: log}
	if err := d.start(&u, clk, dir); err != nil {
		return err
	}
	report(nil)
	log.Info("lab daemon serves", "pid", os.Getpid())
	if waitOwner(ctx, s.Owner) {
		log.Info("owner is gone: taking the lab down", "owner", s.Owner.PID)
		u.Undo(ctx, &err)
		return errors.Join(err, Down(ctx, root, name))
	}
	return nil
}

// daemon is what the control API speaks to.
type daemon struct {
	cfg   Config
	topo  Topology
	log   *slog.Logger
	links []*wanLink
	dhcp  []*dhcpServer
}

func (d *daemon) start(u *unwind.Stack, clk clock.Clock, dir string) error {
	seed := uint64(clk.Now().UnixNano())
	for i, wl := range d.topo.Links {
		l, err := newWANLink(d.cfg, d.topo, wl, clk, d.log, seed+uint64(2*i))
		if err != nil {
			return err
		}
		u.Push("close WAN link "+wl.Name, func(context.Context) error { l.close(); return nil })
		d.links = append(d.links, l)
	}
	for _, s := range d.topo.Sites {
		srv, err := newDHCP(d.topo, s, d.cfg.MTU, dir, d.log)
		if err != nil {
			return err
		}
		u.Push("close DHCP of site "+s.Name, func(context.Context) error { return srv.close() })
		d.dhcp = append(d.dhcp, srv)
	}
	return d.serve(u, socketPath(dir))
}

// reporter returns a function that tells Up, once, how the start went.
func reporter() func(error) {
	if os.Getenv(readyEnv) == "" {
		return func(error) {}
	}
	f := os.NewFile(3, "ready")
	return func(err error) {
		if f == nil {
			return
		}
		msg := readyOK
		if err != nil {
			msg = err.Error()
		}
		_, _ = io.WriteString(f, msg) // whoever started us may be gone
		f.Close()
		f = nil
	}
}

// waitOwner waits for the end of ctx, false, or of the owner, true.
func waitOwner(ctx context.Context, owner *Process) bool {
	if owner == nil {
		<-ctx.Done()
		return false
	}
	fd, err := unix.PidfdOpen(owner.PID, 0)
	if err != nil || !owner.alive() {
		if err == nil {
			unix.Close(fd)
		}
		return true
	}
	defer unix.Close(fd)
	return waitExit(ctx, owner.PID, fd) == nil
}

// ensureDaemon starts the daemon unless one answers, and waits until it serves.
func ensureDaemon(ctx context.Context, c Config, dir string) error {
	procs, err := recorded(dir)
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.Name == daemonName && p.alive() {
			if _, err := newLab(c, dir).Status(ctx); err == nil {
				return nil
			}
			if err := kill(ctx, p.PID, p.alive); err != nil {
				return err
			}
		}
	}
	argv := c.Daemon
	if len(argv) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("lab daemon: %w", err)
		}
		argv = []string{self, "lab", "daemon"}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("lab daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], c.Name, c.Root)...)
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w}
	_, err = start(dir, plan(c), nodeCore, daemonName, cmd)
	w.Close()
	if err != nil {
		return err
	}
	// It is to outlive this process; while this one lives, it is reaped.
	go func() { _ = cmd.Wait() }()
	if deadline, ok := ctx.Deadline(); ok {
		err = r.SetReadDeadline(deadline)
	} else {
		err = r.SetReadDeadline(time.Now().Add(killTimeout))
	}
	if err != nil {
		return fmt.Errorf("lab daemon: %w", err)
	}
	msg, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err == nil && string(msg) != readyOK {
		err = errors.New(strings.TrimSpace(string(msg)))
		if len(msg) == 0 {
			err = errors.New("it ended without a word")
		}
	}
	if err != nil {
		return fmt.Errorf("lab daemon did not start: %w (log: %s)", err, tail(filepath.Join(dir, daemonName+".log")))
	}
	return nil
}

// tail is the end of a log that is about to be removed.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// MaybeDaemon is for TestMain and the like: if this process was started as a lab's
// daemon ("lab daemon NAME ROOT"), it is one and does not return.
func MaybeDaemon() {
	a := os.Args
	if len(a) != 5 || a[1] != "lab" || a[2] != "daemon" {
		return
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := Daemon(ctx, a[4], a[3], clock.Real(), log)
	stop()
	if err != nil {
		log.Error("lab daemon ended", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}
