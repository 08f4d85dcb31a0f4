package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/disk/sandbox"
)

// Errors that callers branch on.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrBusy     = errors.New("busy")
	ErrChecksum = errors.New("checksum mismatch")
)

// InUseError names who holds on to what was to be deleted.
type InUseError struct {
	What  string
	Users []string // "vm UID"
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is in use by %s; delete them first, or make full clones of them", e.What, strings.Join(e.Users, ", "))
}

// MaxDepth is how many layers a chain may have.
const MaxDepth = 64

// Options tune a Store. The zero value is usable.
type Options struct {
	Box  sandbox.Box
	Log  *slog.Logger
	Keep time.Duration // how long a cut image fetch is kept; 0 means a week

	step func(string) // tests kill the process here
}

// Store is an open datastore. One process has it at a time; Close releases it.
type Store struct {
	root *os.Root
	lock *os.File
	opt  Options

	cross *gate // references between VMs and to images

	mu     sync.Mutex
	vms    map[string]*manifest // what is on disk; replaced, never changed
	broken map[string]error     // VMs whose manifest can't be read
	gates  map[string]*gate
}

// gate is a mutex that a context can stop waiting for.
type gate struct{ c chan struct{} }

func newGate() *gate { return &gate{make(chan struct{}, 1)} }

func (g *gate) enter(ctx context.Context) error {
	select {
	case g.c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gate) leave() { <-g.c }

// Open makes or opens the datastore in dir, and sweeps what a killed process left there.
func Open(dir string, opt Options) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Keep == 0 {
		opt.Keep = 7 * 24 * time.Hour
	}
	if opt.step == nil {
		opt.step = func(string) {}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open datastore %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open datastore: %w", err)
	}
	lock, err := claim(root)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open datastore %s: %w", dir, err)
	}
	s := &Store{root: root, lock: lock, opt: opt, cross: newGate(),
		vms: map[string]*manifest{}, broken: map[string]error{}, gates: map[string]*gate{}}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.Close()
		return nil, fmt.Errorf("open datastore %s: it is in use by another process (%w)", dir, err)
	}
	if err := s.sweep(time.Now()); err != nil {
		s.Close()
		return nil, fmt.Errorf("open datastore %s: %w", dir, err)
	}
	return s, nil
}

// claim makes a directory a datastore, or finds that it is one, and returns its lock file. A directory of somebody else's
// that has one of a datastore's names in it is refused: what is in tmp and vms would be swept. The lock file is made first,
// and vms next, so that a claim that was cut off can be told from a foreign directory.
func claim(root *os.Root) (lock *os.File, err error) {
	there := func(name string) bool {
		_, err := root.Lstat(name)
		return !errors.Is(err, os.ErrNotExist)
	}
	parts := []string{"vms", "images", "tmp"}
	if !there(".lock") || !there("vms") {
		if i := slices.IndexFunc(parts, there); i >= 0 {
			return nil, fmt.Errorf("%w: it has %q in it and is no datastore; use an empty directory", ErrInvalid, parts[i])
		}
	}
	if lock, err = root.OpenFile(".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	for _, d := range parts {
		if err := root.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(err, lock.Close())
		}
	}
	self, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := errors.Join(self.Sync(), self.Close()); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Close releases the datastore. No operation may be under way.
func (s *Store) Close() error { return errors.Join(s.lock.Close(), s.root.Close()) }

func (s *Store) step(name string) { s.opt.step(name) }

func vmDir(vm string) string { return "vms/" + vm }

