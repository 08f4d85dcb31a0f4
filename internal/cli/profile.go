package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"

	"github.com/spf13/cobra"
)

const profileLong = `A port profile is the policy that ports follow: security, guards, VLANs of a trunk, rates, mirroring. A profile inherits what it leaves out from its
parent, and in the end from "default". Fields are named as in files for drover apply, such as

  security.promiscuous=on        guards.arp=off             guards.dhcp_rate=30
  trunk.vlans=10,20-29           private_role=isolated      guards.storm.broadcast=500
  qos.in.limit_bps=100M          qos.dscp=46                mirror.port=ids/net0

"drover profile show default" prints them all.`

func (a *App) profileCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "profile", Short: "Port profiles: the policy that ports follow", Long: profileLong,
		Example: "  drover profile create web --parent secure --set qos.in.limit_bps=1G\n  drover profile set web --set guards.dhcp_rate=5 --dry-run\n  drover vm nic set web nic0 --profile web"}
	cmd.AddCommand(a.profileCreateCommand(), a.profileSetCommand(), a.listCommand(profileKind(), "profile"), a.showCommand(profileKind()),
		a.rmCommand(profileKind(), "Delete profiles that no port follows", ""))
	return cmd
}

type profileFlags struct {
	description, parent string
	set, unset          []string
	labels              labelFlags
}

func (f *profileFlags) add(a *App, cmd *cobra.Command, change bool) {
	cmd.Flags().StringVar(&f.description, "description", "", "a line for people")
	cmd.Flags().StringVar(&f.parent, "parent", "", "profile to inherit from (default \"default\")")
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "a field and its value, `FIELD=VALUE` (repeatable)")
	register(cmd, "parent", a.names(profileKind(), ""))
	register(cmd, "set", profileFields)
	f.labels.add(cmd, change)
	if change {
		cmd.Flags().StringArrayVar(&f.unset, "unset", nil, "a `FIELD` to inherit again (repeatable)")
		register(cmd, "unset", profileFields)
	}
	a.outputFlag(cmd)
}

// profileFields completes the names of fields.
func profileFields(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	out := paths((&v1.PortProfileSpec{}).ProtoReflect().Descriptor(), "")
	if f := cmd.Flags().Lookup("unset"); f == nil || !f.Changed {
		for i := range out {
			out[i] += "="
		}
	}
	return out, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// spec is what the flags say, and the paths that they name.
func (f *profileFlags) spec() (*v1.PortProfileSpec, []string, error) {
	spec := &v1.PortProfileSpec{Description: f.description, Parent: f.parent}
	var named []string
	for _, s := range f.set {
		x, err := parseAssignment(s)
		if err != nil {
			return nil, nil, err
		}
		for _, y := range withFlag(x) {
			if err := y.assign(spec); err != nil {
				return nil, nil, err
			}
			named = append(named, "spec."+y.path)
		}
	}
	for _, path := range f.unset {
		if _, _, err := descend((&v1.PortProfileSpec{}).ProtoReflect(), path); err != nil {
			return nil, nil, usage("--unset %s: %v", path, err)
		}
		named = append(named, "spec."+path)
		if path == "qos.dscp" || path == "qos.cos" {
			named = append(named, "spec."+path+"_set")
		}
	}
	slices.Sort(named)
	return spec, slices.Compact(named), nil
}

// withFlag adds the field that says that a marking is set, since 0 is one.
func withFlag(x assignment) []assignment {
	if x.path == "qos.dscp" || x.path == "qos.cos" {
		return []assignment{x, {x.path + "_set", "yes"}}
	}
	return []assignment{x}
}

func (a *App) profileCreateCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a port profile", Long: "Create a port profile. " + profileLong, Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover profile create web --parent secure --set qos.in.limit_bps=1G\n  drover profile create router --set trunk.vlans=10,20-29 --set guards.ra=off",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			m, err := f.labels.labels(nil)
			if err != nil {
				return err
			}
			spec, _, err := f.spec()
			if err != nil {
				return err
			}
			p, err := c.Profile.Create(ctx, &v1.CreatePortProfileRequest{Profile: &v1.PortProfile{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: spec}})
			if err != nil {
				return err
			}
			return a.printDone(profileKind(), p, "created")
		}),
	}
	f.add(a, cmd, false)
	return cmd
}

func (a *App) profileSetCommand() *cobra.Command {
	var f profileFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a port profile, and with it all ports that follow it", Args: want("NAME"), ValidArgsFunction: a.firstArg(profileKind()),
		Long: "Change a port profile. All ports that follow it, also through children, have the new policy within a second; --dry-run says which they are and what would change, and changes nothing.\n\n" +
			profileLong,
		Example: "  drover profile set web --set guards.arp=off --dry-run\n  drover profile set web --unset qos.in.limit_bps",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Profile.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			u.given("description", "spec.description")
			u.given("parent", "spec.parent")
			spec, named, err := f.spec()
			if err != nil {
				return err
			}
			u.paths = append(u.paths, named...)
			m, err := u.label(&f.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			p := &v1.PortProfile{Meta: &v1.Meta{Name: args[0], Revision: old.GetMeta().GetRevision(), Labels: m}, Spec: spec}
			if !dry {
				return u.send(ctx, a, c, profileKind(), p)
			}
			if len(u.paths) == 0 {
				return usageError{fmt.Errorf("%s: nothing to change; give at least one flag", shortPath(cmd)), cmd}
			}
			r, err := c.Profile.Preview(ctx, &v1.PreviewPortProfileRequest{Profile: p, Mask: maskOf(u.paths...)})
			if err != nil {
				return err
			}
			return a.printPreview(r)
		}),
	}
	f.add(a, cmd, true)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say which ports would change and how; change nothing")
	return cmd
}

// printPreview shows what a change would do.
func (a *App) printPreview(r *v1.PreviewPortProfileResponse) error {
	if !a.people() {
		return a.printMessage(r)
	}
	if len(r.GetPorts()) == 0 {
		a.say("no port would change")
		return nil
	}
	t := table.Table{Headers: []string{"PORT", "HOST", "FIELD", "BEFORE", "AFTER"}}
	faults := 0
	for _, p := range r.GetPorts() {
		for _, f := range p.GetFields() {
			t.Add(table.Text(p.GetPort()), table.Text(p.GetHost()), table.Text(f.GetField()), table.Text(f.GetBefore()), table.Text(f.GetAfter()))
		}
		for _, f := range p.GetFaults() {
			faults++
			t.Add(table.Text(p.GetPort()), table.Text(p.GetHost()), table.Cell{Text: "refused: " + f, Colour: table.Red})
		}
	}
	if err := t.Write(a.Out, a.coloured(a.Out)); err != nil {
		return err
	}
	word := "ports"
	if len(r.GetPorts()) == 1 {
		word = "port"
	}
	a.say("%d %s would change%s; nothing was changed", len(r.GetPorts()), word, strings.TrimSuffix(fmt.Sprintf(", %d refused", faults), ", 0 refused"))
	return nil
}
