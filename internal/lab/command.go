package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"drover/internal/cli/table"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// DefaultName is the lab that is meant when none is named and none stands.
const DefaultName = "lab"

// command is what the commands share.
type command struct {
	root, name string
}

// Command is "drover lab".
func Command() *cobra.Command {
	c := &command{}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Sites with real hosts, networks and VMs, on this machine alone",
		Long: `A lab is a set of data centers made of network namespaces: each site has a switch with spanning tree, a router with DHCP
for guests, and hosts; a WAN whose delay, loss and bandwidth you set joins the sites. The manager and one agent for each host
run in it as real processes, and run real VMs. Nothing of it touches this machine's own network, and "down" leaves nothing behind.

Commands that speak to a manager reach the lab's by its socket: export DROVER_SOCKET=$(drover lab socket)`,
		Example: `  drover lab up
  export DROVER_SOCKET=$(drover lab socket)
  drover host list
  drover lab wan --delay 20ms --loss 0.5%
  drover lab status
  drover lab down`,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.name, "name", "", "lab to use; default: the one that stands, or \""+DefaultName+"\"")
	f.StringVar(&c.root, "root", "", "directory of labs (default "+DefaultRoot+")")
	cmd.AddCommand(c.up(), c.status(), c.list(), c.socket(), c.exec(), c.shell(), c.wan(), c.cut(), c.plug(), c.restart(), c.down(), c.demo(), daemonCommand())
	return cmd
}

func daemonCommand() *cobra.Command {
	return &cobra.Command{Use: "daemon NAME ROOT", Short: "Carry a lab's WAN and DHCP", Hidden: true, Args: cobra.ExactArgs(2), Run: func(*cobra.Command, []string) { MaybeDaemon() }}
}

// chosen is the lab that is meant.
func (c *command) chosen() (string, error) {
	if c.name != "" {
		return c.name, CheckName(c.name)
	}
	names, err := Names(c.root)
	switch {
	case err != nil:
		return "", err
	case len(names) == 1:
		return names[0], nil
	case len(names) > 1:
		return "", fmt.Errorf("there are labs %s: choose one by --name", strings.Join(names, ", "))
	}
	return DefaultName, nil
}

func (c *command) open() (*Lab, error) {
	name, err := c.chosen()
	if err != nil {
		return nil, err
	}
	return Open(c.root, name)
}

func (c *command) fleet() (*Fleet, error) {
	name, err := c.chosen()
	if err != nil {
		return nil, err
	}
	return OpenFleet(c.root, name)
}

// needRoot explains what the kernel would refuse step by step.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab makes network namespaces and VMs: run it as root (sudo)")
	}
	return nil
}

func (c *command) up() *cobra.Command {
	var sites []string
	var hosts, uplinks int
	var w wanFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Bring a lab up, or mend one that stands", Args: cobra.NoArgs,
		Long: "Builds the networks, starts manager and agents, and waits until all hosts are ready. What runs already is left alone.",
		Example: `  drover lab up
  drover lab up --name big --sites paris,london,rome --hosts 4 --delay 8ms`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			name, err := c.chosen()
			if err != nil {
				return err
			}
			fc := FleetConfig{Config: Config{Name: name, Root: c.root}}
			change, err := w.change(cmd)
			if err != nil {
				return err
			}
			fc.WAN = change.apply(WAN{})
			for _, s := range sites {
				site := Site{Name: s}
				for i := range hosts {
					site.Hosts = append(site.Hosts, Host{Name: fmt.Sprintf("%s-%d", s, i+1), Uplinks: uplinks})
				}
				fc.Sites = append(fc.Sites, site)
			}
			fc.Progress = func(step string) { fmt.Fprintln(cmd.ErrOrStderr(), "starting "+step) }
			f, err := UpFleet(cmd.Context(), fc)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Draw(cmd.Context(), cmd.OutOrStdout(), coloured(cmd)); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nexport DROVER_SOCKET=%s\n", f.Socket())
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&sites, "sites", []string{"east", "west"}, "names of the sites")
	cmd.Flags().IntVar(&hosts, "hosts", 2, "hosts in each site")
	cmd.Flags().IntVar(&uplinks, "uplinks", 2, "uplinks of each host, up0 and on")
	w.add(cmd)
	return cmd
}

// coloured says whether a command's output gets colours. The program's own flag has the last word.
func coloured(cmd *cobra.Command) bool {
	if f := cmd.Flags().Lookup("color"); f != nil && f.Value.String() != "auto" {
		return f.Value.String() == "always"
	}
	f, ok := cmd.OutOrStdout().(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func (c *command) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show sites, hosts, VMs and the WAN", Args: cobra.NoArgs, Example: "  drover lab status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := c.fleet()
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Draw(cmd.Context(), cmd.OutOrStdout(), coloured(cmd))
		},
	}
}

func (c *command) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Names of the labs on this machine", Args: cobra.NoArgs, Example: "  drover lab list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := Names(c.root)
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		},
	}
}

func (c *command) socket() *cobra.Command {
	return &cobra.Command{
		Use: "socket", Short: "Path of the socket of the lab's manager", Args: cobra.NoArgs, Example: "  export DROVER_SOCKET=$(drover lab socket)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.open()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), l.Socket())
			}
			return err
		},
	}
}

