package cli

import (
	"context"
	"fmt"

	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"
	"drover/internal/resource"

	"github.com/spf13/cobra"
)

// named runs a command on a repository that the manager knows by name, or without a manager on one at a location.
func (a *App) named(at func(context.Context, *App, string) error, by func(context.Context, *client.Client, []string) error) func(*cobra.Command, []string) error {
	managed := a.run(by)
	return func(cmd *cobra.Command, args []string) error {
		if isLocation(args[0]) {
			return at(cmd.Context(), a, args[0])
		}
		return managed(cmd, args)
	}
}

func (f *direct) collect(ctx context.Context, a *App, location string) error {
	return f.withDirect(ctx, a, location, false, func(r *chunkstore.Repository, _ *backup.Local) error {
		bar := a.progress("collect " + location)
		res, err := r.Collect(ctx, chunkstore.CollectOptions{})
		bar.end()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.Out, "%d points walked; %d packs dropped, %s freed; %d packs compacted, %s copied; %s stored\n",
			res.Points, res.Dropped, unit.Size(res.Freed), res.Move.Packs, unit.Size(res.Move.Copied), unit.Size(res.Size-res.Freed+res.Move.Made))
		return err
	})
}

func (f *direct) scrub(ctx context.Context, a *App, location string, share float64) error {
	readOnly := !writable(location)
	return f.withDirect(ctx, a, location, readOnly, func(r *chunkstore.Repository, _ *backup.Local) error {
		bar := a.progress("scrub " + location)
		res, err := r.Scrub(ctx, chunkstore.ScrubOptions{Share: share, ReadOnly: readOnly})
		bar.end()
		if err != nil {
			return err
		}
		return a.printScrub(res)
	})
}

func (a *App) directRecompress() *cobra.Command {
	var f direct
	var limit, rate bytesFlag
	cmd := &cobra.Command{
		Use: "recompress LOCATION", Short: "Write packs anew with the dense codec, which idle time does by itself", Args: want("LOCATION"),
		Long:    "Writers use a fast codec; this rewrites their packs with a dense one. Collection then reclaims the old packs. It can be ended and goes on where it was. " + directHelp,
		Example: "  drover repository recompress /backup\n  drover repository recompress /backup --limit 20G --bandwidth 50M",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return f.withDirect(ctx, a, args[0], false, func(r *chunkstore.Repository, _ *backup.Local) error {
				res, err := r.Rewrite(ctx, chunkstore.RewriteOptions{Limit: int64(limit), Rate: int64(rate), Workers: 2})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.Out, "%d packs rewritten: %s became %s; now reclaim the old ones: drover repository collect %s\n", res.Packs, unit.Size(res.Freed), unit.Size(res.Made), args[0])
				return err
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().Var(&limit, "limit", "at most so much (default: all)")
	cmd.Flags().Var(&rate, "bandwidth", "most bytes a second (default: no limit)")
	return cmd
}

func (a *App) directPassphrase() *cobra.Command {
	var f, g direct
	var rotate bool
	cmd := &cobra.Command{
		Use: "passphrase LOCATION", Short: "Change the passphrase or rotate the data key, without a manager", Args: want("LOCATION"),
		Long:    "Change the passphrase: the old one no longer opens the repository; no data is written anew. " + directHelp,
		Example: "  drover repository passphrase /backup --new-passphrase-file new\n  drover repository passphrase /backup --rotate-data-key",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			if g.pass.file == "" && !rotate {
				return usage("repository passphrase: give --new-passphrase-file, or --rotate-data-key")
			}
			return f.withDirect(ctx, a, args[0], false, func(r *chunkstore.Repository, _ *backup.Local) error {
				if g.pass.file != "" {
					pass, err := g.pass.read(a, false)
					if err != nil {
						return err
					}
					if err := resource.CheckPassphrase(args[0], pass); err != nil {
						return err
					}
					if err := r.SetPassphrase(ctx, pass); err != nil {
						return err
					}
					fmt.Fprintln(a.Out, "passphrase changed")
				}
				if rotate {
					if err := r.Rotate(ctx); err != nil {
						return err
					}
					fmt.Fprintln(a.Out, "data key rotated")
				}
				return nil
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&g.pass.file, "new-passphrase-file", "", "`file` with the new passphrase in its first line")
	cmd.Flags().BoolVar(&rotate, "rotate-data-key", false, "seal what is written from now on with a new key")
	return cmd
}

// printScrub tells what a scrub found, and fails if damage is left.
func (a *App) printScrub(res chunkstore.ScrubResult) error {
	fmt.Fprintf(a.Out, "%d packs, %s read and checked\n", res.Packs, unit.Size(res.Bytes))
	for _, b := range res.Repaired {
		fmt.Fprintf(a.Out, "repaired: pack %s (%s)\n", b.Pack, b.How)
	}
	for _, b := range res.Damaged {
		fmt.Fprintf(a.Out, "DAMAGED: pack %s (%s)\n", b.Pack, b.How)
	}
	for _, x := range res.Affected {
		fmt.Fprintf(a.Out, "  affects point %s of %s: disk %s, %s at %d\n", x.Point, x.VM, x.Disk, unit.Size(x.Length), x.Offset)
	}
	if len(res.Damaged) > 0 {
		return &failure{code: exitFailed, err: fmt.Errorf("%d packs are damaged", len(res.Damaged)), hint: "the next backup stores the lost blocks anew if the VM still has them; a copy elsewhere may have the points"}
	}
	return nil
}
