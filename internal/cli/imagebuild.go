package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/osimage"

	"github.com/spf13/cobra"
)

// Guests whose images can be built.
const (
	buildTiny   = "tiny"
	buildDebian = "debian"
	buildHelper = "helper"
)

// builtOS are the rows of the table of guests that built images are of.
var builtOS = map[string]string{buildTiny: "linux-tiny", buildDebian: "linux", buildHelper: "linux-tiny"}

func (a *App) imageBuildCommand() *cobra.Command {
	var f imageFlags
	var w waitFlags
	var kernel, cache string
	var packages []string
	var size bytesFlag
	var rebuild, local bool
	cmd := &cobra.Command{
		Use: "build tiny|debian|helper", Short: "Build an image from Debian packages and import it", Args: want("tiny|debian|helper"), ValidArgsFunction: words(buildTiny, buildDebian, buildHelper),
		Long: `Build an image from Debian packages on this machine, with its own apt configuration, and import it.

tiny    a kernel and a small init that boot in about two seconds without KVM; for trying things out
debian  a Debian 12 cloud image with cloud-init, guest agent and sshd; must run as root
helper  the VM that reads files of restore points; backups need it for single files

What was built is kept, and built again only when packages or the recipe have changed.`,
		Example: "  drover image build tiny\n  sudo drover image build debian --packages htop,nginx --size 4G\n  drover image build tiny --local",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			res, err := a.build(ctx, args[0], kernel, packages, int64(size), osimage.Options{CacheDir: cache, Rebuild: rebuild})
			if err != nil {
				return err
			}
			if local {
				_, err := fmt.Fprintln(a.Out, res.Path)
				return err
			}
			return a.run(func(ctx context.Context, c *client.Client, _ []string) error {
				f.sha256 = res.SHA256
				img, err := f.image(args[0])
				if err != nil {
					return err
				}
				if img.Spec.Os == "" {
					img.Spec.Os = builtOS[args[0]]
				}
				old, err := c.Image.Get(ctx, &v1.GetRequest{Name: img.Meta.Name})
				if err == nil && old.GetSpec().GetSha256() == res.SHA256 && old.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_READY {
					return a.printDone(imageKind(), old, "is this build already")
				}
				if img, err = a.upload(ctx, c, img, res.Path); err != nil {
					return err
				}
				return a.imported(ctx, c, img, w)
			})(cmd, nil)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&kernel, "kernel", "", "cloud (starts fastest; virtio and vmxnet3 NICs) or full (every device) (default cloud)")
	cmd.Flags().StringSliceVar(&packages, "packages", nil, "debian: more packages to install")
	cmd.Flags().Var(&size, "size", "debian: size of its disk (default 2G); it grows with a VM's disk")
	cmd.Flags().StringVar(&cache, "cache", "", "directory where builds and packages are kept (default: the user's cache)")
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "build although nothing has changed")
	cmd.Flags().BoolVar(&local, "local", false, "only build, and print the file's path")
	register(cmd, "kernel", words("cloud", "full"))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) build(ctx context.Context, what, kernel string, packages []string, size int64, opt osimage.Options) (*osimage.Result, error) {
	if kernel != "" && kernel != "cloud" && kernel != "full" {
		return nil, usage("--kernel %q: is neither cloud nor full", kernel)
	}
	p := a.progress("build " + what)
	defer p.end()
	opt.Log = slog.New(slog.DiscardHandler)
	opt.Progress = func(s osimage.Step) { p.set(s.Name, float64(s.N-1)/float64(max(s.Of, 1))) }
	var res *osimage.Result
	var err error
	switch what {
	case buildTiny:
		if len(packages) > 0 || size != 0 {
			return nil, usage("--packages and --size are for debian")
		}
		res, err = osimage.BuildTiny(ctx, osimage.Tiny{Kernel: kernel}, opt)
	case buildDebian:
		res, err = osimage.BuildDebian(ctx, osimage.Debian{Kernel: kernel, Packages: packages, Size: size}, opt)
	case buildHelper:
		if len(packages) > 0 || size != 0 || kernel != "" {
			return nil, usage("--kernel, --packages and --size are not for the helper")
		}
		res, err = osimage.BuildHelper(ctx, osimage.Helper{}, opt)
	default:
		return nil, usage("there is no recipe %q; there are tiny, debian and helper", what)
	}
	if missing := (*osimage.MissingError)(nil); errors.As(err, &missing) {
		return nil, &failure{code: exitPrecondition, err: fmt.Errorf("build %s: %s is missing", what, missing.What), hint: missing.Fix}
	}
	return res, err
}
