package host_test

import (
	"context"
	"strings"
	"testing"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
)

// liar is a repository whose points differ from what was stored in one block.
type liar struct{ *backuptest.Memory }

func (l liar) OpenPoint(ctx context.Context, id string) (backup.PointReader, error) {
	p, err := l.Memory.OpenPoint(ctx, id)
	return liarPoint{p}, err
}

type liarPoint struct{ backup.PointReader }

func (p liarPoint) Disk(ctx context.Context, name string) (backup.DiskReader, error) {
	d, err := p.PointReader.Disk(ctx, name)
	return liarDisk{d}, err
}

type liarDisk struct{ backup.DiskReader }

func (d liarDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := d.DiskReader.ReadAt(ctx, p, off)
	if off == 2<<20 {
		p[17] ^= 1
	}
	return err
}

// An audit that finds a change that nobody tracked fails the backup, tells people, and has the next one read everything.
func TestAuditFindsWrongTracking(t *testing.T) {
	b := newBench(t)
	memory := &backuptest.Memory{}
	b.vault = liar{memory}
	b.tiny()
	b.start()
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, random("vda", 1, 2048))
	b.mustBackup(uid, 1, 0)
	audit := func(r *v1.NodeBackupRequest) { r.AuditShare = 1 }
	req := &v1.NodeBackupRequest{Point: hexID(2), Parent: hexID(1)}
	audit(req)
	if _, err := b.backup(uid, req); err == nil || !strings.Contains(err.Error(), "tracking") {
		t.Errorf("the backup: %v", err)
	}
	b.awaitEvent("BACKUP_TRACKING_WRONG", boot)
	p := b.mustBackup(uid, 2, 1, audit)
	if !strings.Contains(p.Full, "audit") {
		t.Errorf("the next one: full %q", p.Full)
	}
	b.vault = memory
	b.same(uid, 2, bothDisks)
}
