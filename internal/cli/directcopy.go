package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *App) directCopy() *cobra.Command {
	var f, g direct
	var vm string
	var limit bytesFlag
	cmd := &cobra.Command{
		Use: "copy FROM TO [POINT…]", Short: "Copy restore points between repositories, without a manager", Args: want("FROM", "TO", "[POINT…]"),
		Long: `Copy points from one location to another. Only what is missing there is written, and points that are there already are left alone: a copy that was cut off goes on when it is
run again. The block sizes must be equal; passphrases and keys may differ. A directory as FROM may be read-only. S3 flags are for both. ` + directHelp + ` The second has --to-passphrase-file, else the same as the first.`,
		Example: "  drover repository copy /backup /mnt/usb/repo\n  drover repository copy /backup /mnt/usb/repo --vm web\n  drover repository copy /backup s3://offsite/drover 0123456789ab --s3-endpoint s3.example:9000 --s3-access-key drover",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			if vm != "" && len(args) > 2 {
				return usage("repository copy: name points, or give --vm VM")
			}
			g.s3, g.cache = f.s3, f.cache
			if g.pass.file == "" {
				g.pass.file = f.pass.file
			}
			return f.withDirect(ctx, a, args[0], !writable(args[0]), func(from *chunkstore.Repository, l *backup.Local) error {
				return g.withDirect(ctx, a, args[1], false, func(to *chunkstore.Repository, _ *backup.Local) error {
					if from.ID() == to.ID() {
						return usage("repository copy: %s and %s are one repository", args[0], args[1])
					}
					o := chunkstore.CopyOptions{Rate: int64(limit)}
					var err error
					if o.Points, err = chosen(ctx, l, args[2:], vm); err != nil {
						return err
					}
					return a.copyPoints(ctx, from, to, o)
				})
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&g.pass.file, "to-passphrase-file", "", "`file` with the passphrase of the second repository")
	cmd.Flags().StringVar(&vm, "vm", "", "only points of this VM")
	cmd.Flags().Var(&limit, "bandwidth", "most bytes a second that are read (default: no limit)")
	return cmd
}

// chosen finds the points that a copy was asked for, in no order. It is nil for all.
func chosen(ctx context.Context, l *backup.Local, names []string, vm string) ([]chunkstore.PointID, error) {
	if len(names) == 0 && vm == "" {
		return nil, nil
	}
	ids := []chunkstore.PointID{}
	add := func(p backup.Point) error {
		id, err := backup.ParsePointID(p.ID)
		if err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		return err
	}
	for _, name := range names {
		p, err := pointOf(ctx, l, name)
		if err != nil {
			return nil, err
		}
		if err := add(p); err != nil {
			return nil, err
		}
	}
	if vm == "" {
		return ids, nil
	}
	if _, err := pointOf(ctx, l, vm); err != nil {
		return nil, err
	}
	all, err := l.Points(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.VM != vm && p.VMUID != vm {
			continue
		}
		if err := add(p); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (a *App) copyPoints(ctx context.Context, from, to *chunkstore.Repository, o chunkstore.CopyOptions) error {
	began := a.now()
	total := len(o.Points)
	if o.Points == nil {
		total = len(from.Points())
	}
	bar := a.progress("copy points")
	defer bar.end()
	o.Progress = func(res chunkstore.CopyResult) {
		done := res.Points + res.Had + len(res.Failed)
		bar.set(fmt.Sprintf("%d of %d, %s read", done, total, unit.Size(res.Bytes)), float64(done)/float64(max(1, total)))
	}
	res, err := to.Copy(ctx, chunkstore.NewCopySource(from), o)
	bar.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%d points copied, %d were there; %s read, %s stored as %s in %v\n",
		res.Points, res.Had, unit.Size(res.Bytes), unit.Size(res.Stored), unit.Size(res.Packed), a.now().Sub(began).Round(time.Millisecond))
	var errs []error
	for _, x := range res.Failed {
		errs = append(errs, directError(fmt.Errorf("point %s was not copied: %w", x.Point, x.Err)))
	}
	return errors.Join(errs...)
}

// writable reports whether a location can be written to. One that can't is read without telling it, so that a collection there may end the reading.
func writable(location string) bool {
	return strings.Contains(location, "://") || unix.Access(location, unix.W_OK) == nil
}
