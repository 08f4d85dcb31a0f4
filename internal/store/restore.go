package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
)

// revisionBump is added on restore, so that no revision that a watcher or a host saw after the backup was made
// ever names a different state.
const revisionBump = 1_000_000_000

// Restore makes dir, which must be missing or empty, the data directory of an embedded server with the state in
// the backup file. It verifies all of the file first and puts dir in place in one rename, so a failure or
// a crash leaves no half of it. Every watch starts anew afterwards.
func Restore(ctx context.Context, file, dir string, log *slog.Logger) (BackupInfo, error) {
	info, err := restore(ctx, file, filepath.Clean(dir), log)
	if err != nil {
		return BackupInfo{}, fmt.Errorf("restore the state from %s to %s: %w", file, dir, err)
	}
	return info, nil
}

func restore(ctx context.Context, file, dir string, log *slog.Logger) (info BackupInfo, err error) {
	switch entries, err := os.ReadDir(dir); {
	case err == nil && len(entries) > 0:
		return info, fmt.Errorf("%w: the directory is not empty; move it away first", ErrExists)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return info, err
	}
	in, err := os.Open(file)
	if err != nil {
		return info, err
	}
	defer in.Close()
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return info, err
	}
	work, err := os.MkdirTemp(parent, ".restore-*")
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	snap, fresh := filepath.Join(work, "snapshot"), filepath.Join(work, "state")
	out, err := os.OpenFile(snap, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return info, err
	}
	info, err = readBackup(in, out)
	if err := errors.Join(err, out.Close()); err != nil {
		return info, err
	}
	if err := ctx.Err(); err != nil {
		return info, err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return info, err
	}
	err = snapshot.NewV3(newZap(log, slog.LevelWarn)).Restore(snapshot.RestoreConfig{
		SnapshotPath:        snap,
		Name:                memberName,
		OutputDataDir:       fresh,
		PeerURLs:            []string{memberPeer},
		InitialCluster:      memberList,
		InitialClusterToken: "drover",
		RevisionBump:        revisionBump,
		MarkCompacted:       true,
	})
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrBadBackup, err)
	}
	if err := syncTree(fresh); err != nil {
		return info, err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return info, err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return info, err
	}
	return info, syncPath(parent)
}

// syncTree makes everything below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
