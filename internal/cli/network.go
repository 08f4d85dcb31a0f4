package cli

import (
	"context"
	"strconv"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"github.com/spf13/cobra"
)

type networkFlags struct {
	description, profile, team string
	sites, prefixes            []string
	mtu, vlan, vni             int32
	overlay, encrypted         bool
	isolated                   int32
	communities                map[string]int
	siteVLANs                  map[string]int
	noSnooping, noProxy        bool
	labels                     labelFlags
}

func (f *networkFlags) add(a *App, cmd *cobra.Command, change bool) {
	fs := cmd.Flags()
	fs.StringVar(&f.description, "description", "", "a line for people")
	fs.StringSliceVar(&f.sites, "site", nil, "site that it is in (repeatable; default all)")
	fs.StringSliceVar(&f.prefixes, "prefix", nil, "IP prefix in use on it (repeatable)")
	fs.Int32Var(&f.mtu, "mtu", 0, "1280 to 9216 (default 1500; with an overlay 1430, encrypted 1350)")
	fs.Int32Var(&f.vlan, "vlan", 0, "VLAN on the uplinks, 1 to 4094; 0: untagged")
	fs.StringToIntVar(&f.siteVLANs, "site-vlan", nil, "VLAN in one site where it differs, `SITE=VLAN` (repeatable)")
	fs.StringVar(&f.team, "team", "", "team of uplinks (default \"default\")")
	fs.BoolVar(&f.overlay, "overlay", false, "also (without --vlan: only) between hosts, as VXLAN")
	fs.BoolVar(&f.encrypted, "encrypted", false, "encrypt it between sites; implies --overlay")
	fs.StringVar(&f.profile, "profile", "", "port profile of NICs that name none (default \"default\")")
	fs.Int32Var(&f.isolated, "isolated-vlan", 0, "private VLAN of isolated ports on the uplinks")
	fs.StringToIntVar(&f.communities, "community-vlan", nil, "private VLAN of a community on the uplinks, `NUMBER=VLAN` (repeatable)")
	fs.BoolVar(&f.noSnooping, "no-snooping", false, "send multicast to every port")
	fs.BoolVar(&f.noProxy, "no-proxy", false, "flood ARP and neighbour solicitations instead of answering them")
	if !change {
		fs.Int32Var(&f.vni, "vni", 0, "number on the overlay, 1 to 16777215 (default: given by the manager)")
	}
	register(cmd, "site", a.names(siteKind(), ""))
	register(cmd, "profile", a.names(profileKind(), ""))
	f.labels.add(cmd, change)
	a.outputFlag(cmd)
}

// segments are the sides of the network as the flags say. changed tells which flags were given.
func (f *networkFlags) segments(changed func(string) bool) (*v1.PhysicalSegment, *v1.Overlay, *v1.PrivateVLANs, error) {
	var p *v1.PhysicalSegment
	if changed("vlan") || changed("site-vlan") || changed("team") {
		p = &v1.PhysicalSegment{Vlan: f.vlan, Team: f.team}
		for site, vlan := range f.siteVLANs {
			if p.SiteVlans == nil {
				p.SiteVlans = map[string]int32{}
			}
			p.SiteVlans[site] = int32(vlan)
		}
	}
	var o *v1.Overlay
	if f.overlay || f.encrypted {
		o = &v1.Overlay{Encrypted: f.encrypted}
	}
	var pv *v1.PrivateVLANs
	if f.isolated != 0 || len(f.communities) > 0 {
		pv = &v1.PrivateVLANs{IsolatedVlan: f.isolated}
		for number, vlan := range f.communities {
			n, err := strconv.ParseInt(number, 10, 32)
			if err != nil {
				return nil, nil, nil, usage("--community-vlan %s=%d: the community is a number, 1 to 65535", number, vlan)
			}
			if pv.CommunityVlans == nil {
				pv.CommunityVlans = map[int32]int32{}
			}
			pv.CommunityVlans[int32(n)] = int32(vlan)
		}
	}
	return p, o, pv, nil
}

func (a *App) networkCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Aliases: []string{"net"}, Short: "Networks: layer-2 segments that NICs are on",
		Long:    "A network is a VLAN on the hosts' uplinks, an overlay between hosts (VXLAN), or both: stretched over sites.",
		Example: "  drover network create lan --vlan 0 --prefix 10.1.0.0/24\n  drover network create app --overlay --profile secure\n  drover network list"}
	cmd.AddCommand(a.networkCreateCommand(), a.networkSetCommand(), a.listCommand(networkKind(), "network"), a.showCommand(networkKind()),
		a.rmCommand(networkKind(), "Delete networks that no NIC is on", ""))
	return cmd
}

func (a *App) networkCreateCommand() *cobra.Command {
	var f networkFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a network", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Create a network: with --vlan it is on the uplinks of hosts (drover host --uplink DEVICE), with --overlay it goes from host to host through tunnels, with both it is one
segment on physical VLANs and between sites. Without either it is an overlay.`,
		Example: "  drover network create lan --vlan 0 --site berlin --prefix 10.1.0.0/24\n  drover network create dmz --vlan 20 --profile secure\n  drover network create app --overlay --encrypted\n  drover network create stretched --vlan 30 --site-vlan west=130 --overlay\n  drover network create jumbo --vlan 40 --mtu 9000",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			m, err := f.labels.labels(nil)
			if err != nil {
				return err
			}
			p, o, pv, err := f.segments(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			n, err := c.Network.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: &v1.NetworkSpec{
				Description: f.description, Sites: f.sites, Mtu: f.mtu, Prefixes: f.prefixes, Physical: p, Overlay: o, PrivateVlans: pv,
				Vni: f.vni, Profile: f.profile, NoSnooping: f.noSnooping, NoProxy: f.noProxy,
			}}})
			if err != nil {
				return err
			}
			return a.printDone(networkKind(), n, "created")
		}),
	}
	f.add(a, cmd, false)
	return cmd
}

func (a *App) networkSetCommand() *cobra.Command {
	var f networkFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a network", Args: want("NAME"), ValidArgsFunction: a.firstArg(networkKind()),
		Example: "  drover network set lan --prefix 10.1.0.0/24 --prefix fd00:1::/64\n  drover network set lan --profile secure\n  drover network set lan --overlay",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Network.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			u.given("description", "spec.description")
			u.given("site", "spec.sites")
			u.given("prefix", "spec.prefixes")
			u.given("mtu", "spec.mtu")
			u.given("vlan", "spec.physical.vlan")
			u.given("site-vlan", "spec.physical.site_vlans")
			u.given("team", "spec.physical.team")
			u.given("profile", "spec.profile")
			u.given("no-snooping", "spec.no_snooping")
			u.given("no-proxy", "spec.no_proxy")
			u.given("isolated-vlan", "spec.private_vlans.isolated_vlan")
			u.given("community-vlan", "spec.private_vlans.community_vlans")
			if cmd.Flags().Changed("overlay") || cmd.Flags().Changed("encrypted") {
				u.paths = append(u.paths, "spec.overlay")
			}
			m, err := u.label(&f.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			p, o, pv, err := f.segments(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, networkKind(), &v1.Network{Meta: &v1.Meta{Name: args[0], Revision: old.GetMeta().GetRevision(), Labels: m}, Spec: &v1.NetworkSpec{
				Description: f.description, Sites: f.sites, Mtu: f.mtu, Prefixes: f.prefixes, Physical: p, Overlay: o, PrivateVlans: pv,
				Profile: f.profile, NoSnooping: f.noSnooping, NoProxy: f.noProxy,
			}})
		}),
	}
	f.add(a, cmd, true)
	return cmd
}
