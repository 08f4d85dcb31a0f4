package qemu

import (
	"context"
	"fmt"
	"os"
	"time"

	"drover/internal/qmp"
)

// unlimited is more bytes per second than any disk takes; QEMU's default of 128 MiB/s is meant for networks.
const unlimited = int64(1) << 40

// load reads the machine's memory from a file.
func (p *Process) load(ctx context.Context, f *os.File) error {
	if err := p.qmp.GetFD(ctx, "memory", f); err != nil {
		return fmt.Errorf("pass saved memory: %w", err)
	}
	return p.migration(ctx, "load memory", func() error { return p.qmp.MigrateIncoming(ctx, "fd:memory") })
}

// save writes the memory of the stopped machine to a file.
func (p *Process) save(ctx context.Context, f *os.File) error {
	if err := p.qmp.MigrateSetParameters(ctx, map[string]any{"max-bandwidth": unlimited}); err != nil {
		return err
	}
	if err := p.qmp.GetFD(ctx, "memory", f); err != nil {
		return fmt.Errorf("pass file for memory: %w", err)
	}
	err := p.migration(ctx, "save memory", func() error { return p.qmp.Migrate(ctx, "fd:memory") })
	if err == nil {
		err = p.finalized(ctx)
	}
	if err != nil && ctx.Err() != nil {
		// Leave no migration behind: it would hold the file and refuse the next one.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoGrace)
		defer cancel()
		if cerr := p.migration(stop, "cancel", func() error { return p.qmp.MigrateCancel(stop) }); cerr != nil {
			p.log.Debug("cancelled saving of memory", "err", cerr)
		}
	}
	return err
}

// migration runs begin and waits for the end of what it began.
func (p *Process) migration(ctx context.Context, what string, begin func() error) error {
	if err := p.qmp.MigrateSetCapabilities(ctx, qmp.Capability{Name: "events", State: true}); err != nil {
		return err
	}
	sub := p.qmp.Subscribe(0, qmp.EventMigration)
	defer sub.Close()
	if err := begin(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for {
		info, err := p.qmp.QueryMigrate(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		switch info.Status {
		case qmp.MigrationCompleted:
			return nil
		case qmp.MigrationFailed, qmp.MigrationCancelled:
			return fmt.Errorf("%s: %s: %s", what, info.Status, info.Error)
		}
		if _, err := sub.Next(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// finalized waits until a migration that is over has let go of the machine: QEMU says that it is completed, or
// cancelled, a moment before cont is allowed again (migration_iteration_finish), and has no event for that moment.
func (p *Process) finalized(ctx context.Context) error {
	for {
		st, err := p.qmp.QueryStatus(ctx)
		if err != nil || st.Status != "finish-migrate" {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of a migration: %w", ctx.Err())
		}
	}
}

// undoGrace is how long steps back may take when the caller's context has ended.
const undoGrace = 10 * time.Second
