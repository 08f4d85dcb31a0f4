package manager

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"drover/internal/store"
)

// A backup of the manager's state is a tar of the CA and of the state store: see docs/formats/state-backup.md.
const (
	backupCA    = "ca.pem"
	backupState = "state.etcd"
)

// Backup writes everything that the manager must not lose but images and history: see docs/formats/state-backup.md.
func (m *Manager) Backup(ctx context.Context, w io.Writer) error {
	ca, err := os.ReadFile(m.cfg.path("pki/ca.pem"))
	if err != nil {
		return fmt.Errorf("back up the CA: %w", err)
	}
	// tar wants to know the size first.
	tmp, err := os.CreateTemp(m.cfg.StateDir, "backup-*")
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	now := m.cfg.Clock.Now()
	if _, err := m.store.Backup(ctx, tmp, now); err != nil {
		return err
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := member(t, backupCA, int64(len(ca)), now); err != nil {
		return err
	}
	if _, err := t.Write(ca); err != nil {
		return err
	}
	if err := member(t, backupState, size, now); err != nil {
		return err
	}
	if _, err := io.Copy(t, io.NewSectionReader(tmp, 0, size)); err != nil {
		return err
	}
	return t.Close()
}

func member(t *tar.Writer, name string, size int64, at time.Time) error {
	return t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: at, Format: tar.FormatUSTAR})
}

// Restore makes a manager's state directory from a backup. The directory must be empty or not there; nothing of it is left if it fails.
func Restore(ctx context.Context, file, dir string, log *slog.Logger) (info store.BackupInfo, err error) {
	f, err := os.Open(file)
	if err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return info, fmt.Errorf("restore into %s: the directory is not empty; move it away first", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, "pki"), 0o700); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, "pki")), os.RemoveAll(filepath.Join(dir, "etcd")))
		}
	}()
	tmp, err := os.CreateTemp(dir, "restore-*")
	if err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := unpackBackup(f, filepath.Join(dir, "pki/ca.pem"), tmp); err != nil {
		return info, fmt.Errorf("restore %s: %w", file, err)
	}
	return store.Restore(ctx, tmp.Name(), filepath.Join(dir, "etcd"), log)
}

// largestCA bounds the first member of a backup, in bytes.
const largestCA = 1 << 20

func unpackBackup(r io.Reader, ca string, state io.Writer) error {
	t := tar.NewReader(r)
	next := func(name string) (*tar.Header, error) {
		h, err := t.Next()
		if err != nil {
			return nil, fmt.Errorf("not a backup of a manager's state, or cut off: %w", err)
		}
		if h.Name != name || h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("not a backup of a manager's state: has %q where %q should be", h.Name, name)
		}
		return h, nil
	}
	h, err := next(backupCA)
	if err != nil {
		return err
	}
	if h.Size > largestCA {
		return fmt.Errorf("the CA has %d bytes", h.Size)
	}
	pem, err := io.ReadAll(t)
	if err != nil {
		return err
	}
	if err := os.WriteFile(ca, pem, 0o600); err != nil {
		return err
	}
	if _, err := next(backupState); err != nil {
		return err
	}
	_, err = io.Copy(state, t)
	return err
}
