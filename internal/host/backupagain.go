package host

import (
	"context"
	"errors"
	"fmt"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
)

// runAgain is run, and once more without the parent if that is damaged in the repository: then all is read, and what can't be read there is stored anew.
func (m *machine) runAgain(ctx context.Context, req *v1.NodeBackupRequest, repo backup.Repository, tell func(*v1.NodeBackupProgress)) (backup.Point, error) {
	j := &backupJob{m: m, req: req, repo: repo, tell: tell}
	p, err := j.run(ctx)
	if !errors.Is(err, backup.ErrDamaged) || j.parent == nil || ctx.Err() != nil {
		return p, err
	}
	m.event(v1.Severity_SEVERITY_WARNING, "BACKUP_PARENT_DAMAGED", fmt.Sprintf("restore point %s in repository %s is damaged: %v; all is read, and written without it; a scrub tells what else is affected",
		req.GetParent(), req.GetTarget().GetVault().GetRepository(), err))
	tell(&v1.NodeBackupProgress{Step: "point " + req.GetParent() + " is damaged in the repository: reading all"})
	again := clone(req)
	again.Parent = ""
	j = &backupJob{m: m, req: again, repo: repo, tell: tell, damaged: req.GetParent()}
	if p, err = j.run(ctx); err != nil {
		return p, fmt.Errorf("without point %s, which is damaged in the repository: %w", req.GetParent(), err)
	}
	return p, nil
}
