package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *App) switchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "switch", Short: "The distributed switch: hosts, uplinks, registrations",
		Example: "  drover switch show\n  drover switch uplinks\n  drover switch table h1 --network lan\n  drover switch team h1 default --uplink up0 --uplink up1"}
	cmd.AddCommand(a.switchShowCommand(), a.switchUplinksCommand(), a.switchTableCommand(), a.switchTeamCommand())
	return cmd
}

func (a *App) switchShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show", Short: "The switch in one look: each host's part of it", Args: want(), ValidArgsFunction: cobra.NoFileCompletions, Example: "  drover switch show",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			v, err := c.Switch.Show(ctx, &v1.ShowSwitchRequest{})
			if err != nil {
				return err
			}
			if !a.people() {
				return a.printMessage(v)
			}
			t := table.Table{Headers: []string{"HOST", "SITE", "STATE", "UPLINKS", "OVERLAY", "NETWORKS", "PORTS", "REGISTERED", "PROBLEMS"}, Right: map[int]bool{5: true, 6: true, 7: true}}
			for _, h := range v.GetHosts() {
				up, all := 0, 0
				for _, u := range h.GetUplinks() {
					if u.GetTeam() != "" {
						all++
					}
					if u.GetActive() {
						up++
					}
				}
				overlay := h.GetStatus().GetOverlayAddress()
				if overlay != "" {
					overlay += fmt.Sprintf(" mtu %d", h.GetStatus().GetOverlayMtu())
				}
				t.Add(table.Text(h.GetHost()), table.Text(h.GetSite()), hostSwitchState(h, v.GetRevision()), table.Text(fmt.Sprintf("%d of %d active", up, all)),
					table.Text(overlay), table.Text(fmt.Sprint(len(h.GetNetworks()))), table.Text(fmt.Sprint(h.GetStatus().GetPorts())),
					table.Text(fmt.Sprint(h.GetStatus().GetRegistrations())), table.Text(strings.Join(problemsOf(h), ",")))
			}
			if err := t.Write(a.Out, a.coloured(a.Out)); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "%d networks, %d ports, %d registrations\n", v.GetNetworks(), v.GetPorts(), v.GetRegistrations())
			return err
		}),
	}
	a.outputFlag(cmd)
	return cmd
}

// problemsOf are the names of what is wrong with a host.
func problemsOf(h *v1.HostSwitch) []string {
	var list []string
	for _, c := range h.GetConditions() {
		if c.GetStatus() && !slices.Contains(list, c.GetType()) {
			list = append(list, c.GetType())
		}
	}
	slices.Sort(list)
	return list
}

// hostSwitchState says whether a host's part is as the manager wants it.
func hostSwitchState(h *v1.HostSwitch, revision int64) table.Cell {
	switch st := h.GetStatus(); {
	case st == nil:
		return table.Cell{Text: "not heard of", Colour: table.Red}
	case h.GetStale():
		return table.Cell{Text: "unreachable", Colour: table.Red}
	case slices.Contains(problemsOf(h), "SWITCH_UNAVAILABLE"), slices.Contains(problemsOf(h), "SWITCH_ERROR"):
		return table.Cell{Text: "failed", Colour: table.Red} // "drover host show" has the words
	case st.GetRevision() < revision:
		return table.Cell{Text: "catching up", Colour: table.Yellow}
	}
	return table.Cell{Text: "in step", Colour: table.Green}
}

func (a *App) switchUplinksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "uplinks", Short: "All uplinks, and the physical port that each is in", Args: want(), ValidArgsFunction: cobra.NoFileCompletions, Example: "  drover switch uplinks",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			v, err := c.Switch.Show(ctx, &v1.ShowSwitchRequest{})
			if err != nil {
				return err
			}
			if !a.people() {
				return a.printMessage(v)
			}
			t := table.Table{Headers: []string{"UPLINK", "TEAM", "STATE", "SPEED", "MTU", "IN", "OUT", "PHYSICAL SWITCH", "ITS PORT"}, Right: map[int]bool{4: true, 5: true, 6: true}}
			for _, h := range v.GetHosts() {
				for _, u := range h.GetUplinks() {
					n := u.GetNeighbor()
					t.Add(table.Text(h.GetHost()+"/"+u.GetName()), table.Text(u.GetTeam()), uplinkState(u), table.Text(bits(u.GetSpeedMbps()*1e6)), table.Text(fmt.Sprint(u.GetMtu())),
						table.Text(unit.Size(int64(u.GetCounters().GetInBytes()))), table.Text(unit.Size(int64(u.GetCounters().GetOutBytes()))),
						table.Text(switchName(n)), table.Text(n.GetPort()))
				}
			}
			if len(t.Rows) == 0 {
				a.say("no host has uplinks: start agents with --uplink DEVICE")
				return nil
			}
			return t.Write(a.Out, a.coloured(a.Out))
		}),
	}
	a.outputFlag(cmd)
	return cmd
}

// switchName is what a neighbour calls itself, and its number if that is another.
func switchName(n *v1.Neighbor) string {
	if n.GetSystem() == n.GetChassis() {
		return n.GetSystem()
	}
	return strings.TrimSpace(n.GetSystem() + " " + n.GetChassis())
}