func (s *Store) list(dir string) ([]fs.DirEntry, error) {
	d, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

// sweep loads the manifests and removes the files that none of them knows.
func (s *Store) sweep(now time.Time) error {
	tmp, err := s.list("tmp")
	if err != nil {
		return err
	}
	for _, e := range tmp {
		st, err := e.Info()
		if err != nil || strings.HasSuffix(e.Name(), ".part") && now.Sub(st.ModTime()) < s.opt.Keep {
			continue
		}
		if err := s.root.RemoveAll("tmp/" + e.Name()); err != nil {
			return err
		}
	}
	vms, err := s.list("vms")
	if err != nil {
		return err
	}
	for _, e := range vms {
		vm := e.Name()
		if !idPattern.MatchString(vm) || !e.IsDir() {
			s.opt.Log.Warn("datastore: not Drover's, left alone", "path", vmDir(vm))
			continue
		}
		m, err := s.load(vm)
		switch {
		case errors.Is(err, os.ErrNotExist):
			// Never finished, or half deleted: a VM exists from its manifest on.
			s.opt.Log.Info("datastore: removing an unfinished VM directory", "vm", vm)
			if err := s.root.RemoveAll(vmDir(vm)); err != nil {
				return err
			}
		case err != nil:
			s.opt.Log.Error("datastore: unreadable manifest; its files are kept", "vm", vm, "error", err)
			s.broken[vm] = err
		default:
			s.vms[vm] = m
			if err := s.sweepVM(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepVM removes the files of ours that the manifest doesn't know.
func (s *Store) sweepVM(m *manifest) error {
	entries, err := s.list(vmDir(m.VM))
	if err != nil {
		return err
	}
	known := m.files()
	for _, e := range entries {
		name := e.Name()
		ours := filePattern.MatchString(name) || memPattern.MatchString(name) || name == manifestName+".new"
		if known[name] || !ours {
			continue
		}
		s.opt.Log.Info("datastore: removing an orphan", "vm", m.VM, "file", name)
		if err := s.root.Remove(vmDir(m.VM) + "/" + name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// drop removes the files that the saved manifest m no longer knows.
func (s *Store) drop(m *manifest) error {
	s.step("before drop")
	if err := s.sweepVM(m); err != nil {
		return fmt.Errorf("remove old layers of VM %s: %w; they go at the next start", m.VM, err)
	}
	s.step("dropped")
	return nil
}

// begin holds the VMs' operation gates, in one order for everybody, until the returned function is called.
func (s *Store) begin(ctx context.Context, vms ...string) (func(), error) {
	vms = slices.Compact(slices.Sorted(slices.Values(vms)))
	var held []*gate
	release := func() {
		for _, g := range held {
			g.leave()
		}
	}
	for _, vm := range vms {
		s.mu.Lock()
		g := s.gates[vm]
		if g == nil {
			g = newGate()
			s.gates[vm] = g
		}
		s.mu.Unlock()
		if err := g.enter(ctx); err != nil {
			release()
			return nil, fmt.Errorf("wait for another operation on VM %s: %w", vm, err)
		}
		held = append(held, g)
	}
	return release, nil
}

// manifest returns a copy to work on.
func (s *Store) manifest(vm string) (*manifest, error) {
	if err := checkID("vm", vm); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.broken[vm]; err != nil {
		return nil, fmt.Errorf("the layers of VM %s can't be read (%w); restore %s from a backup", vm, err, manifestName)
	}
	m := s.vms[vm]
	if m == nil {
		return nil, fmt.Errorf("vm %s has no disks in this datastore: %w", vm, ErrNotFound)
	}
	return m.clone(), nil
}

// outside tells which of the VM's layers other VMs hold, and who. It fails rather than miss one.
func (s *Store) outside(vm string) (map[string][]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, err := range s.broken {
		return nil, fmt.Errorf("can't tell who uses the layers of VM %s: those of VM %s can't be read: %w", vm, b, err)
	}
	held := make(map[string][]string)
	for name, m := range s.vms {
		if name == vm {
			continue
		}
		for _, l := range m.Layers {
			if l.Parent != nil && l.Parent.VM == vm && !slices.Contains(held[l.Parent.Layer], "vm "+name) {
				held[l.Parent.Layer] = append(held[l.Parent.Layer], "vm "+name)
			}
		}
	}
	return held, nil
}

// VMs lists those with disks here, also unreadable ones.
func (s *Store) VMs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for vm := range s.vms {
		out = append(out, vm)
	}
	for vm := range s.broken {
		out = append(out, vm)
	}
	slices.Sort(out)
	return out
}

// Space is how full a datastore is, in bytes.
type Space struct {
	Total, Free int64 // of the file system; Free is what we may use
	Images, VMs int64 // allocated by ours
}

// Space measures.
func (s *Store) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.lock.Fd()), &st); err != nil {
		return Space{}, fmt.Errorf("measure the datastore: %w", err)
	}
	sp := Space{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}
	for dir, sum := range map[string]*int64{"images": &sp.Images, "vms": &sp.VMs} {
		err := fs.WalkDir(s.root.FS(), dir, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				var fi fs.FileInfo
				if fi, err = e.Info(); err == nil {
					*sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		})
		if err != nil {
			return Space{}, fmt.Errorf("measure the datastore: %w", err)
		}
	}
	return sp, nil
}
