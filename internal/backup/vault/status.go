package vault

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
)

// Status tells how a repository is. One that is served here but can't be opened has a phase that says so.
func (v *Vaults) Status(ctx context.Context, req *v1.VaultStatusRequest) (*v1.VaultStatusResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	st, revision, err := v.status(ctx, req.GetRepository())
	if err != nil {
		return nil, err
	}
	return &v1.VaultStatusResponse{Status: st, Revision: revision}, nil
}

func (v *Vaults) status(ctx context.Context, name string) (*v1.RepositoryStatus, int64, error) {
	x, local, done, err := v.use(name)
	if err != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		x := v.vaults[name]
		if x == nil || x.wrong == nil {
			return nil, 0, err
		}
		return &v1.RepositoryStatus{Phase: phaseOf(x.wrong), Message: x.wrong.Error()}, 0, nil
	}
	defer done()
	r := local.Chunks()
	if err := r.Refresh(ctx); err != nil {
		return &v1.RepositoryStatus{Phase: phaseOf(err), Message: err.Error()}, 0, nil
	}
	l := r.Load()
	hash, _ := r.IDKey()
	st := &v1.RepositoryStatus{
		Phase: v1.RepositoryPhase_REPOSITORY_PHASE_READY, Id: r.ID(),
		Format:      &v1.RepositoryFormat{BlockSize: int32(r.BlockSize()), Unencrypted: !r.Encrypted(), Parity: r.Parity(), Sha256: hash == "sha256"},
		UniqueBytes: l.Raw, StoredBytes: l.Stored, ReclaimableBytes: l.Condemned, DamagedPacks: int32(l.Damaged), Sessions: int32(l.Sessions),
	}
	vms := map[string]bool{}
	var last time.Time
	for _, p := range r.Points() {
		if len(p.GetDisks()) == 0 {
			continue // a file that belongs to a point
		}
		st.Points++
		st.LogicalBytes += p.GetLogical()
		vms[p.GetVmUid()] = true
		if t := p.GetTime().AsTime(); t.After(last) {
			last = t
		}
	}
	st.Vms = int32(len(vms))
	if !last.IsZero() {
		st.LastBackup = timestamppb.New(last)
	}
	if l.Raw > 0 {
		st.DedupeRatio = float64(st.LogicalBytes) / float64(l.Raw)
	}
	if l.Stored > 0 {
		st.CompressionRatio = float64(l.Raw) / float64(l.Stored)
	}
	v.mu.Lock()
	store := x.store
	v.mu.Unlock()
	// The log tells it, so that it is known after a restart, and also what others did.
	st.LastCollect, st.LastScrub = l.Marks["collect"].GetTime(), l.Marks["scrub"].GetTime()
	if l.Damaged > 0 {
		st.Affected = l.Marks["scrub"].GetAffected()
	}
	if store != nil {
		if total, free, ok, err := store.Space(ctx); err != nil {
			st.Phase, st.Message = v1.RepositoryPhase_REPOSITORY_PHASE_UNREACHABLE, err.Error()
		} else if ok {
			st.CapacityBytes, st.FreeBytes = total, free
		}
	}
	if l.Damaged > 0 {
		st.Phase, st.Message = v1.RepositoryPhase_REPOSITORY_PHASE_DAMAGED, "packs are damaged: run a scrub, and back up what it names"
	}
	return st, r.Revision(), nil
}

func phaseOf(err error) v1.RepositoryPhase {
	switch {
	case errors.Is(err, chunkstore.ErrWrongKey):
		return v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED
	case errors.Is(err, chunkstore.ErrDamaged):
		return v1.RepositoryPhase_REPOSITORY_PHASE_DAMAGED
	case errors.Is(err, chunkstore.ErrForeign), errors.Is(err, chunkstore.ErrNewer):
		return v1.RepositoryPhase_REPOSITORY_PHASE_FAILED
	}
	return v1.RepositoryPhase_REPOSITORY_PHASE_UNREACHABLE
}

func storedBytes(ctx context.Context, local *backup.Local) (int64, error) {
	if err := local.Chunks().Refresh(ctx); err != nil {
		return 0, err
	}
	return local.Chunks().Load().Stored, nil
}
