package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// stateVersion is that of state.json; see load.
const stateVersion = 1

// state is what state.json holds. It is written before anything is made.
type state struct {
	Version    int      `json:"version"`
	Config     Config   `json:"config"`
	Owner      *Process `json:"owner,omitempty"`
	Incomplete bool     `json:"incomplete"` // Up has not come to its end
}

func labDir(root, name string) string { return filepath.Join(root, name) }
func statePath(dir string) string     { return filepath.Join(dir, "state.json") }
func socketPath(dir string) string    { return filepath.Join(dir, "ctl", "sock") }

// maxSocketPath is sockaddr_un's 108 less the NUL, unix(7).
const maxSocketPath = 107

// load reads the state of a lab; fs.ErrNotExist if there is none.
func load(dir string) (state, error) {
	b, err := os.ReadFile(statePath(dir))
	if err != nil {
		return state{}, fmt.Errorf("lab state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("lab state %s: %w: take the lab down", statePath(dir), err)
	}
	if s.Version != stateVersion {
		return state{}, fmt.Errorf("lab state %s is of version %d, this program's is %d: take the lab down with the program that made it",
			statePath(dir), s.Version, stateVersion)
	}
	return s, nil
}

// writeJSON replaces a file whole.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// sameShape says whether two configs ask for the same lab.
func sameShape(a, b Config) bool {
	strip := func(c Config) []byte {
		c = c.withDefaults()
		c.Owner, c.Daemon, c.WAN = 0, nil, WAN{}
		out, _ := json.Marshal(c) // plain data
		return out
	}
	return bytes.Equal(strip(a), strip(b))
}

// lockLab keeps others from changing the lab, until unlock. The lock file is
// removed by Down, which is why it is looked at again once locked.
func lockLab(ctx context.Context, root, name string) (unlock func(remove bool) error, err error) {
	path := filepath.Join(root, name+".lock")
	for {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return nil, fmt.Errorf("directory of labs: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			continue // the last lab of the root went down just now
		}
		if err != nil {
			return nil, fmt.Errorf("lock lab %s: %w", name, err)
		}
		if err := flock(ctx, f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock lab %s: %w: another command is working on it", name, err)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock lab %s: %w", name, err)
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return func(remove bool) (err error) {
				if remove {
					err = os.Remove(path)
				}
				return errors.Join(err, f.Close())
			}, nil
		}
		f.Close()
	}
}

// flock tries until ctx ends: the kernel offers no wait that can be called off.
func flock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// removeDir removes a state directory, with whatever is mounted in it.
func removeDir(dir string) error {
	mounts, err := mountsUnder(dir)
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		err := unix.Unmount(mounts[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unmount %s: %w", mounts[i], err)
		}
	}
	return os.RemoveAll(dir)
}
