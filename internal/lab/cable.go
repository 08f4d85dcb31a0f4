package lab

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// SetUplink plugs the cable of a host's uplink in (up) or out, at the switch: the host sees carrier come or go, as with a real cable. It lasts until
// it is called again or the lab is brought up anew. A port that is plugged in passes frames after it has listened and learned, twice the
// spanning tree's forward delay.
func (l *Lab) SetUplink(host, uplink string, up bool) error {
	port, sw, err := l.topo.uplinkPort(host, uplink)
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.cfg.Name, err)
	}
	n, err := l.Net(sw)
	if err != nil {
		return err
	}
	return errors.Join(n.SetUp(port, up), n.Close())
}

// uplinkPort is where a host's uplink is plugged in: the port and the switch's node.
func (t Topology) uplinkPort(host, uplink string) (port, sw string, err error) {
	n, err := t.Node(host)
	if err != nil {
		return "", "", err
	}
	if n.Kind != KindHost {
		return "", "", fmt.Errorf("node %q is no host: it has no uplinks", host)
	}
	k := slices.Index(n.Uplinks, uplink)
	if k < 0 {
		return "", "", fmt.Errorf("host %s has no uplink %q: it has %s", host, uplink, strings.Join(n.Uplinks, ", "))
	}
	j := slices.IndexFunc(t.Hosts(n.Site), func(h Node) bool { return h.Name == host })
	return uplinkPortName(j, k), switchNode(n.Site), nil
}

// uplinkPortName is the switch's port of uplink k of host j of a site.
func uplinkPortName(j, k int) string { return fmt.Sprintf("h%du%d", j+1, k) }

func (c *command) cut() *cobra.Command {
	return c.cable("cut", false, "Pull the cable of a host's uplink", "The host sees the link go down. Networks go on by its other uplinks, if it has some.")
}

func (c *command) plug() *cobra.Command {
	return c.cable("plug", true, "Put the cable of a host's uplink back",
		"The switch lets traffic pass a few seconds later, when its spanning tree has looked.")
}

func (c *command) cable(verb string, up bool, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " HOST UPLINK", Short: short, Long: long, Args: cobra.ExactArgs(2), ValidArgsFunction: c.uplinks,
		Example: "  drover lab " + verb + " east-1 up0",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			l, err := c.open()
			if err != nil {
				return err
			}
			return l.SetUplink(args[0], args[1], up)
		},
	}
}

// uplinks completes HOST UPLINK.
func (c *command) uplinks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	l, err := c.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, h := range l.Topology().Hosts("") {
		switch {
		case len(args) == 0:
			out = append(out, h.Name)
		case len(args) == 1 && h.Name == args[0]:
			out = h.Uplinks
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
