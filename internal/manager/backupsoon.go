package manager

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

type scheduler struct{ m *Manager }

func newScheduler(m *Manager) *scheduler { return &scheduler{m: m} }

func (s *scheduler) run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (m *Manager) wakeScheduler() {}

func (m *Manager) showPolicy(p *v1.BackupPolicy) {}

var errSoon = &resource.Error{Code: resource.Unimplemented, Reason: "NOT_YET", Message: "is not there yet"}

// CollectRepository reclaims space now.
func (m *Manager) CollectRepository(context.Context, string) (*v1.Task, error) { return nil, errSoon }

// ScrubRepository reads packs and checks them.
func (m *Manager) ScrubRepository(context.Context, *v1.ScrubRepositoryRequest) (*v1.Task, error) {
	return nil, errSoon
}

// PreviewPolicy tells what will happen.
func (m *Manager) PreviewPolicy(context.Context, *v1.PreviewPolicyRequest) (*v1.PolicyPreview, error) {
	return nil, errSoon
}

// RunPolicy backs up all that a policy covers now.
func (m *Manager) RunPolicy(context.Context, string) (*v1.Task, error) { return nil, errSoon }

// CreateBackup backs up a VM now.
func (m *Manager) CreateBackup(context.Context, *v1.CreateBackupRequest) (*v1.Task, error) {
	return nil, errSoon
}

// CopyPoints copies points to another repository.
func (m *Manager) CopyPoints(context.Context, *v1.CopyPointsRequest) (*v1.Task, error) {
	return nil, errSoon
}

// RestorePoint restores a VM.
func (m *Manager) RestorePoint(context.Context, *v1.RestoreRequest) (*v1.Task, error) {
	return nil, errSoon
}

// TestPoint boots a point.
func (m *Manager) TestPoint(context.Context, *v1.TestPointRequest) (*v1.Task, error) {
	return nil, errSoon
}

// Protection tells how VMs stand.
func (m *Manager) Protection(string) (*v1.ProtectionList, error) { return nil, errSoon }
