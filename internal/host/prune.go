package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/disk"
)

// prune removes cached images that the manager has no more and no disk stands on, each time it is poked.
func (a *agent) prune(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.pruning:
		}
		if err := a.pruneOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("images that nobody needs could not all be removed", "err", err)
		}
	}
}

func (a *agent) pruneSoon() {
	select {
	case a.pruning <- struct{}{}:
	default:
	}
}

func (a *agent) pruneOnce(ctx context.Context) error {
	known := a.world.imageSums()
	var errs []error
	for _, st := range a.stores.opened() {
		images, err := st.Images()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for name, users := range images {
			sum, _, _ := strings.Cut(name, ".")
			if len(users) > 0 || known[sum] {
				continue
			}
			var used *disk.InUseError
			if err := st.DeleteImage(ctx, name); err != nil && !errors.As(err, &used) {
				errs = append(errs, err)
				continue
			}
			a.log.Info("removed a cached image that the manager has no more", "image", name)
		}
	}
	kernels := filepath.Join(a.cfg.StateDir, "kernels")
	for _, name := range names(kernels) {
		sum, _, _ := strings.Cut(name, ".")
		if known[sum] {
			continue
		}
		done, err := a.flights.enter(ctx, "kernel/"+sum)
		if err != nil {
			return err
		}
		errs = append(errs, os.RemoveAll(filepath.Join(kernels, name)))
		done()
	}
	return errors.Join(errs...)
}
