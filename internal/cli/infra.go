package cli

import (
	"context"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"github.com/spf13/cobra"
)

func (a *App) siteCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "site", Short: "Sites: data centers", Example: "  drover site create berlin --time-zone Europe/Berlin\n  drover site list"}
	var create, set struct {
		description, zone string
		labels            labelFlags
	}
	mk := &cobra.Command{
		Use: "create NAME", Short: "Create a site", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover site create berlin --time-zone Europe/Berlin --description 'rack 12'",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			m, err := create.labels.labels(nil)
			if err != nil {
				return err
			}
			s, err := c.Site.Create(ctx, &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: &v1.SiteSpec{Description: create.description, TimeZone: create.zone}}})
			if err != nil {
				return err
			}
			return a.printDone(siteKind(), s, "created")
		}),
	}
	change := &cobra.Command{
		Use: "set NAME", Short: "Change a site", Args: want("NAME"), ValidArgsFunction: a.firstArg(siteKind()),
		Example: "  drover site set berlin --time-zone Europe/Berlin --label tier=1",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Site.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			u.given("description", "spec.description")
			u.given("time-zone", "spec.time_zone")
			m, err := u.label(&set.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, siteKind(), &v1.Site{Meta: &v1.Meta{Name: args[0], Revision: old.GetMeta().GetRevision(), Labels: m},
				Spec: &v1.SiteSpec{Description: set.description, TimeZone: set.zone}})
		}),
	}
	for cmd, f := range map[*cobra.Command]*struct {
		description, zone string
		labels            labelFlags
	}{mk: &create, change: &set} {
		cmd.Flags().StringVar(&f.description, "description", "", "a line for people")
		cmd.Flags().StringVar(&f.zone, "time-zone", "", "IANA name of its time zone, such as Europe/Berlin (default UTC)")
		f.labels.add(cmd, cmd == change)
		a.outputFlag(cmd)
	}
	cmd.AddCommand(mk, change, a.listCommand(siteKind(), "site"), a.showCommand(siteKind()), a.rmCommand(siteKind(), "Delete sites that have no hosts", ""))
	return cmd
}

func (a *App) datastoreCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "datastore", Aliases: []string{"ds"}, Short: "Datastores: directories on hosts where disks live", Example: "  drover datastore create fast --host h1 --path /srv/fast\n  drover datastore list"}
	var host, path string
	var createLabels, setLabels labelFlags
	mk := &cobra.Command{
		Use: "create NAME", Short: "Make a directory of a host a datastore", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover datastore create fast --host h1 --path /srv/fast",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if host == "" || path == "" {
				return usage("give --host and --path")
			}
			m, err := createLabels.labels(nil)
			if err != nil {
				return err
			}
			d, err := c.Datastore.Create(ctx, &v1.CreateDatastoreRequest{Datastore: &v1.Datastore{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: &v1.DatastoreSpec{Host: host, Path: path}}})
			if err != nil {
				return err
			}
			return a.printDone(datastoreKind(), d, "created")
		}),
	}
	mk.Flags().StringVar(&host, "host", "", "host that it is on")
	mk.Flags().StringVar(&path, "path", "", "absolute path of an existing directory there")
	register(mk, "host", a.names(hostKind(), ""))
	createLabels.add(mk, false)
	a.outputFlag(mk)
	change := &cobra.Command{
		Use: "set NAME", Short: "Change a datastore's labels", Args: want("NAME"), ValidArgsFunction: a.firstArg(datastoreKind()),
		Example: "  drover datastore set fast --label disk=nvme",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Datastore.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			m, err := u.label(&setLabels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, datastoreKind(), &v1.Datastore{Meta: &v1.Meta{Name: args[0], Revision: old.GetMeta().GetRevision(), Labels: m}})
		}),
	}
	setLabels.add(change, true)
	a.outputFlag(change)
	cordon := func(name string, on bool) (object, string) {
		return &v1.Datastore{Meta: &v1.Meta{Name: name}, Spec: &v1.DatastoreSpec{Cordoned: on}}, "spec.cordoned"
	}
	cmd.AddCommand(mk, change, a.listCommand(datastoreKind(), "datastore"), a.showCommand(datastoreKind()),
		a.cordonCommand(datastoreKind(), true, "Put no new disks on datastores", cordon), a.cordonCommand(datastoreKind(), false, "Let datastores take new disks again", cordon),
		a.rmCommand(datastoreKind(), "Forget datastores without disks; their directories stay", ""))
	return cmd
}

// cordonCommand is cordon or uncordon; make is the change for a name.
func (a *App) cordonCommand(k *kind, on bool, short string, change func(name string, on bool) (object, string)) *cobra.Command {
	name, done := "uncordon", "takes new ones again"
	if on {
		name, done = "cordon", "cordoned"
	}
	cmd := &cobra.Command{
		Use: name + " NAME…", Short: short, Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(k),
		Example: "  drover " + k.name + " " + name + " NAME",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				o, path := change(name, on)
				got, err := k.update(ctx, c, o, maskOf(path), false)
				if err != nil {
					return err
				}
				return a.printDone(k, got, done)
			})
		}),
	}
	a.outputFlag(cmd)
	return cmd
}
