package host

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
)

// stores are the datastores of this host: its own, those of the command line, and those that the manager names. Each
// is opened when it is first needed, and kept.
type stores struct {
	a *agent

	mu   sync.Mutex
	open map[string]*disk.Store // by path
}

// ownStore is the directory of the host's own datastore, in the state directory.
const ownStore = "datastore"

func openStores(a *agent) (*stores, error) {
	s := &stores{a: a, open: map[string]*disk.Store{}}
	_, err := s.at(s.ownPath())
	return s, err
}

func (s *stores) ownPath() string { return filepath.Join(s.a.cfg.StateDir, ownStore) }

// ownName is what the host's own datastore is called; names are unique in the whole installation.
func (s *stores) ownName() string { return s.a.id.Host + "-local" }

// at opens the datastore in a directory.
func (s *stores) at(path string) (*disk.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.open[path]; st != nil {
		return st, nil
	}
	if path != s.ownPath() {
		if err := s.apart(path); err != nil {
			return nil, err
		}
		// A directory that isn't there is most likely not mounted: making it would fill the wrong file system.
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("datastore directory %s is not there: mount or make it", path)
		}
	}
	st, err := disk.Open(path, disk.Options{Log: s.a.log})
	if err != nil {
		return nil, err
	}
	s.open[path] = st
	return st, nil
}

// apart refuses a directory inside the agent's own, or inside another datastore: each would sweep what is the other's.
func (s *stores) apart(path string) error {
	real := func(p string) string {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return r
		}
		return filepath.Clean(p)
	}
	path = real(path)
	others := append(slices.Collect(maps.Keys(s.open)), s.a.cfg.StateDir, s.a.cfg.RunDir, s.a.cfg.ShmDir)
	for _, o := range others {
		if o == "" {
			continue
		}
		if rel, err := filepath.Rel(real(o), path); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("datastore directory %s is inside %s, which is in use already: use a directory of its own", path, o)
		}
	}
	return nil
}

// opened are the datastores that are in use.
func (s *stores) opened() []*disk.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.open))
}

func (s *stores) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.open {
		errs = append(errs, st.Close())
	}
	return errors.Join(errs...)
}

// paths are the datastores by name.
func (s *stores) paths() map[string]string {
	out := map[string]string{s.ownName(): s.ownPath()}
	for _, d := range s.a.cfg.Datastores {
		out[d.Name] = d.Path
	}
	for _, d := range s.a.world.allDatastores() {
		out[d.GetMeta().GetName()] = d.GetSpec().GetPath()
	}
	return out
}

// path finds a datastore by name; empty is the host's own.
func (s *stores) path(name string) (string, error) {
	if name == "" {
		return s.ownPath(), nil
	}
	p, ok := s.paths()[name]
	if !ok {
		return "", notYet("datastore %s: the manager has not told of it, and no --datastore names it", name)
	}
	return p, nil
}

// nameOf is the name of the datastore at a path.
func (s *stores) nameOf(path string) string {
	for n, p := range s.paths() {
		if p == path {
			return n
		}
	}
	return ""
}

// report is the state of all datastores.
func (s *stores) report() []*v1.DatastoreReport {
	var out []*v1.DatastoreReport
	for name, path := range s.paths() {
		out = append(out, &v1.DatastoreReport{Name: name, Path: path, Status: s.status(name, path)})
	}
	slices.SortFunc(out, func(a, b *v1.DatastoreReport) int { return compare(a.GetName(), b.GetName()) })
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// grain is what sizes are rounded to, so that a report is not news each time a byte is written.
const grain = 16 << 20

func (s *stores) status(name, path string) *v1.DatastoreStatus {
	st := &v1.DatastoreStatus{ObservedGeneration: s.a.world.datastore(name).GetMeta().GetGeneration()}
	store, err := s.at(path)
	if err != nil {
		st.Message = err.Error()
		return st
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		st.Message = (&os.PathError{Op: "measure", Path: path, Err: err}).Error()
		return st
	}
	st.Ready = true
	st.CapacityBytes = int64(fs.Blocks) * fs.Bsize
	st.FreeBytes = int64(fs.Bavail) * fs.Bsize
	if st.FreeBytes > 4*grain {
		st.FreeBytes -= st.FreeBytes % grain
	}
	st.Filesystem = filesystem(fs.Type)
	st.Reflink = fs.Type == unix.BTRFS_SUPER_MAGIC || fs.Type == unix.XFS_SUPER_MAGIC || fs.Type == 0xca451a4e
	for _, vm := range store.VMs() {
		disks, err := store.Disks(vm)
		if err != nil {
			st.Message = err.Error()
			continue
		}
		for _, l := range disks {
			st.ProvisionedBytes += l.Size
		}
	}
	return st
}

// filesystem names the kernel's magic numbers (statfs(2)).
func filesystem(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case 0x2fc12fc1:
		return "zfs"
	case 0xca451a4e:
		return "bcachefs"
	}
	return fmt.Sprintf("%#x", magic)
}

// free is how many bytes a directory's file system has for us.
func free(path string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, &os.PathError{Op: "measure", Path: path, Err: err}
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
