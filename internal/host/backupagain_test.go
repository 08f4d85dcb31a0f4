package host_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
)

// rotten is a repository in which the pages of some points are damaged: what is written against one of them fails in the end.
type rotten struct {
	*backuptest.Memory
	points map[string]bool
}

func (r rotten) Begin(ctx context.Context, o backup.SessionOptions) (backup.Session, error) {
	s, err := r.Memory.Begin(ctx, o)
	return rottenSession{s, r}, err
}

type rottenSession struct {
	backup.Session
	r rotten
}

func (s rottenSession) Disk(ctx context.Context, o backup.DiskOptions) (backup.DiskWriter, error) {
	w, err := s.Session.Disk(ctx, o)
	if s.r.points[o.ParentPoint] || s.r.points["any"] {
		return rottenWriter{w}, err
	}
	return w, err
}

type rottenWriter struct{ backup.DiskWriter }

func (rottenWriter) Finish(context.Context) (r backup.DiskResult, err error) {
	return r, fmt.Errorf("a page in pack 77: %w", backup.ErrDamaged)
}

// A parent that is damaged costs a full read, and not the backup.
func TestParentDamaged(t *testing.T) {
	b := newBench(t)
	memory := &backuptest.Memory{}
	bad := map[string]bool{}
	b.vault = rotten{memory, bad}
	b.tiny()
	b.start()
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, random("vda", 1, 2048))
	b.mustBackup(uid, 1, 0)
	bad[hexID(1)] = true
	b.sh(uid, 1, random("vdb", 3, 64))
	p := b.mustBackup(uid, 2, 1)
	if !strings.Contains(p.Full, "damaged") || !strings.Contains(p.Full, hexID(1)) || p.Parent != "" || p.Read < 2112<<10 {
		t.Errorf("full %q, parent %q, read %d KiB of 2112", p.Full, p.Parent, p.Read>>10)
	}
	b.awaitEvent("BACKUP_PARENT_DAMAGED", boot)
	b.same(uid, 2, bothDisks)
	// Changes are tracked from the new point on.
	b.sh(uid, 1, random("vda", 9, 64))
	if p := b.mustBackup(uid, 3, 2); p.Full != "" || p.Read > 192<<10 {
		t.Errorf("the one after: full %q, read %d KiB", p.Full, p.Read>>10)
	}
	b.same(uid, 3, bothDisks)
	// What fails without the parent, too, says so.
	bad[hexID(3)], bad["any"] = true, true
	_, err := b.backup(uid, &v1.NodeBackupRequest{Point: hexID(4), Parent: hexID(3)})
	if err == nil || !strings.Contains(err.Error(), "without point "+hexID(3)) || !strings.Contains(err.Error(), "pack 77") {
		t.Errorf("all is damaged: %v", err)
	}
}
