package vault

import (
	"context"
	"fmt"
	"sync/atomic"

	"drover/internal/backup"
	"drover/internal/blob"
)

// roomToCopy says for each block whether a copy may go on. The log learns of packs when they are full: until then what this copy has sent counts.
func (v *Vaults) roomToCopy(ctx context.Context, x *vault, local *backup.Local) func(context.Context, int64) error {
	stored, err := storedBytes(ctx, local)
	var sent atomic.Int64
	return func(ctx context.Context, n int64) error {
		if err != nil {
			return told(x.name, err)
		}
		if limit := v.specOf(x).GetQuotaBytes(); limit > 0 && stored+sent.Add(n) > limit {
			return told(x.name, fmt.Errorf("%w: it has reached its quota of %d bytes; what was copied stays, and is not copied again", blob.ErrFull, limit))
		}
		return v.room(ctx, x, local, n)
	}
}