func uplinkState(u *v1.Uplink) table.Cell {
	switch {
	case u.GetActive():
		return table.Cell{Text: "active", Colour: table.Green}
	case u.GetReason() != "":
		return table.Cell{Text: u.GetReason(), Colour: table.Yellow}
	case !u.GetLinkUp():
		return table.Cell{Text: "no link", Colour: table.Red}
	case u.GetTeam() == "" && u.GetAddress() != "":
		return table.Cell{Text: "the machine's own: " + u.GetAddress(), Colour: table.Dim}
	case u.GetTeam() == "":
		return table.Cell{Text: "not in a team", Colour: table.Dim}
	}
	return table.Cell{Text: "standby", Colour: table.Dim}
}

func (a *App) switchTableCommand() *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use: "table HOST", Short: "The registrations as a host's datapath holds them", Args: want("HOST"), ValidArgsFunction: a.firstArg(hostKind()),
		Example: "  drover switch table h1\n  drover switch table h1 --network lan",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.Switch.Table(ctx, &v1.SwitchTableRequest{Host: args[0], Network: network})
			t := table.Table{Headers: []string{"NETWORK", "VNI", "MAC", "PLACE", "TARGET", "ADDRESSES"}, Right: map[int]bool{1: true}}
			all := &v1.SwitchTableResponse{}
			err = each(s, err, func(r *v1.SwitchTableResponse) error {
				all.Entries = append(all.Entries, r.GetEntries()...)
				return nil
			})
			if err != nil {
				return err
			}
			if !a.people() {
				return a.printMessage(all)
			}
			for _, e := range all.GetEntries() {
				t.Add(table.Text(e.GetNetwork()), table.Text(fmt.Sprint(e.GetVni())), table.Text(e.GetMac()), table.Text(e.GetPlace()), table.Text(e.GetTarget()), table.Text(strings.Join(e.GetAddresses(), ",")))
			}
			if len(t.Rows) == 0 {
				a.say("nothing is registered there")
				return nil
			}
			return t.Write(a.Out, a.coloured(a.Out))
		}),
	}
	cmd.Flags().StringVar(&network, "network", "", "only this network")
	register(cmd, "network", a.names(networkKind(), ""))
	a.outputFlag(cmd)
	return cmd
}

func (a *App) switchTeamCommand() *cobra.Command {
	var t v1.UplinkTeam
	var policy string
	var failback time.Duration
	var remove bool
	cmd := &cobra.Command{
		Use: "team HOST [TEAM]", Short: "Set how a host's uplinks work together", ValidArgsFunction: a.firstArg(hostKind()),
		Args: cobra.RangeArgs(1, 2),
		Long: `Set a team of a host's uplinks, "default" unless named. Policies:

  port       each port keeps to one uplink; works with any physical switch (the default)
  mac        each source MAC keeps to one uplink
  ip         by source and destination address; the physical switch must bundle the ports (static EtherChannel)
  failover   the first uplink that is up`,
		Example: "  drover switch team h1 --uplink up0 --uplink up1\n  drover switch team h1 storage --uplink up2 --standby up3 --policy failover --failback 30s\n  drover switch team h1 storage --rm",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			name := "default"
			if len(args) == 2 {
				name = args[1]
			}
			host, err := c.Host.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			teams := slices.Clone(host.GetSpec().GetTeams())
			i := slices.IndexFunc(teams, func(x *v1.UplinkTeam) bool { return x.GetName() == name })
			switch {
			case remove && i < 0:
				return usage("host %s has no team %q", args[0], name)
			case remove:
				teams = slices.Delete(teams, i, i+1)
			default:
				t.Name = name
				if policy != "" {
					if t.Policy, err = enumOf[v1.TeamPolicy](t.Policy, policy); err != nil {
						return usage("--policy: %v", err)
					}
				}
				if cmd.Flags().Changed("failback") {
					t.FailbackDelay = durationpb.New(failback)
				}
				if i < 0 {
					teams = append(teams, &t)
				} else {
					teams[i] = &t
				}
			}
			got, err := c.Host.Update(ctx, &v1.UpdateHostRequest{Host: &v1.Host{Meta: &v1.Meta{Name: args[0], Revision: host.GetMeta().GetRevision()}, Spec: &v1.HostSpec{Teams: teams}}, Mask: maskOf("spec.teams")})
			if err != nil {
				return err
			}
			return a.printDone(hostKind(), got, "changed")
		}),
	}
	cmd.Flags().StringArrayVar(&t.Uplinks, "uplink", nil, "device, in order of preference (repeatable)")
	cmd.Flags().StringArrayVar(&t.Standby, "standby", nil, "device that is used when none of the others is up (repeatable)")
	cmd.Flags().StringVar(&policy, "policy", "", "port, mac, ip or failover (default port)")
	cmd.Flags().DurationVar(&failback, "failback", 0, "wait so long before an uplink that came back is used (default 5s)")
	cmd.Flags().BoolVar(&t.NoFailback, "no-failback", false, "never go back before the other uplink fails")
	cmd.Flags().BoolVar(&t.Beacon, "beacon", false, "send beacons between the uplinks and leave one that hears none")
	cmd.Flags().BoolVar(&remove, "rm", false, "remove the team")
	register(cmd, "policy", words("port", "mac", "ip", "failover"))
	a.outputFlag(cmd)
	return cmd
}