// nodes completes the names of nodes.
func (c *command) nodes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	l, err := c.open()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, n := range l.Topology().Nodes {
		out = append(out, n.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

const nodesHelp = "Nodes are the hosts, \"manager\", and of each site the switch SITE-sw and the router SITE-rt. From a router all guests are in reach."

func (c *command) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec NODE COMMAND…", Short: "Run a command on a node", Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.nodes,
		Long:    nodesHelp + "\nEnds with the command's exit code.",
		Example: "  drover lab exec east-rt ip -brief address\n  drover lab exec west-rt curl -s http://10.101.7.7/",
		RunE:    func(cmd *cobra.Command, args []string) error { return c.onNode(cmd.Context(), args[0], args[1:]...) },
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (c *command) shell() *cobra.Command {
	return &cobra.Command{
		Use: "shell NODE", Short: "A shell on a node", Args: cobra.ExactArgs(1), ValidArgsFunction: c.nodes, Long: nodesHelp,
		Example: "  drover lab shell east-1",
		RunE:    func(cmd *cobra.Command, args []string) error { return c.onNode(cmd.Context(), args[0]) },
	}
}

func (c *command) onNode(ctx context.Context, node string, command ...string) error {
	l, err := c.open()
	if err != nil {
		return err
	}
	err = l.Shell(ctx, node, command...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exitCode(exit.ExitCode())
	}
	return err
}

// wanFlags are the parameters of the WAN as flags.
type wanFlags struct {
	link, delay, jitter, loss, bandwidth string
}

func (w *wanFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.delay, "delay", "0", "delay of the WAN, one way, such as 20ms")
	f.StringVar(&w.jitter, "jitter", "0", "by how much the delay varies, such as 2ms")
	f.StringVar(&w.loss, "loss", "0%", "share of packets that are lost, such as 0.5%")
	f.StringVar(&w.bandwidth, "bandwidth", "0", "bits a second, such as 100M; 0: no limit")
}

// change is what the flags that were given ask for.
func (w *wanFlags) change(cmd *cobra.Command) (WANChange, error) {
	ch := WANChange{Link: w.link}
	given := cmd.Flags().Changed
	if given("delay") {
		d, err := parseDelay(w.delay)
		if err != nil {
			return ch, err
		}
		ch.Delay = &d
	}
	if given("jitter") {
		d, err := parseDelay(w.jitter)
		if err != nil {
			return ch, err
		}
		ch.Jitter = &d
	}
	if given("loss") {
		v, err := ParseLoss(w.loss)
		if err != nil {
			return ch, err
		}
		ch.Loss = &v
	}
	if given("bandwidth") {
		v, err := ParseBandwidth(w.bandwidth)
		if err != nil {
			return ch, err
		}
		ch.Bandwidth = &v
	}
	return ch, nil
}

func (c *command) wan() *cobra.Command {
	var w wanFlags
	var cut, mend bool
	cmd := &cobra.Command{
		Use: "wan", Short: "Show the WAN, or change it while it carries packets", Args: cobra.NoArgs,
		Example: `  drover lab wan
  drover lab wan --delay 40ms --jitter 3ms --loss 1% --bandwidth 100M
  drover lab wan --cut
  drover lab wan --mend`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.open()
			if err != nil {
				return err
			}
			ch, err := w.change(cmd)
			if err != nil {
				return err
			}
			if cut || mend {
				if cut && mend {
					return errors.New("--cut and --mend are each other's opposite: give one")
				}
				ch.Cut = &cut
			}
			st, err := l.SetWAN(cmd.Context(), ch)
			if err != nil {
				return err
			}
			t := table.Table{Headers: []string{"LINK", "STATE", "DIRECTION", "PACKETS", "BYTES", "LOST", "DROPPED"}, Right: map[int]bool{3: true, 4: true, 5: true, 6: true}}
			for _, k := range st.Links {
				link := []table.Cell{table.Text(k.Name), wanState(k.WAN)}
				t.Add(slices.Concat(link, counters(k.SiteA, k.SiteB, k.AToB))...)
				t.Add(slices.Concat(link, counters(k.SiteB, k.SiteA, k.BToA))...)
			}
			return t.Write(cmd.OutOrStdout(), coloured(cmd))
		},
	}
	w.add(cmd)
	cmd.Flags().StringVar(&w.link, "link", "", "link to change, such as east-west; default: all")
	cmd.Flags().BoolVar(&cut, "cut", false, "let nothing pass")
	cmd.Flags().BoolVar(&mend, "mend", false, "end a cut")
	return cmd
}

func (c *command) restart() *cobra.Command {
	var hard bool
	cmd := &cobra.Command{
		Use: "restart NODE", Short: "Restart the manager or a host's agent; VMs go on", Args: cobra.ExactArgs(1), ValidArgsFunction: c.nodes,
		Example: "  drover lab restart manager\n  drover lab restart east-1 --kill",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := c.fleet()
			if err != nil {
				return err
			}
			defer f.Close()
			n, err := f.Topology().Node(args[0])
			if err != nil {
				return err
			}
			if n.Kind != KindHost && n.Kind != KindManager {
				return fmt.Errorf("node %s is a %s: only the manager and hosts run something to restart", n.Name, n.Kind)
			}
			end := f.Stop
			if hard {
				end = f.Kill
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), readyTimeout)
			defer cancel()
			if err := end(ctx, n.Name); err != nil {
				return err
			}
			if err := f.Revive(ctx, n.Name); err != nil {
				return err
			}
			if n.Kind == KindHost {
				return f.AwaitHosts(ctx)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&hard, "kill", false, "end it as a crash would (SIGKILL)")
	return cmd
}

func (c *command) down() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "down", Short: "Take a lab down and leave nothing behind", Args: cobra.NoArgs,
		Long:    "Ends VMs, agents and the manager at once and removes everything: disks and images, networks, state. It works in whatever state the lab is.",
		Example: "  drover lab down\n  drover lab down --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			names, err := Names(c.root)
			if !all && err == nil {
				var name string
				name, err = c.chosen()
				names = []string{name}
			}
			for _, n := range names {
				if err == nil {
					err = Down(cmd.Context(), c.root, n)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all labs")
	return cmd
}
