package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/unwind"

	"golang.org/x/sys/unix"
)

// namespaceDir is where iproute2 keeps namespaces by name; see ip-netns(8).
const namespaceDir = "/run/netns"

// Namespace is a named network namespace.
type Namespace struct {
	Name  string
	Inode uint64 // 0 when only the file is left of it
}

func namespacePath(name string) string { return filepath.Join(namespaceDir, name) }

func checkNamespaceName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 200 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("network namespace name %q: want 1 to 200 bytes without a slash", name)
	}
	return nil
}

// CreateNamespace makes a namespace of that name, with its loopback up. One that
// exists already is kept as it is. "ip netns" sees it.
func CreateNamespace(u *unwind.Stack, name string) error {
	if err := checkNamespaceName(name); err != nil {
		return err
	}
	if err := shareNamespaceDir(); err != nil {
		return err
	}
	path := namespacePath(name)
	switch ino, err := namespaceInode(path); {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case ino != 0:
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f.Close()
	u.Push("delete network namespace "+name, func(context.Context) error { return DeleteNamespace(name) })
	err = onThread(func() error {
		old, err := os.Open(threadNamespace())
		if err != nil {
			return err
		}
		defer old.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		mountErr := unix.Mount(threadNamespace(), path, "", unix.MS_BIND, "")
		if err := unix.Setns(int(old.Fd()), unix.CLONE_NEWNET); err != nil {
			return errors.Join(mountErr, errStuck, err)
		}
		return mountErr
	})
	if err == nil {
		err = loopbackUp(name)
	}
	if err != nil {
		err = fmt.Errorf("create network namespace %s: %w", name, err)
		if u == nil {
			err = errors.Join(err, DeleteNamespace(name))
		}
	}
	return err
}

func loopbackUp(name string) error {
	n, err := Open(name)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.SetUp("lo", true)
}

func threadNamespace() string {
	return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
}

// shareNamespaceDir makes /run/netns a shared mount, as "ip netns add" does: a
// delete then reaches the copies of the mount in other mount namespaces, which
// would keep the namespace alive.
func shareNamespaceDir() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return fmt.Errorf("directory of network namespaces: %w", err)
	}
	share := func() error { return unix.Mount("", namespaceDir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(namespaceDir, namespaceDir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("share mount %s: %w", namespaceDir, err)
	}
	return nil
}

// namespaceInode is 0 for a file that no namespace is mounted on.
func namespaceInode(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// DeleteNamespace removes the name. The namespace itself, with its links, goes
// when the last process or open handle in it is gone. One that does not exist is
// no error.
func DeleteNamespace(name string) error {
	if err := checkNamespaceName(name); err != nil {
		return err
	}
	path := namespacePath(name)
	for { // mounts can be stacked, if two created the same name at once
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// Namespaces lists named namespaces whose name begins with prefix, also the
// leftovers of ones half made or half deleted.
func Namespaces(prefix string) ([]Namespace, error) {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []Namespace
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		ino, err := namespaceInode(namespacePath(e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list network namespaces: %w", err)
		}
		out = append(out, Namespace{e.Name(), ino})
	}
	return out, nil
}
