package vswitch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// systemBPF is where every machine that has a bpffs has it.
const systemBPF = "/sys/fs/bpf"

// MountBPF returns a bpffs: /sys/fs/bpf if that is one or can be made one, else a private one below dir. Calling it again finds what the first call made.
// The mount outlives the process, and with it everything that is pinned in it. It is made in the mount namespace of the caller: a service whose mount
// namespace goes with it would lose the pins.
func MountBPF(dir string) (string, error) { return mountBPF(systemBPF, filepath.Join(dir, "bpf")) }

func mountBPF(system, private string) (string, error) {
	if isBPF(system) == nil {
		return system, nil
	}
	// One that an earlier call made stays ours: pins are in it.
	if isBPF(private) == nil {
		return private, nil
	}
	sysErr := mount(system)
	if sysErr == nil {
		return system, nil
	}
	if err := os.MkdirAll(private, 0o700); err != nil {
		return "", fmt.Errorf("place for a bpffs: %w", err)
	}
	if err := mount(private); err != nil {
		return "", fmt.Errorf("mount a bpffs: %w", errors.Join(sysErr, err))
	}
	return private, nil
}

// mount mounts a bpffs on a directory, unless somebody did so meanwhile: a second one would hide what is pinned in the first. Whoever mounts holds a lock
// on the directory below.
func mount(at string) error {
	below, err := os.Open(at)
	if err != nil {
		return fmt.Errorf("place for a bpffs: %w", err)
	}
	defer below.Close()
	for {
		err := unix.Flock(int(below.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s to mount a bpffs there: %w", at, err)
		}
	}
	if isBPF(at) == nil {
		return nil
	}
	if err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs at %s: %w", at, err)
	}
	return nil
}

// isBPF is nil if path is in a bpffs.
func isBPF(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is in no bpffs: mount one (mount -t bpf bpf %s)", path, systemBPF)
	}
	return nil
}

// Supported says whether this kernel has what the datapath needs: tcx (Linux 6.6), ring buffers and bpf_loop. It wraps ErrUnsupported if not.
func Supported() error {
	for _, probe := range []struct {
		what string
		err  error
	}{
		{"programs for traffic control", features.HaveProgramType(ebpf.SchedCLS)},
		{"ring buffers (Linux 5.8)", features.HaveMapType(ebpf.RingBuf)},
		{"batch operations on maps (Linux 5.6)", batchSupported()},
		{"tcx links (Linux 6.6)", tcxSupported()},
	} {
		if errors.Is(probe.err, ebpf.ErrNotSupported) {
			return fmt.Errorf("%w: it lacks %s; Drover's switch needs Linux 6.6 or later", ErrUnsupported, probe.what)
		}
		if probe.err != nil {
			return fmt.Errorf("vswitch: ask the kernel for %s: %w", probe.what, probe.err)
		}
	}
	return nil
}

// tcxSupported asks for the programs of the loopback device, which every namespace has as its first.
func tcxSupported() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) { // an attach type that the kernel doesn't know
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func batchSupported() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return err
	}
	defer m.Close()
	if _, err := m.BatchUpdate([]uint32{1}, []uint32{1}, nil); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}
