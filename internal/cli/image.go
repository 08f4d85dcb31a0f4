package cli

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/manifest"
	"drover/internal/cli/table"

	"github.com/spf13/cobra"
)

func (a *App) imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Aliases: []string{"img"}, Short: "Images: what disks, CD-ROMs and kernels start from", Example: "  drover image build tiny\n  drover image import debian-12.qcow2\n  drover image list"}
	cmd.AddCommand(a.imageImportCommand(), a.imageBuildCommand(), a.listCommand(imageKind(), "image"), a.showCommand(imageKind()),
		a.imageSetCommand(), a.imageOSCommand(), a.rmCommand(imageKind(), "Delete images; disks made from them live on", "also one that VMs name"))
	return cmd
}

// imageFlags describe an image.
type imageFlags struct {
	name, os, description, kind, sha256 string
	labels                              labelFlags
}

func (f *imageFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "name of the image (default: the file's, without its suffixes)")
	cmd.Flags().StringVar(&f.os, "os", "", "guest operating system, a row of \"drover image os\"")
	cmd.Flags().StringVar(&f.description, "description", "", "a line for people")
	f.labels.add(cmd, false)
}

func (f *imageFlags) image(name string) (*v1.Image, error) {
	m, err := f.labels.labels(nil)
	if err != nil {
		return nil, err
	}
	i := &v1.Image{Meta: &v1.Meta{Name: name, Labels: m}, Spec: &v1.ImageSpec{Os: f.os, Description: f.description, Sha256: strings.ToLower(f.sha256)}}
	if f.name != "" {
		i.Meta.Name = f.name
	}
	i.Spec.Kind, err = flagEnum[v1.ImageKind]("kind", f.kind, i.Spec.Kind)
	return i, err
}

func (a *App) imageImportCommand() *cobra.Command {
	var f imageFlags
	var w waitFlags
	cmd := &cobra.Command{
		Use: "import FILE|URL", Short: "Import an image from a file of this machine or from a web address", Args: want("FILE|URL"),
		Long: `Import an image: qcow2, raw, VMDK, VHDX, OVA, ISO or a kernel image, as it is or packed by xz, gz or zst.
A file is uploaded by this command; when that breaks off, the same command goes on where it was. An address is fetched by the manager.`,
		Example: "  drover image import debian-12.qcow2 --os linux\n  drover image import https://example.org/disk.img.xz --name disk --sha256 9f86…",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			name, remote := imageName(args[0])
			img, err := f.image(name)
			if err != nil {
				return err
			}
			if img.Meta.Name == "" {
				return usage("%s says no name; give one by --name", args[0])
			}
			if remote {
				img.Spec.Url = args[0]
				if img, err = c.Image.Create(ctx, &v1.CreateImageRequest{Image: img}); err != nil {
					return err
				}
			} else if img, err = a.upload(ctx, c, img, args[0]); err != nil {
				return err
			}
			return a.imported(ctx, c, img, w)
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.kind, "kind", "", "disk, iso or kernel (default: found out)")
	cmd.Flags().StringVar(&f.sha256, "sha256", "", "refuse it unless this is the file's SHA-256")
	register(cmd, "kind", words("disk", "iso", "kernel"))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// imported waits until an image is ready, and prints it.
func (a *App) imported(ctx context.Context, c *client.Client, img *v1.Image, w waitFlags) error {
	if !w.on() {
		return a.printDone(imageKind(), img, "being imported by task "+img.GetStatus().GetTask())
	}
	if err := a.finishTask(ctx, c, img.GetStatus().GetTask(), w); err != nil {
		return err
	}
	got, err := c.Image.Get(ctx, &v1.GetRequest{Name: img.GetMeta().GetName()})
	if err != nil {
		return err
	}
	if got.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_FAILED {
		return &failure{code: exitFailed, err: fmt.Errorf("image %q: %s", got.GetMeta().GetName(), got.GetStatus().GetMessage())}
	}
	return a.printDone(imageKind(), got, "ready")
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// imageName proposes a name for what an argument points to, and says whether that is an address.
func imageName(arg string) (name string, remote bool) {
	base := filepath.Base(arg)
	if u, err := url.Parse(arg); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		base, remote = path.Base(u.Path), true
	}
	base = strings.ToLower(base)
	for range 3 {
		for _, suffix := range []string{".xz", ".gz", ".zst", ".qcow2", ".img", ".raw", ".vmdk", ".vhdx", ".ova", ".iso", ".tar", ".kernel", ".dki"} {
			base = strings.TrimSuffix(base, suffix)
		}
	}
	name = strings.Trim(notName.ReplaceAllString(base, "-"), "-")
	if len(name) > 63 {
		name = strings.Trim(name[:63], "-")
	}
	return name, remote
}

func (a *App) imageSetCommand() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change an image's description, operating system and labels", Args: want("NAME"), ValidArgsFunction: a.firstArg(imageKind()),
		Example: "  drover image set debian --os linux",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Image.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			u.given("description", "spec.description")
			u.given("os", "spec.os")
			m, err := u.label(&f.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, imageKind(), &v1.Image{Meta: &v1.Meta{Name: args[0], Revision: old.GetMeta().GetRevision(), Labels: m},
				Spec: &v1.ImageSpec{Description: f.description, Os: f.os}})
		}),
	}
	cmd.Flags().StringVar(&f.os, "os", "", "guest operating system, a row of \"drover image os\"")
	cmd.Flags().StringVar(&f.description, "description", "", "a line for people")
	f.labels.add(cmd, true)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) imageOSCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "os", Short: "List the guest operating systems that Drover knows, and the hardware it proposes for them", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover image os",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Image.ListOperatingSystems(ctx, &v1.ListOperatingSystemsRequest{})
			if err != nil {
				return err
			}
			switch a.output {
			case "json":
				return manifest.JSON(a.Out, "", l)
			case "yaml":
				return manifest.YAML(a.Out, "", l)
			case "name":
				for _, o := range l.GetOperatingSystems() {
					if _, err := fmt.Fprintln(a.Out, o.GetId()); err != nil {
						return err
					}
				}
				return nil
			}
			t := &table.Table{Headers: []string{"ID", "TITLE", "NIC", "DISK", "FIRMWARE", "WHY"}}
			for _, o := range l.GetOperatingSystems() {
				t.Add(table.Text(o.GetId()), table.Text(o.GetTitle()), table.Text(o.GetNicAdapter()), table.Text(o.GetDiskBus()), table.Text(o.GetFirmware()), table.Text(o.GetReason()))
			}
			return t.Write(a.Out, a.coloured(a.Out))
		}),
	}
	a.outputFlag(cmd)
	return cmd
}
