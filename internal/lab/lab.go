package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/hostnet"
	"drover/internal/unwind"
)

// ErrNotUp says that there is no lab of that name.
var ErrNotUp = errors.New("no such lab: bring it up with drover lab up")

// Lab is a lab that stands. Closing it leaves the lab standing.
type Lab struct {
	cfg  Config
	topo Topology
	dir  string
	http *http.Client // to the daemon
}

// Up builds the lab, or mends one of the same shape that stands already, which
// keeps its owner and its WAN's parameters unless the daemon must be started again.
// When it fails on a lab that it began, nothing is left.
func Up(ctx context.Context, c Config) (_ *Lab, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return nil, fmt.Errorf("lab %s: %w", c.Name, err)
	}
	dir := labDir(c.Root, c.Name)
	if p := socketPath(dir); len(p) > maxSocketPath {
		return nil, fmt.Errorf("lab %s: socket path %s has %d bytes, the kernel takes %d: choose a shorter root", c.Name, p, len(p), maxSocketPath)
	}
	unlock, err := lockLab(ctx, c.Root, c.Name)
	if err != nil {
		return nil, err
	}
	var u unwind.Stack
	defer func() {
		u.Undo(ctx, &err)
		_, none := os.Stat(dir)
		err = errors.Join(err, unlock(none != nil))
	}()
	old, err := load(dir)
	if err == nil && (old.Incomplete || old.Owner != nil && !old.Owner.alive()) {
		// Its maker was killed. What stands may be missing anything, and a daemon may
		// be about to take it down.
		if err := down(ctx, c.Root, c.Name); err != nil {
			return nil, fmt.Errorf("lab %s: remove what a killed up left: %w", c.Name, err)
		}
		old, err = load(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unclaimed(c); err != nil {
			return nil, err
		}
		u.Push("take down lab "+c.Name, func(ctx context.Context) error { return down(ctx, c.Root, c.Name) })
	case err != nil:
		return nil, err
	case !sameShape(old.Config, c):
		return nil, fmt.Errorf("lab %s stands with another configuration: take it down first", c.Name)
	default:
		old.Config.Daemon = c.Daemon
		c = old.Config
	}
	if err := raise(ctx, c, dir, old.Owner, u.Len() > 0); err != nil {
		return nil, fmt.Errorf("lab %s up: %w", c.Name, err)
	}
	u.Commit()
	return newLab(c, dir), nil
}

// raise makes state directory, namespaces and daemon, or what is missing of them if
// the lab is not fresh.
func raise(ctx context.Context, c Config, dir string, owner *Process, fresh bool) error {
	// Processes of any user may have files in their node's directory.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	for _, private := range []string{procDir(dir), filepath.Dir(socketPath(dir))} {
		if err := os.MkdirAll(private, 0o700); err != nil {
			return err
		}
	}
	s := state{Version: stateVersion, Config: c, Owner: owner, Incomplete: fresh}
	if fresh && c.Owner != 0 {
		start, err := startTime(c.Owner)
		if err != nil {
			return fmt.Errorf("owner %d: %w", c.Owner, err)
		}
		s.Owner = &Process{Name: "owner", PID: c.Owner, Start: start}
	}
	if err := writeJSON(statePath(dir), s); err != nil {
		return err
	}
	if err := build(ctx, nil, c, plan(c)); err != nil {
		return err
	}
	if err := ensureDaemon(ctx, c, dir); err != nil {
		return err
	}
	s.Incomplete = false
	return writeJSON(statePath(dir), s)
}

// unclaimed checks that no namespaces of the name exist: they would be of a lab with
// another root, or of one whose state was lost.
func unclaimed(c Config) error {
	list, err := hostnet.Namespaces(namespacePrefix(c.Name))
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("lab %s: namespace %s exists, but no state in %s: take it down, or choose another name", c.Name, list[0].Name, c.Root)
	}
	return nil
}

