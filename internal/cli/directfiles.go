package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/files"
	"drover/internal/chunkstore"
	"drover/internal/nbd"
	"drover/internal/osimage"

	"github.com/spf13/cobra"
)

// helperFlags say where the helper's image is.
type helperFlags struct{ image string }

func (f *helperFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.image, "helper", "", "image of the helper VM, a `file` of \"drover image build helper\" (default: built when first needed)")
}

// session starts a helper over a point, without host or manager.
func (f *helperFlags) session(ctx context.Context, a *App, p backup.PointReader) (_ *files.Session, err error) {
	image := f.image
	if image == "" {
		bar := a.progress("the helper's image, built once")
		res, err := osimage.BuildHelper(ctx, osimage.Helper{}, osimage.Options{})
		bar.end()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("the helper's image: %w; give one by --helper", err), p.Close())
		}
		image = res.Path
	}
	dir, err := os.MkdirTemp("", "drover-helper-")
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	// QEMU has the files open from here on.
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	img, err := files.OpenImage(ctx, image, dir)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	o := files.Options{Image: img, Clock: a.Clock}
	if os.Geteuid() == 0 {
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		o.UID, o.GID = nobody, nobody
	}
	return files.Open(ctx, ctx, p, o)
}

// nobody is who QEMU runs as when root looks into a point: Debian's user of that name.
const nobody = 65534

// look opens a point of a repository at a location and looks into it.
func (f *direct) look(ctx context.Context, a *App, h *helperFlags, location, point string, do func(*files.Session) error) error {
	return f.withDirect(ctx, a, location, true, func(_ *chunkstore.Repository, l *backup.Local) error {
		p, err := pointOf(ctx, l, point)
		if err != nil {
			return err
		}
		r, err := l.OpenPoint(ctx, p.ID)
		if err != nil {
			return err
		}
		s, err := h.session(ctx, a, r)
		if err != nil {
			return err
		}
		return errors.Join(do(s), s.Close())
	})
}

func (a *App) directFiles() *cobra.Command {
	var f direct
	var h helperFlags
	cmd := &cobra.Command{
		Use: "files LOCATION POINT [VOLUME:/PATH]", Short: "List the volumes, or a directory, in a restore point, without a manager", Args: want("LOCATION", "POINT", "[VOLUME:/PATH]"),
		Long:    "Look into a restore point through a small helper VM on this machine. " + directHelp,
		Example: "  drover repository files /backup web\n  drover repository files /backup web root.1:/etc",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return f.look(ctx, a, &h, args[0], args[1], func(s *files.Session) error {
				l := &v1.BrowseResponse{}
				if len(args) < 3 {
					vs, err := s.Volumes(ctx)
					if err != nil {
						return err
					}
					for _, v := range vs {
						l.Entries = append(l.Entries, v.Message())
					}
					return a.printEntries(l)
				}
				p, err := files.ParsePath(args[2])
				if err != nil {
					return usage("%v", err)
				}
				for after := ""; ; {
					es, err := s.List(ctx, p, after, listPage)
					if err != nil {
						return err
					}
					for _, e := range es {
						l.Entries = append(l.Entries, e.Message())
						after = e.Name
					}
					if len(es) < listPage {
						return a.printEntries(l)
					}
				}
			})
		}),
	}
	f.add(cmd)
	h.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// listPage is how many entries of a directory are asked for at once.
const listPage = 10000

func (a *App) directGet() *cobra.Command {
	var f direct
	var h helperFlags
	var out string
	var asTar bool
	cmd := &cobra.Command{
		Use: "get LOCATION POINT VOLUME:/PATH…", Short: "Fetch files and directories out of a restore point, without a manager", Args: want("LOCATION", "POINT", "VOLUME:/PATH", "[VOLUME:/PATH…]"),
		Long:    "Fetch files through a small helper VM on this machine. " + directHelp,
		Example: "  drover repository get /backup web root.1:/etc/hosts\n  drover repository get /backup web root.1:/home --tar > home.tar",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			var paths []files.Path
			for _, text := range args[2:] {
				p, err := files.ParsePath(text)
				if err != nil {
					return usage("%v", err)
				}
				paths = append(paths, p)
			}
			return f.look(ctx, a, &h, args[0], args[1], func(s *files.Session) error {
				return a.receiveFiles(ctx, &pulled{ctx: ctx, s: s, paths: paths}, out, asTar, filepath.Base(paths[0].Path))
			})
		}),
	}
	f.add(cmd)
	h.add(cmd)
	cmd.Flags().StringVar(&out, "output", ".", "`directory` to write to")
	cmd.Flags().BoolVar(&asTar, "tar", false, "write a tar archive to standard output")
	return cmd
}

func (a *App) directNBD() *cobra.Command {
	var f direct
	var listen string
	cmd := &cobra.Command{
		Use: "nbd LOCATION POINT [DISK]", Short: "Serve a disk of a restore point to other programs, read-only, without a manager", Args: want("LOCATION", "POINT", "[DISK]"),
		Long:    `Serve a disk over NBD on a unix socket, until it is ended: qemu-img, nbdcopy or QEMU read it as nbd+unix:///?socket=PATH without restoring it first. ` + directHelp,
		Example: "  drover repository nbd /backup web root --listen /tmp/web.sock &\n  qemu-img convert -O qcow2 'nbd+unix:///?socket=/tmp/web.sock' web.qcow2",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return f.withDirect(ctx, a, args[0], true, func(_ *chunkstore.Repository, l *backup.Local) error {
				p, err := pointOf(ctx, l, args[1])
				if err != nil {
					return err
				}
				name := ""
				if len(args) > 2 {
					name = args[2]
				} else if len(p.Disks) > 0 {
					name = p.Disks[0].Name
				}
				return a.serveNBD(ctx, l, p, name, listen)
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&listen, "listen", "", "`path` of the socket (default DISK.sock in the current directory)")
	return cmd
}

func (a *App) serveNBD(ctx context.Context, l *backup.Local, p backup.Point, name, socket string) (err error) {
	r, err := l.OpenPoint(ctx, p.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d, err := r.Disk(ctx, name)
	if err != nil {
		return err
	}
	x := backup.NewExport(ctx, d, 64<<20)
	defer func() { err = errors.Join(err, x.Close()) }()
	socket = cmp.Or(socket, name+".sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := nbd.NewServer(nbd.ServerOptions{Lookup: func(context.Context, string, nbd.Peer) (nbd.Export, func(), error) { return x, func() {}, nil }})
	a.say("disk %s of %s as it was %s: nbd+unix:///?socket=%s", name, p.VM, p.Time.Local().Format("2006-01-02 15:04"), strings.ReplaceAll(socket, " ", "%20"))
	if err := s.Serve(ctx, ln); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
