package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"
	"drover/internal/host"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

// hostCommands are the client's part of "drover host".
func (a *App) hostCommands() []*cobra.Command {
	cordon := func(name string, on bool) (object, string) {
		return &v1.Host{Meta: &v1.Meta{Name: name}, Spec: &v1.HostSpec{Cordoned: on}}, "spec.cordoned"
	}
	return []*cobra.Command{
		a.listCommand(hostKind(), "host"), a.showCommand(hostKind()), a.hostTokenCommand(),
		a.cordonCommand(hostKind(), true, "Place no new VMs on hosts; those that run stay", cordon),
		a.cordonCommand(hostKind(), false, "Let hosts take new VMs again", cordon),
		a.hostSetCommand(), a.hostStatusCommand(),
		a.rmCommand(hostKind(), "Forget hosts", "also one that is gone for good: its VMs are then without an owner"),
	}
}

func (a *App) hostTokenCommand() *cobra.Command {
	var site string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use: "token [NAME]", Short: "Make a one-time token with which a machine joins as a host", Args: want("[NAME]"), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Make a one-time token for \"drover host --join TOKEN\". It holds the manager's addresses and the fingerprint of its CA. NAME is what the host will be called; without it, it is called as the machine is.",
		Example: "  drover host token h2 --site berlin\n  drover host --join \"$(drover host token h2 --site berlin)\"",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.CreateJoinTokenRequest{Site: site}
			if len(args) > 0 {
				req.Host = args[0]
			}
			if lifetime != 0 {
				req.Lifetime = durationpb.New(lifetime)
			}
			t, err := c.Host.CreateJoinToken(ctx, req)
			if err != nil {
				return err
			}
			a.say("Good once, for %s. On the new host:  drover host --join TOKEN", unit.Span(t.GetExpireTime().AsTime().Sub(a.now())))
			_, err = fmt.Fprintln(a.Out, t.GetToken())
			return err
		}),
	}
	cmd.Flags().StringVar(&site, "site", defaultSite, "site that the host is in")
	cmd.Flags().DurationVar(&lifetime, "lifetime", 0, "how long it is good (default 1h, at most 7 days)")
	register(cmd, "site", a.names(siteKind(), ""))
	return cmd
}

func (a *App) hostSetCommand() *cobra.Command {
	var overcommit float64
	var reserve bytesFlag
	var labels labelFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change what placement knows of a host", Args: want("NAME"), ValidArgsFunction: a.firstArg(hostKind()),
		Example: "  drover host set h1 --cpu-overcommit 8 --memory-reserve 2G --label cpu=amd",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Host.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			u.given("cpu-overcommit", "spec.cpu_overcommit")
			u.given("memory-reserve", "spec.memory_reserve_bytes")
			m, err := u.label(&labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			// No revision: heartbeats count as changes, too, and what is set here does not depend on them.
			return u.send(ctx, a, c, hostKind(), &v1.Host{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: &v1.HostSpec{CpuOvercommit: overcommit, MemoryReserveBytes: int64(reserve)}})
		}),
	}
	cmd.Flags().Float64Var(&overcommit, "cpu-overcommit", 0, "virtual CPUs for each physical one (default 4)")
	cmd.Flags().Var(&reserve, "memory-reserve", "memory left to the host itself (default 512M)")
	labels.add(cmd, true)
	a.outputFlag(cmd)
	return cmd
}

// maxStatus bounds what is read from an agent.
const maxStatus = 64 << 20

func (a *App) hostStatusCommand() *cobra.Command {
	var run string
	cmd := &cobra.Command{
		Use: "status", Short: "Ask the agent on this machine itself, without the manager", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover host status\n  drover host status --run /run/drover-host -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket := host.SocketPath(run)
			h := rpc.UnixClient(socket)
			defer h.CloseIdleConnections()
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, "http://drover/status", nil)
			if err != nil {
				return err
			}
			res, err := h.Do(req)
			if err != nil {
				if errors.Is(err, context.Canceled) {
					return err
				}
				return &failure{code: exitUnavailable, err: fmt.Errorf("no agent answers on this machine (%s): %w", socket, err), hint: "give its run directory by --run; `drover host` starts one"}
			}
			defer res.Body.Close()
			b, err := io.ReadAll(io.LimitReader(res.Body, maxStatus))
			if err != nil {
				return err
			}
			if res.StatusCode != http.StatusOK {
				return connect.NewError(connect.CodeInternal, errors.New(strings.TrimSpace(string(b))))
			}
			return a.printStatus(b)
		},
	}
	cmd.Flags().StringVar(&run, "run", defaultHostState+"/run", "the agent's run directory")
	cmd.Flags().VarP(&choice{to: &a.output, of: []string{"table", "json"}}, "output", "o", "how to print: table, json")
	return cmd
}

func (a *App) printStatus(b []byte) error {
	if a.output == "json" {
		_, err := fmt.Fprintln(a.Out, strings.TrimSpace(string(b)))
		return err
	}
	var st host.Status
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	h := &v1.HostStatus{}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	if err := lenient.Unmarshal(st.Host, h); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	if err := a.describe(&v1.Host{Meta: &v1.Meta{Name: st.Name}, Spec: &v1.HostSpec{Site: st.Site}, Status: h}); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(a.Out, "Manager\n  %s\n", table.Clean(st.Manager)); err != nil {
		return err
	}
	t := &table.Table{Headers: []string{"VM", "STATE", "EPOCH", "CPUS", "MEMORY", "MESSAGE"}}
	for _, raw := range st.VMs {
		r := &v1.VMReport{}
		if err := lenient.Unmarshal(raw, r); err != nil {
			return fmt.Errorf("the agent's answer: %w", err)
		}
		state := vmState(&v1.VM{Status: r.GetStatus()})
		t.Add(table.Text(r.GetName()), state, table.Text(fmt.Sprint(r.GetEpoch())), table.Text(fmt.Sprint(r.GetStatus().GetCpus())), table.Text(unit.Size(r.GetStatus().GetMemoryBytes())), table.Text(r.GetStatus().GetMessage()))
	}
	if len(t.Rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(a.Out); err != nil {
		return err
	}
	return t.Write(a.Out, a.coloured(a.Out))
}