func newLab(c Config, dir string) *Lab {
	var d net.Dialer
	return &Lab{cfg: c, topo: plan(c), dir: dir, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socketPath(dir))
		},
		DisableKeepAlives: true,
	}}}
}

// Open finds a lab that stands. root is as in Config.
func Open(root, name string) (*Lab, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if root == "" {
		root = DefaultRoot
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	dir := labDir(root, name)
	s, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s in %s: %w", name, root, ErrNotUp)
	}
	if err != nil {
		return nil, err
	}
	return newLab(s.Config, dir), nil
}

// Names lists the labs in a root, standing or half made.
func Names(root string) ([]string, error) {
	if root == "" {
		root = DefaultRoot
	}
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Down takes a lab down whatever state it is in: recorded processes, whatever runs
// in its namespaces, the namespaces, mounts and files. No lab is no error.
func Down(ctx context.Context, root, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if root == "" {
		root = DefaultRoot
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	unlock, err := lockLab(ctx, root, name)
	if err != nil {
		return err
	}
	err = down(ctx, root, name)
	err = errors.Join(err, unlock(true))
	os.Remove(root) // if it was the last; else it stays
	if err != nil {
		return fmt.Errorf("lab %s down: %w", name, err)
	}
	return nil
}

func down(ctx context.Context, root, name string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	dir := labDir(root, name)
	procs, err := recorded(dir)
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.PID == os.Getpid() || !p.alive() {
			continue
		}
		if err := kill(ctx, p.PID, p.alive); err != nil {
			return err
		}
	}
	list, err := hostnet.Namespaces(namespacePrefix(name))
	if err != nil {
		return err
	}
	inodes := map[uint64]bool{}
	for _, ns := range list {
		if ns.Inode != 0 {
			inodes[ns.Inode] = true
		}
	}
	if err := killIn(ctx, inodes); err != nil {
		return err
	}
	var failed []error
	for _, ns := range list {
		failed = append(failed, hostnet.DeleteNamespace(ns.Name))
	}
	data := dataDir(root, name)
	failed = append(failed, removeTraces(ctx, data))
	if err := errors.Join(failed...); err != nil {
		return err // the directories say where the rest is: they stay until it is gone
	}
	if err := removeDir(data); err != nil {
		return err
	}
	os.Remove(DataRoot) // if it was the last; else it stays
	return removeDir(dir)
}

// Sweep takes down the labs in a root whose owner is gone.
func Sweep(ctx context.Context, root string) ([]string, error) {
	if root == "" {
		root = DefaultRoot
	}
	names, err := Names(root)
	if err != nil {
		return nil, err
	}
	var gone []string
	var failed []error
	for _, name := range names {
		s, err := load(labDir(root, name))
		if err != nil || s.Owner == nil || s.Owner.alive() {
			continue // being made or removed just now, or to stay
		}
		if err := Down(ctx, root, name); err != nil {
			failed = append(failed, err)
			continue
		}
		gone = append(gone, name)
	}
	return gone, errors.Join(failed...)
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.cfg.Name }

// Dir is the lab's state directory. What is put there goes with the lab.
func (l *Lab) Dir() string { return l.dir }

// Topology says what the lab consists of.
func (l *Lab) Topology() Topology { return l.topo }

// Down takes the lab down.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.cfg.Root, l.cfg.Name) }

// Net opens the namespace of a node. Close it.
func (l *Lab) Net(node string) (*hostnet.Net, error) {
	n, err := l.topo.Node(node)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", l.cfg.Name, err)
	}
	net, err := hostnet.Open(n.Namespace)
	if errors.Is(err, hostnet.ErrNotFound) {
		err = errors.Join(err, ErrNotUp)
	}
	return net, err
}

// NodeDir is a directory for a node's state, made if it isn't there.
func (l *Lab) NodeDir(node string) (string, error) {
	if _, err := l.topo.Node(node); err != nil {
		return "", err
	}
	dir := filepath.Join(l.dir, "node", strings.ToLower(node))
	return dir, os.MkdirAll(dir, 0o755)
}
